"""`import_published`: files of the published HDF5 layout into a store, group by group.

Rows go through the same commit as a worker's, so a kill loses at most what was not committed, and
the same command again goes on: what is stored is skipped. A group that is not what the layout says
is reported and harms no other.

The published files lack much of what a store records. What they lack is listed in the store's
fingerprint as `unknown`; see `Layout.unknown`. They also do not say which model they are of:
files of two models belong in two stores, and nothing here can tell them apart.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from halp_store.exchange.export import Progress, Published
from halp_store.exchange.imported import disagreement, stored_layout, surveyed_layout, vision_column
from halp_store.exchange.published_hdf5 import (
    QUERY_TOKEN,
    VISION_TOKEN,
    BadGroup,
    PublishedReader,
    PublishedRow,
    shape_of,
)
from halp_store.features import FeatureBatch, RowKey
from halp_store.layout import Layout
from halp_store.writer import StoreWriter

UNKNOWN_FINISH: Final = "unknown"
FAILED_FINISH: Final = "failed"
"""`finish_reason` of an answer that is the published scripts' note of a failed generation."""

# What the published scripts stored as an answer when there was none.
_FAILED: Final = "[Generation failed"
# A commit: enough rows for few files, few enough for memory with all layers of a large model.
_FLUSH_ROWS: Final = 128


@dataclass(frozen=True)
class GroupProblem:
    """group: None for the whole file."""

    file: str
    group: str | None
    reason: str

    @property
    def sentence(self) -> str:
        return (
            f"{self.file}: {'' if self.group is None else f'group {self.group!r}: '}{self.reason}"
        )


@dataclass
class Import:
    """What became of the groups; grows while it runs.

    stored: rows that this call committed. present: rows that were stored before, or twice in the
    parts, with the same content. left_out: dataset or group beside the layout's -> how many
    groups had it; none of it is stored.
    """

    store: str
    stored: int = 0
    present: int = 0
    problems: list[GroupProblem] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


def import_published(
    store: str | os.PathLike[str],
    parts: Sequence[Path],
    *,
    published: Published | None = None,
    progress: Progress | None = None,
) -> Import:
    """Read every group of every part into `store`, which is new or was made by an import.

    published: which columns the two vision fields are; without it what an export of this project
    says of itself, and for other files the mean before the merger where its size is not that of
    the tokens, and the token that the published scripts took (`halp_reference`).
    Raises ImportRefused, NotAStore, LayoutVersionError, StoreMismatch, what `StoreWriter.flush`
    raises, or ImportError without h5py.
    """
    result = Import(str(store))
    wanted = published or Published()
    layout = stored_layout(store, wanted) or surveyed_layout(parts, wanted)
    if layout is None:
        for part in parts:
            result.problems += _all_problems(part)
        return result
    provenance = {"halp_stream": version("halp-stream"), "parts": [part.name for part in parts]}
    writer = StoreWriter.open(
        store, layout, worker="import", provenance=provenance, flush_rows=_FLUSH_ROWS
    )
    _Importing(writer, result, wanted, progress).run(parts)
    return result


class _Importing:
    def __init__(
        self, writer: StoreWriter, result: Import, wanted: Published, progress: Progress | None
    ) -> None:
        self._writer, self._result, self._wanted = writer, result, wanted
        self._layout, self._tell = writer.layout, progress or (lambda done, total: None)
        self._places: dict[RowKey, tuple[Path, str]] = {}  # of the buffered rows

    def run(self, parts: Sequence[Path]) -> None:
        done, total = 0, sum(map(_count, parts))
        for part in parts:
            for row in self._rows(part):
                if row is not None:
                    self._take(part, row)
                done += 1
                self._tell(done, total)
        self._flush()

    def _rows(self, part: Path) -> Iterator[PublishedRow | None]:
        """None for a group that is bad, which is in the result then."""
        try:
            with PublishedReader(part) as file:
                if said := disagreement(file.origin, self._layout, self._wanted):
                    self._problem(part, None, said)
                    return
                for name in file:
                    try:
                        row = file.read_row(name)
                        _check_shape(row, self._layout)
                    except BadGroup as error:
                        self._problem(part, _shown(name), str(error))
                        yield None
                    else:
                        yield row
        except (OSError, RuntimeError) as error:  # h5py's for damage, depending on where it is
            self._problem(part, None, f"cannot be read as HDF5 ({error})")

    def _take(self, part: Path, row: PublishedRow) -> None:
        for name in row.left_out:
            self._result.left_out[name] = self._result.left_out.get(name, 0) + 1
        features = _features(row, part.name, self._layout)
        key = features.keys[0]
        state = self._writer.lookup(key)
        if state == "conflict":
            self._conflict(part, row.question_id)
        elif state != "new":
            self._result.present += 1
        else:
            self._places[key] = (part, row.question_id)
            self._writer.append(features)
            if self._writer.rows_buffered >= _FLUSH_ROWS:
                self._flush()

    def _flush(self) -> None:
        flush = self._writer.flush()
        self._result.stored += len(flush.receipt.rows) if flush.receipt else 0
        for key in flush.conflicts:
            self._conflict(*self._places[key])
        self._places.clear()

    def _conflict(self, part: Path, question_id: str) -> None:
        self._problem(part, question_id, "its id is stored with other content, which stays")

    def _problem(self, part: Path, group: str | None, reason: str) -> None:
        self._result.problems.append(GroupProblem(str(part), group, reason))


def _check_shape(row: PublishedRow, layout: Layout) -> None:
    expected = (layout.layers, layout.hidden_size, vision_column(layout)[1])
    got = shape_of(row)
    if got is None:
        layers = ", ".join(f"{name} {sorted(one)}" for name, one in row.tokens.items())
        sizes = sorted({len(one) for some in row.tokens.values() for one in some.values()})
        raise BadGroup(f"its tokens differ in layers or size: {layers}, sizes {sizes}")
    if got != expected:
        raise BadGroup(
            "expected layers {}, tokens of {} and a vision vector of {}, ".format(*expected)
            + "got layers {}, tokens of {} and a vision vector of {}".format(*got)
        )


def _features(row: PublishedRow, file: str, layout: Layout) -> FeatureBatch:
    failed = row.texts["answer"].startswith(_FAILED)
    text = {
        "question_id": row.question_id,
        "question_text": row.texts["question"],
        "image": row.texts["image_id"],
        "image_sha256": "",
        "ground_truth": row.texts["ground_truth_answer"],
        "answer": row.texts["answer"],
        "finish_reason": FAILED_FINISH if failed else UNKNOWN_FINISH,
        "metadata": json.dumps({**row.extra, "imported_from": file}, ensure_ascii=False),
        "content_hash": _content_hash(row),
    }
    tokens = {
        name: np.stack([row.tokens[one][layer] for layer in layout.layers])[None]
        for name, one in zip(layout.positions, (VISION_TOKEN, QUERY_TOKEN), strict=True)
    }
    return FeatureBatch(
        layout,
        {name: (value,) for name, value in text.items()},
        {
            name: np.full((1, *shape), -1, np.int64)
            for name, (_, shape) in layout.integer_columns().items()
        },
        {vision_column(layout)[0]: np.asarray(row.vision, np.float32)[None], **tokens},
    )


def _content_hash(row: PublishedRow) -> str:
    """Of everything in the group but what is left out; not of the file that it is in."""
    tokens = {name: sorted(layers) for name, layers in row.tokens.items()}
    about = [row.question_id, dict(row.texts), dict(row.extra), tokens]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    vectors = [row.vision, *(row.tokens[name][n] for name in sorted(tokens) for n in tokens[name])]
    for values in vectors:
        digest.update(np.asarray(values, "<f4").tobytes())
    return digest.hexdigest()


def _all_problems(part: Path) -> Iterator[GroupProblem]:
    """Of a part without a good group."""
    try:
        with PublishedReader(part) as file:
            if not len(file):
                yield GroupProblem(str(part), None, "has no groups")
            for name in file:
                try:
                    row = file.read_row(name)
                    reason = "its tokens differ in layers or size" if not shape_of(row) else ""
                except BadGroup as error:
                    reason = str(error)
                if reason:
                    yield GroupProblem(str(part), _shown(name), reason)
    except (OSError, RuntimeError) as error:
        yield GroupProblem(str(part), None, f"cannot be read as HDF5 ({error})")


def _count(part: Path) -> int:
    try:
        with PublishedReader(part) as file:
            return len(file)
    except OSError:
        return 0


def _shown(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode(errors="backslashreplace")
