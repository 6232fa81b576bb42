"""`copy`: a consistent copy of a store, while workers write to it and `prune` removes from it.

All keys of a group come before its zarr.json, and the root's zarr.json comes last: what is copied
in part is no store, and the same call goes on with it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from halp_store.errors import CopyRefused
from halp_store.generation import PRUNED
from halp_store.index import SegmentIndex
from halp_store.names import group_prefix
from halp_store.root import Root, read_root
from halp_store.storage import METADATA, Storage

Progress = Callable[[int, int], None]

_MARKER: Final = "copying.json"
"""Holds the source's zarr.json until the copy is whole. No writer makes a store beside it."""

_DELETED: Final = "deleted"


@dataclass(frozen=True)
class Copied:
    """rows: of the copy. groups: segments and generations that this call brought over."""

    rows: int
    groups: int


def copy(source: Storage, target: Storage, progress: Progress | None = None) -> Copied:
    """Bring over what `target` does not have yet; may be called again.

    progress: is told (groups done, groups to copy).
    Raises NotAStore, LayoutVersionError, DamagedSegment, OSError, or CopyRefused.
    """
    root = read_root(source)
    _claim(source, target)
    groups = 0
    while True:
        # Before and after: `compact` may drop them with the rows that they are about.
        early = _side_keys(source)
        index = SegmentIndex(source, root).refresh()
        _copy_keys(source, target, {*early, *source.list_keys(_DELETED)})
        names = [index.generation.name] if index.generation else []
        names += sorted(index.segments)
        whole = True
        for done, name in enumerate(names, 1):
            copied = _copy_group(source, target, group_prefix(name))
            if copied is None:  # pruned meanwhile: a newer generation has its rows
                whole = False
                break
            groups += copied
            if progress:
                progress(done, len(names))
        if whole:
            break
    return Copied(_finish(source, target, root), groups)


def _claim(source: Storage, target: Storage) -> None:
    document = source.read(METADATA) or b""
    there = target.read(METADATA)
    if there is None:
        there = target.read(_MARKER)
    if there is None:
        if target.is_foreign():
            raise CopyRefused(target.where, source.where, "other files are there")
        target.create_root()
        target.publish(_MARKER, document)
        there = target.read(_MARKER)
    if there != document:
        raise CopyRefused(target.where, source.where, "another store, or a copy of one, is there")


def _side_keys(source: Storage) -> list[str]:
    return [*source.list_keys(PRUNED), *source.list_keys(_DELETED)]


def _copy_keys(source: Storage, target: Storage, keys: set[str]) -> None:
    def bring(key: str) -> None:
        value = None if target.read_range(key, 0, 1) else source.read(key)
        if value is not None:
            target.publish(key, value)

    with ThreadPoolExecutor(min(source.concurrency, target.concurrency)) as threads:
        for _ in threads.map(bring, sorted(keys)):
            pass


def _copy_group(source: Storage, target: Storage, prefix: str) -> int | None:
    """1 if it was copied, 0 if it was there; None if the source has it no more."""
    key = f"{prefix}/{METADATA}"
    there = target.read(key)
    if there is None:
        _copy_keys(source, target, set(source.list_keys(prefix)) - {key})
    # `prune` takes it first: as long as it is there, all that was read before is the whole group.
    document = source.read(key)
    if document is None:
        if there is None:
            target.delete(prefix)
        return None
    if there is None:
        target.publish(key, document)
    elif there != document:
        raise CopyRefused(target.where, source.where, f"{prefix} is another one there")
    return int(there is None)


def _finish(source: Storage, target: Storage, root: Root) -> int:
    """The rows of the copy, which is a store from now on."""
    index = SegmentIndex(target, root).refresh()
    target.publish(METADATA, source.read(METADATA) or b"")
    target.delete(_MARKER)
    return len(index)
