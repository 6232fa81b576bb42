"""`compact`: all that is published becomes one sorted group of large shards, beside the segments.

    plan       which generation and segments, written down before anything else
    order      one row per question id, sorted
    gather     each column into order, over a scratch disk where it is large
    write      its shards, those that an earlier run has not written
    publish    the group's zarr.json, last and only if absent

The plan makes it resumable, and two at once harmless: what is to be written follows from it, so
whoever goes on writes the same keys with the same values. Workers and readers go on meanwhile:
nothing that they use is changed. A plan whose segments have gone is given up with a tombstone.

Memory: a few shards of one column, and about 500 bytes a row. Scratch: the largest column, in half
of its float32 size if it was computed in bfloat16.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from halp_store.errors import CompactionFailed, DamagedSegment, GoneSegment
from halp_store.generation import Generation, newest_generation, plan_key, read_generation
from halp_store.generation_writer import GenerationWriter
from halp_store.index import SegmentIndex
from halp_store.local import LocalStorage
from halp_store.names import generation_name, group_prefix
from halp_store.root import Root, confirm_root, read_root
from halp_store.row_order import RowOrder, order_rows
from halp_store.segment import TOMBSTONE_DOCUMENT, parse_json
from halp_store.storage import METADATA, Storage

# A plan is given up only if its segments have gone; more often in a row means that it is broken.
_PLANS_TRIED: Final = 4


@dataclass(frozen=True)
class Compaction:
    """generation: the newest, now; None if there is nothing to compact. rows: of it. segments: how
    many this call took over. resumed: whether an earlier call had begun it. dropped: rows that
    another row of the same id stood for; contradictions: those ids whose contents differed, sorted.
    deleted: rows that were left out because they were deleted.
    """

    generation: str | None
    rows: int
    segments: int
    resumed: bool
    dropped: int
    contradictions: tuple[str, ...]
    deleted: int = 0


@dataclass(frozen=True)
class _Plan:
    """number: of the generation to be. base: the one before, or None. segments: sorted. deletions:
    the files that it honours; what is deleted later is for the next plan."""

    number: int
    base: int | None
    segments: tuple[str, ...]
    deletions: tuple[str, ...]
    resumed: bool


def compact(
    storage: Storage,
    *,
    scratch: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Compaction:
    """Bring all that is published now into the newest generation.

    scratch: a folder on a disk with room for the largest column; the store's own without it, for a
        bucket the system's folder for temporary files.
    progress: is told (bytes done, bytes to do) of the vectors.
    Raises NotAStore, LayoutVersionError, DamagedSegment or ForeignSegment for what cannot be taken
    (nothing is changed then, and once that is repaired the same call goes on), CompactionFailed,
    StoreUnavailable.
    """
    root = read_root(storage)
    before = newest_generation(storage, None)
    done = before
    taken = dropped = deleted = 0
    resumed = False
    contradictions: tuple[str, ...] = ()
    for _ in range(_PLANS_TRIED):
        confirm_root(storage, root)
        plan = _plan(storage, root, done)
        if plan is None:
            return Compaction(
                done.name if done else None,
                done.rows if done else 0,
                taken,
                resumed,
                dropped,
                contradictions,
                deleted,
            )
        try:
            order = order_rows(storage, root, plan.number, plan.base, plan.segments, plan.deletions)
            is_there = _write(storage, root, order, scratch, progress)
        except GoneSegment as error:
            done = _instead_of(storage, plan, done, error)
            continue
        if not is_there:
            done = newest_generation(storage, done)
            continue
        done, resumed = order.generation, resumed or plan.resumed
        taken, dropped = taken + len(plan.segments), dropped + order.dropped
        deleted += order.deleted
        contradictions = tuple(sorted({*contradictions, *order.contradictions}))
        if not plan.resumed:
            # What was published since is for the next call, or this would never end.
            break
    else:
        raise CompactionFailed(storage.where, _PLANS_TRIED)
    return Compaction(done.name, done.rows, taken, resumed, dropped, contradictions, deleted)


def _plan(storage: Storage, root: Root, done: Generation | None) -> _Plan | None:
    """The plan after the newest generation: that of an earlier run, or a new one."""
    number = (done.number if done else 0) + 1
    while document := storage.read(f"{generation_name(number)}/{METADATA}"):
        if parse_json(document) != parse_json(TOMBSTONE_DOCUMENT):
            # Another compaction has just published it.
            return _plan(storage, root, newest_generation(storage, done))
        number += 1
    key, name = plan_key(number), generation_name(number)
    # In this order: a plan is there before anything that it leads to.
    leftovers = storage.list_keys(name)
    resumed = storage.read(key) is not None
    if leftovers and not resumed:
        # Of a generation that lost its zarr.json: its keys are not those of a new plan.
        storage.publish(f"{name}/{METADATA}", TOMBSTONE_DOCUMENT)
        return _plan(storage, root, newest_generation(storage, done))
    if not resumed:
        index = SegmentIndex(storage, root)
        index.refresh()
        # A generation has one row at least: where all were deleted, nothing is written.
        if not len(index) or not (index.segments or index.rows_deleted):
            return None
        wanted = {
            "base": done.number if done else None,
            "segments": sorted(index.segments),
            "deletions": index.deletions.names,
        }
        storage.publish(key, json.dumps(wanted).encode())
    # Ours, or that of another one who was faster.
    found = parse_json(storage.read(key) or b"{}")
    try:
        deletions = tuple(found.get("deletions", ()))  # of an earlier release: none
        return _Plan(number, found["base"], tuple(found["segments"]), deletions, resumed)
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedSegment(storage.where, name, None, f"its plan {key} is damaged") from error


def _instead_of(
    storage: Storage, plan: _Plan, done: Generation | None, error: GoneSegment
) -> Generation | None:
    """What the next plan is after, if this one lost its input: another compaction has published it
    and pruned, or somebody has deleted a segment. Raises the error if neither is so."""
    newest = newest_generation(storage, done)
    if newest is done:
        if storage.read(f"{group_prefix(error.segment)}/{METADATA}"):
            raise error
        storage.publish(f"{generation_name(plan.number)}/{METADATA}", TOMBSTONE_DOCUMENT)
        newest = newest_generation(storage, done)
    return newest


def _write(
    storage: Storage,
    root: Root,
    order: RowOrder,
    scratch: Path | None,
    progress: Callable[[int, int], None] | None,
) -> bool:
    """Whether the generation is there now, whoever published it; False if it was given up."""
    writer = GenerationWriter(storage, root, order, progress)
    with ExitStack() as stack:
        folder = _scratch_folder(storage, scratch, stack)
        if not writer.write(folder):
            storage.publish(f"{order.generation.name}/{METADATA}", TOMBSTONE_DOCUMENT)
    return read_generation(storage, order.generation.number) is not None


def _scratch_folder(storage: Storage, wanted: Path | None, stack: ExitStack) -> Path:
    if wanted is not None:
        return wanted
    if isinstance(storage, LocalStorage):
        # Where the store has room, this has: a system's temporary folder may be in memory.
        return storage.scratch_folder()
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="halp-compact-")))
