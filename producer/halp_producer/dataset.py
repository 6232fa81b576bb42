"""`Dataset`: a JSONL or CSV file as numbered records, each a job or all that is wrong with it.

Knows formats and image roots; refuses to know Redis and the other records of the file (duplicate
ids are the ledger's). Text is kept exactly: no normalisation, no stripping.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from halp_producer.columns import Columns
from halp_producer.images import ImageRoot, is_url
from halp_producer.job import IMAGE_DATA, Job
from halp_producer.lines import LineError, Lines
from halp_producer.order import Stretch
from halp_producer.problem import DatasetError, LineProblem, shortened
from halp_producer.record import Problem, job_of, parse_json, parse_written, shown
from halp_producer.rows import Row, read_rows

_JSON_SUFFIXES: Final = (".jsonl", ".ndjson")

_MAX_SHOWN: Final = 1000
"""Characters of a field's name or a reason; a bad line may hold megabytes of what it quotes."""


class Record(NamedTuple):
    """One record and the line it starts on: a job, or problems (then `job` is None).

    size: bytes it takes in the (unzipped) file, and its image inside; about what it takes on the
        wire.
    offset: of a job's record in the (unzipped) file."""

    line: int
    job: Job | None
    problems: tuple[LineProblem, ...] = ()
    size: int = 0
    offset: int = 0


class Dataset:
    """A dataset file. Format by suffix (`.jsonl`, `.ndjson`, `.csv`, each also with `.gz`); gzip
    is recognised by its first bytes. Raises DatasetError for any other suffix.

    path: as problems shall show it.
    images: where images must be; None leaves them unchecked.
    inline_bytes: images travel inside their jobs, each of at most so many bytes; None: they stay
        where they are. Those at URLs always do.
    """

    def __init__(
        self,
        path: Path,
        columns: Columns | None = None,
        images: ImageRoot | None = None,
        *,
        inline_bytes: int | None = None,
    ) -> None:
        self.path = path
        self._columns = columns or Columns()
        self._images = images
        self._inline_bytes = inline_bytes
        self._lines: Lines | None = None
        self._bytes_read = 0
        suffix = Path(path.name.lower().removesuffix(".gz")).suffix
        if suffix not in (*_JSON_SUFFIXES, ".csv"):
            raise DatasetError(
                f"{path}: unknown format {suffix!r}; expected .jsonl, .ndjson or .csv, "
                "each also as .gz"
            )
        self._is_csv = suffix == ".csv"

    @property
    def bytes_read(self) -> int:
        """How far the current (or last) pass is, in bytes of the file on disk."""
        return self._lines.bytes_read if self._lines else self._bytes_read

    def read(self) -> Iterator[Record]:
        """One pass from the start. Raises DatasetError when the file cannot be read at all."""
        with Lines(self.path) as lines:
            self._lines = lines
            records = self._records(lines)
            try:
                yield from records if self._images is None else map(self._with_image, records)
            finally:
                self._lines, self._bytes_read = None, lines.bytes_read

    def read_again(
        self, stretches: Iterable[Stretch]
    ) -> Iterator[tuple[Stretch, Iterator[Record]]]:
        """Each stretch, the first of which starts the file, with its records: all of them are to
        be taken before the next stretch. Images are only looked at if they travel inside. Raises as
        `read`, and ScratchError."""
        with Lines(self.path) as lines:
            records = self._records(lines)
            if self._inline_bytes is not None:
                records = map(self._with_image, records)
            for stretch in stretches:
                if stretch.offset:
                    lines.seek(stretch.offset, stretch.first)
                yield stretch, _up_to(records, stretch.last)

    def _records(self, lines: Lines) -> Iterator[Record]:
        """Takes no line before it is asked for the record on it."""
        return self._csv_records(lines) if self._is_csv else self._json_records(lines)

    def _with_image(self, record: Record) -> Record:
        if record.job is None or self._images is None:
            return record
        reason = self._images.problem(record.job.image)
        if reason is not None:
            return self._bad(record.line, ("image", reason))
        if self._inline_bytes is None or is_url(record.job.image):
            return record
        try:
            data = self._images.read(record.job.image, self._inline_bytes)
        except ValueError as error:
            return self._bad(record.line, ("image", str(error)))
        # A copy that is not checked again: `read` has done it.
        job = record.job.model_copy(update={IMAGE_DATA: data})
        return record._replace(job=job, size=record.size + len(data))

    def _json_records(self, lines: Lines) -> Iterator[Record]:
        while True:
            offset = lines.offset
            try:
                raw = next(lines)
            except StopIteration:
                return
            except LineError as error:
                yield self._bad(error.line, ("record", str(error)))
            else:
                if not raw.isspace():
                    yield self._json_record(lines.number, raw, offset)

    def _json_record(self, line: int, raw: bytes, offset: int) -> Record:
        try:
            text = raw.decode("utf-8")
            columns = parse_json(text)
        except UnicodeDecodeError as error:
            return self._bad(line, ("record", f"is not UTF-8 (byte {error.start + 1} of the line)"))
        except ValueError as error:
            return self._bad(line, ("record", str(error)))
        if not isinstance(columns, dict):
            return self._bad(line, ("record", f"expected a JSON object, got {shown(columns)}"))
        job, problems = job_of(self._columns, columns, lambda: parse_written(text))
        if job is None:
            return self._bad(line, *problems)
        return Record(line, job, (), len(raw), offset)

    def _csv_records(self, lines: Lines) -> Iterator[Record]:
        rows = read_rows(lines)
        header = next(rows, None)
        if header is None:
            yield self._bad(1, ("header", "is missing: the file is empty"))
        elif problems := self._header_problems(header):
            yield self._bad(header.line, *problems)
        else:
            for row in rows:
                yield self._csv_record(header.cells, row)

    def _header_problems(self, header: Row) -> list[Problem]:
        if header.reason is not None:
            return [("header", header.reason)]
        if header.bad_cells:
            return [("header", f"column {at + 1} {reason}") for at, reason in header.bad_cells]
        counts = Counter(header.cells)
        if twice := sorted(name for name, count in counts.items() if count > 1):
            return [("header", f"{', '.join(map(repr, twice))}: one name for several columns")]
        return self._columns.missing(header.cells)

    def _csv_record(self, header: list[str], row: Row) -> Record:
        if row.reason is not None:
            return self._bad(row.line, ("record", row.reason))
        if len(row.cells) != len(header):
            reason = f"expected {len(header)} cells as in the header, got {len(row.cells)}"
            return self._bad(row.line, ("record", reason))
        if row.bad_cells:
            named = ((header[at] or f"column {at + 1}", reason) for at, reason in row.bad_cells)
            return self._bad(row.line, *named)
        columns: Mapping[str, Any] = dict(zip(header, row.cells, strict=True))
        job, problems = job_of(self._columns, columns, lambda: columns)
        if job is None:
            return self._bad(row.line, *problems)
        return Record(row.line, job, (), row.size, row.offset)

    def _bad(self, line: int, *problems: Problem) -> Record:
        return Record(
            line,
            None,
            tuple(
                LineProblem(
                    self.path, line, shortened(field, _MAX_SHOWN), shortened(reason, _MAX_SHOWN)
                )
                for field, reason in problems
            ),
        )


def _up_to(records: Iterator[Record], last: int) -> Iterator[Record]:
    """The next records, to the one on line `last`."""
    for record in records:
        yield record
        if record.line >= last:
            return
