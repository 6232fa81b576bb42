"""`SegmentIndex`: which published segment holds which question id. Writer and reader share it.

Knows the headers of segments only, and ids and contents of the newest generation, which stands
for all segments that it covers. Rows that were deleted are not taken in. Where an id occurs twice
(a redelivered job lands in another batch), the generation wins, then the lowest segment name, in
whatever order they were discovered.

Not guaranteed: two writers that publish one id with different content within the same moment
both succeed; the lowest name wins for readers, and the id is listed in `contradictions`.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Sequence
from hashlib import blake2b
from typing import Final, Literal, NamedTuple

import numpy as np

from halp_store.deletions import Deletions, read_deletions
from halp_store.errors import DamagedSegment
from halp_store.features import RowKey
from halp_store.generation import (
    ORIGIN_COLUMN,
    Generation,
    check_pruned,
    last_pruned,
    newest_generation,
)
from halp_store.names import is_generation
from halp_store.published import PublishedGroup
from halp_store.root import Root
from halp_store.segment import Header, parse_header
from halp_store.storage import METADATA, SEGMENTS, Storage

# About 150 bytes a row in memory: content hashes are only compared, so 16 bytes of them do.
_DIGEST_BYTES: Final = 16
_ROW_BITS: Final = 32


class Place(NamedTuple):
    """segment: its name, or the generation's. row: the row in it. number: of the segment, in order
    of discovery."""

    segment: str
    row: int
    number: int


class _Found(NamedTuple):
    name: str
    question_ids: tuple[str, ...]
    digests: bytes


class SegmentIndex:
    """Empty until `refresh`; changes only there and in `add`. deletions: none without it, but for
    those that a refresh finds."""

    def __init__(self, storage: Storage, root: Root, deletions: Deletions | None = None) -> None:
        self._storage, self._root = storage, root
        self._deletions = deletions or Deletions()
        self._hidden: dict[str, int] = {}  # segment or generation -> rows that were deleted
        self._names: list[str] = []
        self._digests: list[bytes] = []
        self._row_counts = array("q")
        self._places: dict[str, int] = {}
        self._published: set[str] = set()  # or covered by the generation
        self._fenced: set[str] = set()
        self._generation: Generation | None = None
        self._contradictions: set[str] = set()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        """The question ids, in no particular order."""
        return iter(self._places)

    def __contains__(self, question_id: object) -> bool:
        return question_id in self._places

    @property
    def generation(self) -> Generation | None:
        """The newest, or None."""
        return self._generation

    @property
    def segments(self) -> list[str]:
        """Names of the published segments that the generation does not cover, in no order."""
        covered = {one.name for one in self._generation.segments} if self._generation else set()
        return [name for name in self._names if not (is_generation(name) or name in covered)]

    def is_published(self, segment: str) -> bool:
        """Whether it is in the index, or covered by its generation."""
        return segment in self._published

    def name_of(self, number: int) -> str:
        """Of the segment or generation with this `Place.number`."""
        return self._names[number]

    @property
    def deletions(self) -> Deletions:
        """As of the last refresh."""
        return self._deletions

    @property
    def rows_deleted(self) -> int:
        """Rows of the generation and of `segments` that were deleted and are still there."""
        names = [*self.segments, *([self._generation.name] if self._generation else [])]
        return sum(self._hidden.get(name, 0) for name in names)

    @property
    def contradictions(self) -> tuple[str, ...]:
        """Ids that were published with more than one content, sorted."""
        return tuple(sorted(self._contradictions))

    def rows_in(self, number: int) -> int:
        return self._row_counts[number]

    def find(self, question_id: str) -> Place | None:
        code = self._places.get(question_id)
        if code is None:
            return None
        number, row = code >> _ROW_BITS, code & ((1 << _ROW_BITS) - 1)
        return Place(self._names[number], row, number)

    def state(self, key: RowKey) -> Literal["new", "stored", "conflict"]:
        """Whether the id is published, and with this content or another."""
        code = self._places.get(key.question_id)
        if code is None:
            return "new"
        return "stored" if self._digest_at(code) == _digest(key.content_hash) else "conflict"

    def refresh(self) -> SegmentIndex:
        """Take in what was published since, all or nothing; the index to go on with: this one, or,
        if rows of it were deleted since, a new one. Then this stays as it was.

        Raises DamagedSegment for a zarr.json that is not a segment's, or for ids of a generation
        that cannot be read; ForeignSegment for what belongs to another store; DamagedDeletion;
        GenerationMissing.
        """
        # Before the segments: who stores an id again has seen that it was deleted.
        deletions = read_deletions(self._storage, self._root, self._deletions)
        if any(one in self._places for one in deletions.ids_since(self._deletions)):
            return SegmentIndex(self._storage, self._root, deletions).refresh()
        self._take_in(deletions)
        return self

    def refresh_deletions(self) -> SegmentIndex:
        """As `refresh`, but only if rows were deleted since: a listing of a few names."""
        found = read_deletions(self._storage, self._root, self._deletions)
        return self if found is self._deletions else self.refresh()

    def _take_in(self, deletions: Deletions) -> None:
        pruned = last_pruned(self._storage)
        newest = newest_generation(self._storage, self._generation)
        while True:
            found, fenced = self._read_new(newest)
            # Compacted and pruned while the segments were read? Then some may have been missed.
            again = newest_generation(self._storage, newest)
            if again is newest:
                break
            newest = again
        check_pruned(self._storage, pruned, newest)
        before, self._deletions = self._deletions, deletions
        if newest is not None and newest is not self._generation:
            try:
                self.add_generation(newest)
            except BaseException:
                self._deletions = before
                raise
        self._fenced.update(fenced)
        for name, question_ids, digests in found:
            self._add(name, question_ids, digests)

    def _read_new(self, newest: Generation | None) -> tuple[list[_Found], list[str]]:
        """Segments that are new and not covered, and the names of those that were fenced."""
        # Those that the known generation covers count as published already.
        is_known = newest is self._generation
        covered = {one.name for one in newest.segments} if newest and not is_known else set()
        found: list[_Found] = []
        fenced: list[str] = []
        for name in self._storage.list_names(SEGMENTS):
            if name in self._published or name in self._fenced or name in covered:
                continue
            document = self._storage.read(f"{SEGMENTS}/{name}/{METADATA}")
            if not document:  # staged but not published, yet or ever
                continue
            try:
                header = parse_header(document)
            except ValueError as error:
                raise DamagedSegment(self._storage.where, name, None, str(error)) from error
            if header is None:
                fenced.append(name)
            else:
                self._root.check_stamp(self._storage.where, name, header.attributes)
                found.append(_Found(name, header.question_ids, _digests(header)))
        return found, fenced

    def add(self, name: str, header: Header) -> None:
        """Take in a segment that was read elsewhere. Nothing happens if it is here already.

        Raises ForeignSegment."""
        if name not in self._published:
            self._root.check_stamp(self._storage.where, name, header.attributes)
            self._add(name, header.question_ids, _digests(header))

    def add_generation(self, generation: Generation) -> None:
        """Take in a generation that was read elsewhere. Raises DamagedSegment or ForeignSegment."""
        group = PublishedGroup(self._storage, generation.name, self._root)
        columns = [group.read(one, (generation.rows,)) for one in ("question_id", "content_hash")]
        question_ids, hashes = (tuple(column.tolist()) for column in columns)
        deleted = self._deleted_of(generation, group, question_ids)
        self._generation = generation
        self._published.update(one.name for one in generation.segments)
        self._add(generation.name, question_ids, b"".join(map(_digest, hashes)), deleted)

    def _deleted_of(
        self, generation: Generation, group: PublishedGroup, question_ids: Sequence[str]
    ) -> set[int]:
        """The rows that were deleted. Only where an id is named it takes the column of origins."""
        rows = [row for row, one in enumerate(question_ids) if one in self._deletions]
        if not rows:
            return set()
        numbers = group.read(ORIGIN_COLUMN, (generation.rows,), np.array(rows, np.int64)).tolist()
        names = generation.origin_names(self._storage.where, numbers)
        return {
            row
            for row, name in zip(rows, names, strict=True)
            if self._deletions.covers(question_ids[row], name)
        }

    def _add(
        self,
        name: str,
        question_ids: tuple[str, ...],
        digests: bytes,
        deleted: Collection[int] | None = None,
    ) -> None:
        """deleted: rows of a generation; those of a segment are looked up."""
        if deleted is None:
            covers = self._deletions.covers
            deleted = {row for row, one in enumerate(question_ids) if covers(one, name)}
        self._hidden[name] = len(deleted)
        number = len(self._names)
        self._names.append(name)
        self._digests.append(digests)
        self._row_counts.append(len(question_ids))
        self._published.add(name)
        for row, question_id in enumerate(question_ids):
            if row in deleted:
                continue
            code = number << _ROW_BITS | row
            other = self._places.setdefault(question_id, code)
            if other == code:
                continue
            if self._digest_at(other) != self._digest_at(code):
                self._contradictions.add(question_id)
            if self._wins(name, self._names[other >> _ROW_BITS]):
                self._places[question_id] = code

    @staticmethod
    def _wins(name: str, other: str) -> bool:
        if is_generation(name) and is_generation(other):
            return name > other
        return is_generation(name) or (not is_generation(other) and name < other)

    def _digest_at(self, code: int) -> bytes:
        start = (code & ((1 << _ROW_BITS) - 1)) * _DIGEST_BYTES
        return self._digests[code >> _ROW_BITS][start : start + _DIGEST_BYTES]


def _digests(header: Header) -> bytes:
    return b"".join(map(_digest, header.content_hashes))


def _digest(content_hash: str) -> bytes:
    return blake2b(content_hash.encode(), digest_size=_DIGEST_BYTES).digest()
