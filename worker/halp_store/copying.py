"""`copy_store`: a consistent copy of a store, while workers write and a compaction prunes.

Snapshot: newest generation, the published segments that it does not cover, then the deletions. A
group's zarr.json is copied last, once its other keys are: it is gone if a prune took the group
meanwhile, and then the copy begins again with the newer generation. The root's zarr.json comes last
of all, so that an interrupted copy is no store; `.copying.json` says whose copy it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore
from typing import Final

from halp_store.deletions import is_deletion
from halp_store.errors import CopyRefused, GoneSegment
from halp_store.generation import (
    PLANS,
    PRUNED,
    Generation,
    list_generations,
    newest_generation,
    plan_key,
)
from halp_store.index import SegmentIndex
from halp_store.names import (
    DELETIONS,
    generation_name,
    generation_number,
    group_prefix,
    is_generation,
)
from halp_store.reader import open_store
from halp_store.root import Root, confirm_root, read_root
from halp_store.segment import parse_json
from halp_store.storage import METADATA, SEGMENTS, Storage

_MARKER: Final = ".copying.json"
# Shards of a generation, of some 57 MB each, that are in memory at once.
_SHARDS: Final = 4

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Copied:
    """rows: of the copy. groups, keys, size: segments and generations, keys and bytes that this
    call brought over. generation: the newest of the copy, or None."""

    rows: int
    groups: int
    keys: int
    size: int
    generation: str | None


def copy_store(source: Storage, target: Storage, *, progress: Progress | None = None) -> Copied:
    """Make `target` a copy of `source`, or bring over what is new; the same call resumes.

    progress: is told (keys done, keys to do).
    Raises NotAStore, LayoutVersionError, DamagedSegment, ForeignSegment, StoreUnavailable, or
    CopyRefused for a target that holds something else.
    """
    root = read_root(source)
    copy = _Copy(source, target, root, progress or (lambda done, total: None))
    copy.begin()
    while True:
        snapshot = SegmentIndex(source, root).refresh()
        try:
            copy.bring(snapshot)
            break
        except GoneSegment:
            # Compacted and pruned meanwhile? Then the next snapshot has a newer generation.
            if newest_generation(source, snapshot.generation) is snapshot.generation:
                raise
    copy.end()
    store = open_store(target.where, storage=target)
    return Copied(len(store), copy.groups, copy.keys, copy.size, store.generation)


class _Copy:
    def __init__(self, source: Storage, target: Storage, root: Root, progress: Progress) -> None:
        self._source, self._target, self._root = source, target, root
        self._progress = progress
        self._is_new = True
        self._large = BoundedSemaphore(_SHARDS)
        self.groups = self.keys = self.size = 0

    def begin(self) -> None:
        """Take the target for this store. Raises CopyRefused."""
        source, target = self._source, self._target
        if _is_within(target.where, source.where) or _is_within(source.where, target.where):
            raise CopyRefused(target.where, f"it is not apart from {source.where}")
        if target.read(METADATA) is not None:
            if read_root(target) != self._root:
                raise CopyRefused(target.where, "it is another store")
            self._is_new = False
            return
        marker = json.dumps({"copy_of": self._root.to_json()}).encode()
        there = target.read(_MARKER)
        if not there and target.is_foreign():
            raise CopyRefused(target.where, "it holds other files")
        if not there:
            target.create_root()
            target.delete(_MARKER)  # one that was cut off
            target.publish(_MARKER, marker)
            there = target.read(_MARKER)
        if there != marker:
            raise CopyRefused(target.where, "a copy of another store was begun there")

    def bring(self, snapshot: SegmentIndex) -> None:
        """Bring over all of the snapshot. Raises GoneSegment for what was pruned meanwhile."""
        generation = snapshot.generation
        names = [*([generation.name] if generation else []), *sorted(snapshot.segments)]
        self._refuse_others(snapshot)
        # After the segments: who stored an id again did so after it was deleted.
        deletions = [name for name in self._source.list_names(DELETIONS) if is_deletion(name)]
        with self._threads() as threads:
            for _ in threads.map(lambda name: self._exact(f"{DELETIONS}/{name}"), deletions):
                pass
            missing = [
                name
                for name, is_there in zip(names, threads.map(self._is_there, names), strict=True)
                if not is_there
            ]
            listed = threads.map(lambda name: self._source.list_keys(group_prefix(name)), missing)
            keys = dict(zip(missing, listed, strict=True))
        if generation and generation.name in keys:
            self._plan(generation)
        total, done = sum(map(len, keys.values())), 0
        self._progress(0, total)
        with self._threads() as threads:
            for name, some in keys.items():
                last = f"{group_prefix(name)}/{METADATA}"
                others = [key for key in some if key != last]
                for size in threads.map(partial(self._bring, name), others):
                    self._count(size)
                    self._progress(done := done + 1, total)
                self._count(self._bring(name, last))
                self.groups += 1
                self._progress(done := done + 1, total)
        if generation:
            self._target.delete(plan_key(generation.number))
        for name in self._source.list_names(PRUNED):
            number = generation_number(name.removesuffix(".json"))
            if number and generation and number <= generation.number:
                self._exact(f"{PRUNED}/{name}")

    def end(self) -> None:
        """Make it a store."""
        confirm_root(self._source, self._root)
        if self._is_new:
            self._remove_leftovers()
            self._target.sync([""])
            self._exact(METADATA)
            self._target.delete(PLANS)
        self._target.delete(_MARKER)

    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max(self._source.concurrency, self._target.concurrency))

    def _is_there(self, name: str) -> bool:
        """Whether the target has the group already. Raises CopyRefused if it has another."""
        key = f"{group_prefix(name)}/{METADATA}"
        there = self._target.read(key)
        if not there:
            return False
        if there != self._read(name, key):
            raise CopyRefused(self._target.where, f"{key} differs")
        return True

    def _count(self, size: int) -> None:
        self.keys += 1
        self.size += size

    def _bring(self, name: str, key: str) -> int:
        """The bytes of a key that is copied now."""
        with self._large if is_generation(name) else nullcontext():
            value = self._read(name, key)
            if not self._target.publish(key, value) and self._target.read(key) != value:
                self._target.delete(key)  # cut off by a kill, where no hard link can be made
                self._target.publish(key, value)
                if self._target.read(key) != value:
                    raise CopyRefused(self._target.where, f"{key} differs")
        return len(value)

    def _read(self, name: str, key: str) -> bytes:
        value = self._source.read(key)
        if value is None:
            what = "is missing, although it was published"
            raise GoneSegment(self._source.where, name, None, what)
        return value

    def _exact(self, key: str) -> None:
        """A key that stands for itself, if the source has it."""
        value = self._source.read(key)
        if not value:
            return
        if not self._target.read(key):
            self._target.delete(key)
            self._target.publish(key, value)
        if self._target.read(key) != value:
            raise CopyRefused(self._target.where, f"{key} differs")

    def _plan(self, generation: Generation) -> None:
        """Let a reader of a finished copy know that this generation is being written."""
        key = plan_key(generation.number)
        segments = [one.name for one in generation.segments]
        plan = self._source.read(key) or json.dumps({"base": None, "segments": segments}).encode()
        if not self._target.read(key):
            self._target.publish(key, plan)

    def _refuse_others(self, snapshot: SegmentIndex) -> None:
        """Raise CopyRefused if the target has rows that the source does not have."""
        newest = snapshot.generation.number if snapshot.generation else 0
        for name in self._target.list_names(SEGMENTS):
            if snapshot.is_published(name):
                continue
            document = self._target.read(f"{SEGMENTS}/{name}/{METADATA}")
            if document and "nonce" in (parse_json(document).get("attributes") or {}):
                raise CopyRefused(self._target.where, f"{SEGMENTS}/{name} is not in the source")
        if max(list_generations(self._target), default=0) > newest:
            raise CopyRefused(self._target.where, "it was compacted since it was copied")

    def _remove_leftovers(self) -> None:
        """What was being copied when it was pruned from the source."""
        target = self._target
        for prefix in [
            *map(group_prefix, target.list_names(SEGMENTS)),
            *map(generation_name, list_generations(target)),
        ]:
            if not self._target.read(f"{prefix}/{METADATA}"):
                self._target.delete(prefix)


def _is_within(path: str, above: str) -> bool:
    if "://" in path or "://" in above:
        return path == above
    inner, outer = (Path(os.path.realpath(one)) for one in (path, above))
    return inner.is_relative_to(outer)
