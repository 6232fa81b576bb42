"""`delete_rows`: hides rows of a store for good, so that their questions can be extracted again.

One immutable file names ids and the segments in which rows of them were committed by then; nothing
else is changed. The bytes go with `compact` and `prune`.

Not guaranteed: a question whose job is at work in the same moment may be stored again by that.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np

from halp_store.errors import DamagedSegment, NothingDeleted
from halp_store.generation import ORIGIN_COLUMN, Generation, newest_generation
from halp_store.index import SegmentIndex
from halp_store.names import DELETIONS
from halp_store.published import PublishedGroup
from halp_store.root import Root, confirm_root, read_root
from halp_store.segment import parse_header
from halp_store.storage import METADATA, SEGMENTS, Storage

_IDS_A_FILE: Final = 10_000


@dataclass(frozen=True)
class Deletion:
    """deleted: ids whose rows are hidden now, or would be. before: ids of which a deletion had
    hidden all rows already. Both are sorted."""

    deleted: tuple[str, ...]
    before: tuple[str, ...]


def deletable(storage: Storage, ids: Collection[str]) -> Deletion:
    """What `delete_rows` would do now. Raises as it does."""
    return _deletable(SegmentIndex(storage, read_root(storage)).refresh(), storage, ids)


def delete_rows(storage: Storage, ids: Collection[str]) -> Deletion:
    """Delete the rows of these questions, durably. May be repeated: after a kill, some of many are
    deleted, and the same call deletes the others.

    Raises NothingDeleted if the store has never had one of them, NotAStore, LayoutVersionError,
    DamagedSegment, ForeignSegment, StoreGone or StoreUnavailable.
    """
    root = read_root(storage)
    found = _deletable(SegmentIndex(storage, root).refresh(), storage, ids)
    rows = _rows_of(storage, root, set(found.deleted))
    created = datetime.now(UTC).isoformat(timespec="milliseconds")
    for start in range(0, len(found.deleted), _IDS_A_FILE):
        some = found.deleted[start : start + _IDS_A_FILE]
        pairs = [(one, segment) for one in some for segment in sorted(rows[one])]
        document = {**root.stamp, "created": created, "rows": pairs}
        key = f"{DELETIONS}/{uuid.uuid4().hex}.json"
        storage.publish(key, json.dumps(document, ensure_ascii=False).encode())
    if found.deleted:
        storage.sync([DELETIONS, ""])
        confirm_root(storage, root)
    return found


def _deletable(index: SegmentIndex, storage: Storage, ids: Collection[str]) -> Deletion:
    asked = sorted(set(ids))
    unknown = [one for one in asked if one not in index and one not in index.deletions]
    if unknown:
        raise NothingDeleted(storage.where, unknown, len(asked))
    deleted = tuple(one for one in asked if one in index)
    return Deletion(deleted, tuple(one for one in asked if one not in index))


def _rows_of(storage: Storage, root: Root, ids: Collection[str]) -> dict[str, set[str]]:
    """id -> every segment that a row of it was committed with, as far as anything of it is left."""
    newest = newest_generation(storage, None)
    while True:
        found: dict[str, set[str]] = {one: set() for one in ids}
        for question_id, segment in _in_segments(storage, root, newest, ids):
            found[question_id].add(segment)
        # Compacted and pruned while the segments were read? Then some may have been missed.
        again = newest_generation(storage, newest)
        if again is newest:
            break
        newest = again
    if newest is not None:
        for question_id, segment in _in_generation(storage, root, newest, ids):
            found[question_id].add(segment)
    return found


def _in_segments(
    storage: Storage, root: Root, newest: Generation | None, ids: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Covered ones, too: they are there for older views, and for a generation that is lost."""
    covered = {one.name for one in newest.segments} if newest else set()
    for name in storage.list_names(SEGMENTS):
        document = storage.read(f"{SEGMENTS}/{name}/{METADATA}")
        try:
            header = parse_header(document) if document else None
        except ValueError as error:
            if name in covered:
                continue  # nobody takes rows from it
            raise DamagedSegment(storage.where, name, None, str(error)) from error
        if header is None:
            continue
        root.check_stamp(storage.where, name, header.attributes)
        yield from ((one, name) for one in header.question_ids if one in ids)


def _in_generation(
    storage: Storage, root: Root, generation: Generation, ids: Collection[str]
) -> Iterator[tuple[str, str]]:
    group = PublishedGroup(storage, generation.name, root)
    known: Sequence[str] = group.read("question_id", (generation.rows,)).tolist()
    rows = [row for row, one in enumerate(known) if one in ids]
    if rows:
        shape = (generation.rows,)
        numbers = group.read(ORIGIN_COLUMN, shape, np.array(rows, np.int64)).tolist()
        names = generation.origin_names(storage.where, numbers)
        yield from zip((known[row] for row in rows), names, strict=True)
