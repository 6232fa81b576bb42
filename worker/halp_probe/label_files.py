"""The two files of a label table: `labels.csv` and `labels.json`, written whole and read strictly.

Knows their form; refuses to know where tables are and which is the newest.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from halp_probe.errors import ProbeError
from halp_probe.judging.verdict import Kind, Label, Verdict

FORMAT_VERSION: Final = 1
COLUMNS: Final = ("question_id", "label", "rule", "kind", "note")
ROWS_FILE: Final = "labels.csv"
ABOUT_FILE: Final = "labels.json"
_LARGEST_CELL: Final = 1 << 24
"""Characters; the csv module's own limit is 131,072, and an answer may be a note."""


class DamagedLabels(ProbeError):  # noqa: N818 - named for what it says
    """A table is not what was written; the message says the file and the line."""


def write_rows(path: Path, verdicts: Mapping[str, Verdict]) -> None:
    """A new file, durable. Raises OSError."""
    with path.open("x", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        # The writer quotes no carriage return, at which a reader ends a line.
        quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        rows.writerow(COLUMNS)
        for question_id, one in verdicts.items():
            cells = [question_id, one.label, one.rule, one.kind, one.note]
            (quoted if any("\r" in cell for cell in cells) else rows).writerow(cells)
        file.flush()
        os.fsync(file.fileno())


def write_about(path: Path, about: Mapping[str, Any]) -> None:
    """The file as a whole, durable. Raises OSError."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(about, file, ensure_ascii=False, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Make the names in it durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_about(folder: Path, judge: str, number: int) -> dict[str, Any]:
    """Of the table in `folder`, which should be this one. Raises DamagedLabels or OSError."""
    path = folder / ABOUT_FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedLabels(f"{path}: is missing") from None
    except (ValueError, RecursionError) as error:
        raise DamagedLabels(f"{path}: is no JSON: {error}") from error
    if not isinstance(about, dict) or about.get("format_version") != FORMAT_VERSION:
        raise DamagedLabels(f"{path}: expected an object with format_version {FORMAT_VERSION}")
    for name, expected in (("judge", judge), ("version", number)):
        if about.get(name) != expected:
            raise DamagedLabels(f"{path}: {name}: expected {expected!r}, got {about.get(name)!r}")
    if not isinstance(about.get("rows"), int) or not isinstance(about.get("labels"), dict):
        raise DamagedLabels(f"{path}: expected rows and labels, got {sorted(about)}")
    return about


def read_rows(path: Path) -> dict[str, Verdict]:
    """Question id -> verdict, in the file's order. Raises DamagedLabels or OSError."""
    found: dict[str, Verdict] = {}
    csv.field_size_limit(_LARGEST_CELL)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            if (header := next(rows, None)) != list(COLUMNS):
                raise DamagedLabels(f"{path}:1: expected {','.join(COLUMNS)}, got {header}")
            for row in rows:
                where = f"{path}:{rows.line_num}"
                if len(row) != len(COLUMNS):
                    raise DamagedLabels(f"{where}: expected {len(COLUMNS)} cells, got {len(row)}")
                question_id, label, rule, kind, note = row
                if question_id in found:
                    raise DamagedLabels(f"{where}: {question_id!r} is there twice")
                try:
                    found[question_id] = Verdict(Label(label), rule, Kind(kind), note)
                except ValueError as error:
                    raise DamagedLabels(f"{where}: {error}") from error
    except FileNotFoundError:
        raise DamagedLabels(f"{path}: is missing") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DamagedLabels(f"{path}: is no table: {error}") from error
    return found
