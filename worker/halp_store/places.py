"""`Places`: where rows are, and in which pieces they are read. Pure values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from halp_store.index import SegmentIndex
from halp_store.names import is_generation

Rows = npt.NDArray[np.int64]


class Part(NamedTuple):
    """Rows of one group, and where they go in a column. length: of the whole group."""

    name: str
    length: int
    rows: Rows
    targets: Rows

    def within(self, blocks: Collection[int], block_rows: int) -> Part:
        """Only the rows that go into these blocks of the column."""
        chosen = np.isin(self.targets // block_rows, list(blocks))
        return self._replace(rows=self.rows[chosen], targets=self.targets[chosen])


class Places(NamedTuple):
    """Where N rows are. names: of groups, sorted; lengths: rows in each.

    numbers: (N), which of `names` a row is in. rows: (N), the row in it.
    """

    names: tuple[str, ...]
    lengths: tuple[int, ...]
    numbers: Rows
    rows: Rows

    @classmethod
    def find(cls, index: SegmentIndex, ids: Sequence[str]) -> Places:
        """Raises KeyError with the first id that the index does not have."""
        found = [place for one in ids if (place := index.find(one))]
        if len(found) != len(ids):
            raise KeyError(next(one for one in ids if one not in index))
        counted = {one.segment: one.number for one in found}
        names = sorted(counted)
        numbers = {name: number for number, name in enumerate(names)}
        return cls(
            tuple(names),
            tuple(index.rows_in(counted[name]) for name in names),
            np.array([numbers[one.segment] for one in found], np.int64),
            np.array([one.row for one in found], np.int64),
        )

    def of(self, chosen: Rows | slice) -> Places:
        return self._replace(numbers=self.numbers[chosen], rows=self.rows[chosen])

    def same(self, other: Places) -> bool:
        return self.names == other.names and all(
            np.array_equal(ours, theirs)
            for ours, theirs in ((self.numbers, other.numbers), (self.rows, other.rows))
        )

    def name(self, row: int) -> str:
        return self.names[int(self.numbers[row])]

    def blocks(self, generation_rows: int) -> list[Rows]:
        """Which of the N rows each segment has, and each run of `generation_rows` of a generation.

        In order of name and place, whatever the order of the N rows.
        """
        sharded = np.array([is_generation(name) for name in self.names], bool)
        block = np.where(sharded[self.numbers], self.rows // generation_rows, 0)
        order = np.lexsort((block, self.numbers))
        border = (np.diff(self.numbers[order]) != 0) | (np.diff(block[order]) != 0)
        return [some for some in np.split(order, np.flatnonzero(border) + 1) if len(some)]

    def parts(self, generation_rows: int) -> list[Part]:
        """The N rows, group by group, a generation's by so many rows."""
        parts = []
        for targets in self.blocks(generation_rows):
            number = self.numbers[targets[0]]
            name, length = self.names[number], self.lengths[number]
            parts.append(Part(name, length, self.rows[targets], targets))
        return parts
