"""`prune`: removes what the newest generations stand for: segments that they cover, older ones.

Only what a generation has covered for the grace time goes, so that those who read segments by hand,
or with an older view, are done with them; a view of `halp_store` finds its rows in the generation.
Before anything goes, the newest generation is read whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from halp_store.deletions import Deletions, read_deletions
from halp_store.errors import PruneRefused
from halp_store.generation import (
    PLANS,
    Generation,
    list_generations,
    mark_pruned,
    newest_generation,
    plan_key,
    read_generation,
)
from halp_store.inspection import inspect_generation
from halp_store.names import generation_name, group_prefix
from halp_store.root import confirm_root, read_root
from halp_store.storage import METADATA, SEGMENTS, Storage
from halp_store.verification import ProblemKind

# Of rows that were so in their segments: keeping those would mend nothing.
_OLDER: Final = {ProblemKind.NUMBERS, ProblemKind.NOT_FINITE, ProblemKind.METADATA}


@dataclass(frozen=True)
class Pruning:
    """segments, generations: that were removed. files: of them. waiting: segments and generations
    that a younger generation stands for; seconds: until the next of them can go, None without any.
    """

    segments: int
    generations: int
    files: int
    waiting: int
    seconds: float | None


def prune(
    storage: Storage,
    *,
    grace_seconds: float,
    progress: Callable[[int, int], None] | None = None,
) -> Pruning:
    """Remove what a generation that is `grace_seconds` old stands for; may be called again.

    progress: is told (segments and generations removed, those to remove).
    Raises NotAStore, LayoutVersionError, DamagedSegment, ValueError for a negative grace, OSError,
    or PruneRefused if the newest generation is not whole.
    """
    if grace_seconds < 0:
        raise ValueError(f"grace_seconds: expected 0 or more, got {grace_seconds}")
    root = read_root(storage)
    newest = newest_generation(storage, None)
    if newest is None:
        return Pruning(0, 0, 0, 0, None)
    ages = {one: _age_seconds(storage, one) for one in _published(storage)}
    gone = _replaced(storage, [one for one, age in ages.items() if age >= grace_seconds])
    waiting = set(_replaced(storage, list(ages))).difference(gone)
    left = [grace_seconds - age for age in ages.values() if age < grace_seconds]
    seconds = min(left) if waiting and left else None
    if gone:
        deletions = read_deletions(storage, root, Deletions())
        found = inspect_generation(storage, root, newest, deletions=deletions)
        if problems := [one for one in found if one.kind not in _OLDER]:
            is_damaged = any(one.kind is not ProblemKind.UNREADABLE for one in problems)
            first = str(problems[0].sentence)
            raise PruneRefused(storage.where, newest.name, len(problems), first, is_damaged)
        confirm_root(storage, root)
        mark_pruned(storage, newest.number)
    files = _remove(storage, gone, progress)
    for key in storage.list_keys(PLANS):
        if key <= plan_key(newest.number):
            storage.delete(key)
    generations = sum(not name.startswith(f"{SEGMENTS}/") for name in gone)
    return Pruning(len(gone) - generations, generations, files, len(waiting), seconds)


def _published(storage: Storage) -> list[Generation]:
    """All generations that are published, ascending."""
    found = (read_generation(storage, number) for number in list_generations(storage))
    return [one for one in found if one]


def _age_seconds(storage: Storage, generation: Generation) -> float:
    """Since it was published."""
    return storage.age_seconds(f"{generation.name}/{METADATA}") or 0.0


def _replaced(storage: Storage, generations: Sequence[Generation]) -> list[str]:
    """The prefixes of what these generations stand for and that is still there, if in part."""
    if not generations:
        return []
    latest = generations[-1]
    covered = {one.name for one in latest.segments}
    segments = [group_prefix(name) for name in storage.list_names(SEGMENTS) if name in covered]
    # Ascending: see `_remove`.
    older = [number for number in list_generations(storage) if number < latest.number]
    return segments + [generation_name(number) for number in older]


def _remove(
    storage: Storage, prefixes: list[str], progress: Callable[[int, int], None] | None
) -> int:
    def remove(prefix: str) -> int:
        # Its zarr.json first: what is half removed is nothing to a reader.
        return storage.delete(f"{prefix}/{METADATA}") + storage.delete(prefix)

    # One after the other, the oldest first: `newest_generation` rests on it.
    generations = [one for one in prefixes if not one.startswith(f"{SEGMENTS}/")]
    files = sum(storage.delete(f"{one}/{METADATA}") for one in generations)
    with ThreadPoolExecutor(storage.concurrency) as threads:
        for done, count in enumerate(threads.map(remove, prefixes), 1):
            files += count
            if progress:
                progress(done, len(prefixes))
    return files
