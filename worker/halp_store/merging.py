"""`merge_stores`: brings the rows of stores of one configuration together in one.

All ids are compared before anything is written. Rows go through the ordinary writer, grouped by
the provenance that they were committed with; those that are there already are skipped, so the same
call resumes.

Memory: about 300 bytes a row, and a window of rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import numpy as np

from halp_store.errors import GoneSegment, MergeConflict, StoreMismatch
from halp_store.features import FeatureBatch, RowKey
from halp_store.generation import newest_generation
from halp_store.layout import TEXT_COLUMNS, Layout
from halp_store.reader import Store, open_store
from halp_store.root import Root, read_root
from halp_store.segment import group_attributes
from halp_store.storage import METADATA, SEGMENTS, Storage
from halp_store.view import View
from halp_store.writer import StoreWriter

_WINDOW_BYTES: Final = 32 << 20
_WINDOW_ROWS: Final = 256

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Merge:
    """rows: of the store that was merged into. added: by this call. skipped: rows of the others
    that were there already, or that several of them have."""

    rows: int
    added: int
    skipped: int


def merge_stores(
    out: Storage, sources: Sequence[Storage], *, progress: Progress | None = None
) -> Merge:
    """Bring all rows of `sources` into `out`, which is made if it is not there.

    progress: is told (rows looked at, rows there).
    Raises StoreMismatch, or MergeConflict for ids with other content, before anything is written;
    NotAStore, LayoutVersionError, DamagedSegment, ForeignSegment, StoreUnavailable.
    """
    if not sources:
        raise ValueError("sources: expected at least one store")
    roots = [read_root(one) for one in sources]
    layout = roots[0].layout
    stores = [open_store(one.where, storage=one) for one in sources]
    present = [open_store(out.where, storage=out)] if out.read(METADATA) is not None else []
    for store in [*present, *stores]:
        if store.layout != layout:
            raise StoreMismatch(store.path, store.layout.to_json(), layout.to_json())
    _refuse_conflicts(out.where, [*present, *stores])
    total, done, added = sum(map(len, stores)), 0, 0
    for root, storage, store in zip(roots, sources, stores, strict=True):
        view = store[:]
        for provenance, rows in _by_provenance(storage, root, view):
            worker = str(provenance.get("worker") or "merge")
            writer = _writer(out, layout, worker, provenance)
            for start in range(0, len(rows), (step := _step(layout))):
                some = rows[start : start + step]
                added += _add(writer, view, some)
                done += len(some)
                if progress:
                    progress(done, total)
    if not total:
        _writer(out, layout, "merge", {})
    return Merge(len(open_store(out.where, storage=out)), added, total - added)


def _writer(
    out: Storage, layout: Layout, worker: str, provenance: Mapping[str, Any]
) -> StoreWriter:
    return StoreWriter.open(out.where, layout, worker=worker, provenance=provenance, storage=out)


def _refuse_conflicts(where: str, stores: Sequence[Store]) -> None:
    """Raises MergeConflict."""
    first: dict[str, tuple[bytes, str]] = {}
    conflicts: dict[str, tuple[str, str, str]] = {}
    for store in stores:
        for question_id, content in zip(store.ids, store.text("content_hash"), strict=True):
            digest = blake2b(content.encode(), digest_size=16).digest()
            other, path = first.setdefault(question_id, (digest, store.path))
            if other != digest:
                conflicts.setdefault(question_id, (question_id, path, store.path))
    if conflicts:
        raise MergeConflict(where, [conflicts[one] for one in sorted(conflicts)])


def _add(writer: StoreWriter, view: View, rows: Sequence[int]) -> int:
    """How many of these rows were not there."""
    some = view[[view.ids[row] for row in rows]]
    keys = map(RowKey, some.ids, some.text("content_hash"))
    new = [key.question_id for key in keys if writer.lookup(key) != "stored"]
    if not new:
        return 0
    features = _features(view.layout, some[new].read())
    writer.append(features)
    flushed = writer.flush()
    if flushed.conflicts:  # somebody else writes there
        where = str(view.path)
        raise MergeConflict(where, [(key.question_id, where, "OUT") for key in flushed.conflicts])
    return len(new)


def _features(layout: Layout, columns: Mapping[str, Any]) -> FeatureBatch:
    return FeatureBatch(
        layout,
        {name: tuple(columns[name].tolist()) for name in TEXT_COLUMNS},
        {name: columns[name] for name in layout.integer_columns()},
        {name: columns[name] for name in layout.vector_columns()},
        {name: columns[name] for name in layout.scores},
    )


def _step(layout: Layout) -> int:
    shapes = (shape for _, shape in layout.vector_columns().values())
    row_bytes = sum(np.float32().nbytes * math.prod(shape) for shape in shapes)
    return max(1, min(_WINDOW_ROWS, _WINDOW_BYTES // max(1, row_bytes)))


def _by_provenance(
    storage: Storage, root: Root, view: View
) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """(what their worker recorded, and where the rows come from; rows) of all rows."""
    origins = view.origins()
    provenances = _provenances(storage, set(origins))
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(origins):
        groups.setdefault(provenances[name], []).append(row)
    origin = {"store_id": root.store_id, "path": storage.where}
    for text, rows in groups.items():
        yield {**json.loads(text), "merged_from": origin}, rows


def _provenances(storage: Storage, names: set[str]) -> dict[str, str]:
    """Segment -> what its worker recorded, as JSON."""
    found: dict[str, str] = {}
    for name in names:
        document = storage.read(f"{SEGMENTS}/{name}/{METADATA}")
        attributes = group_attributes(document) if document else None
        if attributes is not None:
            found[name] = json.dumps(attributes.get("provenance", {}), sort_keys=True)
    # After the segments: those that were pruned are in it.
    if missing := names - found.keys():
        newest = newest_generation(storage, None)
        for one in newest.segments if newest else ():
            if one.name in missing:
                found[one.name] = json.dumps(dict(one.provenance), sort_keys=True)
    for name in names - found.keys():
        what = "is missing, although it was published"
        raise GoneSegment(storage.where, name, None, what)
    return found
