"""`repair`: removes what no reader can see: segments that nobody will publish, half-written files.

Published segments are never touched. A segment is fenced before its files go, so a worker that
wakes up late publishes nothing; its tombstone stays for ever. What a generation stands for is left
to `prune`, and a generation that is not published to `compact`, which goes on with it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from halp_store.disk_faults import FULL
from halp_store.errors import DamagedSegment, StoreUnavailable
from halp_store.fence import clear_without_room, delete_staged, fence_segment, is_fenced
from halp_store.generation import list_generations, newest_generation
from halp_store.inspection import is_given_up
from halp_store.names import generation_name, prefix_of
from halp_store.root import read_root
from halp_store.storage import METADATA, SEGMENTS, Storage


@dataclass(frozen=True)
class Repair:
    """fenced: segments that this repair fenced, sorted. files_removed: of them, of segments that
    were fenced before, and of generations that were given up. partials_removed: half-written
    zarr.json files. waiting: segments that are not published and younger than the grace, sorted;
    they were left alone. no_room: segments that stay because the disk is too full to fence them.
    """

    fenced: tuple[str, ...]
    files_removed: int
    partials_removed: int
    waiting: tuple[str, ...]
    no_room: tuple[str, ...] = ()


def repair(storage: Storage, *, grace_seconds: float) -> Repair:
    """Remove leftovers that did not change for `grace_seconds`.

    What needs no room goes first, so that there is room for tombstones on a full disk.

    grace_seconds: the writers' staging deadline at least; with less, a live worker may lose its
        files while it writes them, which ends it and costs no row.
    Raises NotAStore, LayoutVersionError, ValueError for a negative grace, StoreUnavailable.
    """
    if grace_seconds < 0:
        raise ValueError(f"grace_seconds: expected 0 or more, got {grace_seconds}")
    read_root(storage)
    partials = [key for key in storage.half_written() if _is_old(storage, key, grace_seconds)]
    deleted = sum(storage.delete(key) for key in partials)
    removed = sum(
        storage.delete(name, keep={f"{name}/{METADATA}"})
        for name in map(generation_name, list_generations(storage))
        if is_given_up(storage, name) and _is_old(storage, name, grace_seconds)
    )
    orphans, waiting = [], []
    for name in _uncovered(storage):
        document = storage.read(f"{SEGMENTS}/{name}/{METADATA}")
        was_fenced = bool(document) and is_fenced(storage, name)
        if document and not was_fenced:
            continue
        if not _is_old(storage, f"{SEGMENTS}/{name}", grace_seconds):
            waiting += [] if document else [name]
        elif was_fenced:
            removed += delete_staged(storage, name)
        else:
            orphans.append(name)
    fenced: list[str] = []
    no_room: list[str] = []
    for name in orphans:
        try:
            won, files = _clear(storage, name)
        except StoreUnavailable as error:
            if error.errno not in FULL:
                raise
            no_room.append(name)
        else:
            removed += files
            fenced += [name] if won else []
    return Repair(tuple(fenced), removed, deleted, tuple(waiting), tuple(no_room))


def _clear(storage: Storage, name: str) -> tuple[bool, int]:
    """Fence a segment and remove its files: whether this call fenced it, how many went."""
    try:
        won = fence_segment(storage, name)
    except StoreUnavailable as error:
        if error.errno not in FULL:
            raise
        files = clear_without_room(storage, name)
        return files is not None, files or 0
    # Published in between, or not a tombstone for some other reason? Then it is not ours.
    return won, delete_staged(storage, name) if is_fenced(storage, name) else 0


def _uncovered(storage: Storage) -> list[str]:
    """The segments that the newest generation does not stand for, sorted."""
    # In this order: what was published and pruned meanwhile is covered by then, and no orphan.
    names = sorted(filter(prefix_of, storage.list_names(SEGMENTS)))
    covered: set[str] = set()
    with suppress(DamagedSegment):  # unknown then; a tombstone among what it covers harms nobody
        newest = newest_generation(storage, None)
        covered.update(segment.name for segment in (newest.segments if newest else ()))
    return [name for name in names if name not in covered]


def _is_old(storage: Storage, key: str, grace_seconds: float) -> bool:
    age = storage.age_seconds(key)
    return age is not None and age >= grace_seconds
