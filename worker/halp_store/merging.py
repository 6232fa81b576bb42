"""`merge`: the rows of several stores of one configuration, in one store.

Reads with `open_store` and writes with the ordinary writer, so the same call goes on after an
interruption: a row that is there with the same content is left alone. One id with two contents is
refused before anything is written.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from halp_store.address import storage_at
from halp_store.errors import MergeConflict, MergeRefused
from halp_store.features import FeatureBatch, RowKey
from halp_store.layout import TEXT_COLUMNS, Layout
from halp_store.reader import Store, open_store
from halp_store.root import read_root, require_same
from halp_store.storage import METADATA
from halp_store.view import View
from halp_store.writer import StoreWriter

Progress = Callable[[int, int], None]

_FLUSH_ROWS: Final = 256
"""Rows of one segment of the merged store, and what is in memory at once."""


@dataclass(frozen=True)
class Merge:
    """rows: of the merged store. added: by this call. skipped: rows that were there already, in the
    merged store or in a store before theirs."""

    rows: int
    added: int
    skipped: int


def merge(
    out: str | os.PathLike[str],
    stores: Sequence[str | os.PathLike[str]],
    progress: Progress | None = None,
) -> Merge:
    """Bring all rows of `stores` into `out`, which is made or goes on.

    progress: called with (rows done, rows there).
    Raises MergeRefused, MergeConflict, StoreMismatch naming the fields that differ, NotAStore,
    LayoutVersionError, DamagedSegment, or StoreUnavailable.
    """
    sources = [open_store(store) for store in stores]
    layout = _one_layout(out, sources)
    _check_contents([*_there(out), *sources])
    total, done, added = sum(map(len, sources)), 0, 0
    for source in sources:
        for provenance, view in _by_provenance(source):
            writer = StoreWriter.open(out, layout, worker="merge", provenance=provenance)
            for start in range(0, len(view), _FLUSH_ROWS):
                part = view[start : start + _FLUSH_ROWS]
                added += _write(writer, part)
                done += len(part)
                if progress:
                    progress(done, total)
    StoreWriter.open(out, layout, worker="merge", provenance={})  # also where there are no rows
    return Merge(len(open_store(out)), added, total - added)


def _one_layout(out: str | os.PathLike[str], sources: Sequence[Store]) -> Layout:
    """Raises MergeRefused for a store that is given twice, or StoreMismatch."""
    if not sources:
        raise MergeRefused(str(out), "no store was given")
    first = sources[0].layout
    ids = [_identity(source.path) for source in sources]
    storage = storage_at(out)
    if storage.read(METADATA) is not None:
        ids.append(_identity(out))
        require_same(storage, read_root(storage).layout, first)
    for source in sources[1:]:
        require_same(storage_at(source.path), source.layout, first)
    if len(set(ids)) != len(ids):
        raise MergeRefused(str(out), "one store was given twice, or is a copy of another")
    return first


def _identity(store: str | os.PathLike[str]) -> str:
    storage = storage_at(store)
    return read_root(storage).store_id or os.path.realpath(os.fspath(store))


def _there(out: str | os.PathLike[str]) -> list[Store]:
    return [] if storage_at(out).read(METADATA) is None else [open_store(out)]


def _check_contents(stores: Sequence[Store]) -> None:
    """Raises MergeConflict if two stores have one id with other content."""
    seen: dict[str, tuple[str, str]] = {}
    conflicts: list[str] = []
    for store in stores:
        for question_id, content in zip(store.ids, store.text("content_hash"), strict=True):
            before, where = seen.setdefault(question_id, (content, store.path))
            if before != content:
                conflicts.append(f"{question_id!r} in {where} and {store.path}")
    if conflicts:
        raise MergeConflict(stores[0].path, conflicts)


def _by_provenance(source: Store) -> Iterator[tuple[dict[str, Any], View]]:
    """The rows that were written with one provenance, which is kept with where they come from."""
    whence = {"store": source.path, "store_id": read_root(storage_at(source.path)).store_id}
    rows: defaultdict[str, list[str]] = defaultdict(list)
    origins = source.origins()
    recorded_by = source.provenances(set(origins))
    provenances = {name: json.dumps(value, sort_keys=True) for name, value in recorded_by.items()}
    for question_id, segment in zip(source.ids, origins, strict=True):
        rows[provenances[segment]].append(question_id)
    for provenance, ids in rows.items():
        recorded: Mapping[str, Any] = json.loads(provenance)
        yield {**recorded, "merged_from": whence}, source[ids]


def _write(writer: StoreWriter, part: View) -> int:
    """How many rows are new."""
    keys = map(RowKey, part.ids, part.text("content_hash"))
    new = [key.question_id for key in keys if writer.lookup(key) == "new"]
    if new:
        writer.append(_features(part[new]))
        writer.flush()
    return len(new)


def _features(view: View) -> FeatureBatch:
    layout, columns = view.layout, view.read()
    return FeatureBatch(
        layout,
        {name: tuple(columns[name].tolist()) for name in TEXT_COLUMNS},
        {name: columns[name] for name in layout.integer_columns()},
        {name: columns[name] for name in layout.vector_columns()},
        {name: columns[name] for name in layout.score_columns()},
    )
