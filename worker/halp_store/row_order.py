"""`RowOrder`: the rows that a generation is made of, by question id, and where each comes from.

One row per id: the generation's before the segments', then the lowest segment name's, as readers
see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from halp_store.deletions import planned_deletions
from halp_store.errors import DamagedSegment, GoneSegment
from halp_store.generation import ORIGIN_COLUMN, Generation, Origin, read_generation
from halp_store.index import SegmentIndex
from halp_store.names import generation_name
from halp_store.places import Part, Places
from halp_store.published import PublishedGroup
from halp_store.root import Root
from halp_store.segment import parse_header
from halp_store.storage import METADATA, SEGMENTS, Storage

# Rows that are read at once from the generation before: they are many.
_BLOCK_ROWS: Final = 256


@dataclass(frozen=True)
class RowOrder:
    """generation: as it will be, of N rows. ids: N, sorted. origins: (N), along its segments: which
    one each row was committed with. dropped: rows that another row of the same id stands for;
    deleted: rows that are left out because they were. contradictions: ids whose contents differ,
    sorted.
    """

    generation: Generation
    ids: tuple[str, ...]
    sources: tuple[Part, ...]
    origins: npt.NDArray[np.int64]
    dropped: int
    deleted: int
    contradictions: tuple[str, ...]


def order_rows(
    storage: Storage,
    root: Root,
    number: int,
    base: int | None,
    segments: Sequence[str],
    deletions: Sequence[str] = (),
) -> RowOrder:
    """Of the generation `number`: those of the generation `base` and of these segments, but for
    the rows that these files below `deleted/` name.

    Raises GoneSegment if one of them is not there, ForeignSegment, or DamagedSegment.
    """
    before = read_generation(storage, base) if base else None
    if base and before is None:
        name = generation_name(base)
        raise GoneSegment(storage.where, name, None, "is missing, although it was published")
    index = SegmentIndex(storage, root, planned_deletions(storage, root, deletions))
    if before:
        index.add_generation(before)
    origins = list(before.segments) if before else []
    total = before.rows if before else 0
    for name in segments:
        document = storage.read(f"{SEGMENTS}/{name}/{METADATA}")
        try:
            header = parse_header(document) if document else None
        except ValueError as error:
            raise DamagedSegment(storage.where, name, None, str(error)) from error
        if header is None or document is None:
            what = "is missing, although it was published"
            raise GoneSegment(storage.where, name, None, what)
        attributes = header.attributes
        origins.append(
            Origin(name, attributes.get("created", ""), attributes.get("provenance", {}))
        )
        index.add(name, header)
        total += len(header.question_ids)
    ids = tuple(sorted(index))
    sources = tuple(Places.find(index, ids).parts(_BLOCK_ROWS))
    return RowOrder(
        Generation(number, len(ids), tuple(origins)),
        ids,
        sources,
        _origins(storage, root, before, origins, sources, len(ids)),
        total - index.rows_deleted - len(ids),
        index.rows_deleted,
        index.contradictions,
    )


def _origins(
    storage: Storage,
    root: Root,
    base: Generation | None,
    origins: Sequence[Origin],
    sources: Sequence[Part],
    count: int,
) -> npt.NDArray[np.int64]:
    """(N): along `origins`, which segment each row was committed with."""
    numbers = {one.name: number for number, one in enumerate(origins)}
    before = None
    if base:
        before = PublishedGroup(storage, base.name, root).read(ORIGIN_COLUMN, (base.rows,))
    column = np.empty(count, np.int64)
    for source in sources:
        if source.name in numbers:
            column[source.targets] = numbers[source.name]
        elif before is not None:
            column[source.targets] = before[source.rows]
    return column
