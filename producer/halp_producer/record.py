"""One record's columns as a job, or everything that is wrong with them.

Knows the types a dataset may use for a field and JSON as strictly as a dataset needs it; refuses
to know files and lines.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from halp_producer.columns import Columns
from halp_producer.job import MISSING, Job, JobFormatError, parse

Problem = tuple[str, str]
"""(field, reason)"""


class _Written(str):
    """A JSON number exactly as it is written in the file."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the key {twice!r} is there twice in one object")
    return record


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_read: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant).decode
_read_written: Final = json.JSONDecoder(parse_float=_Written, parse_int=_Written).decode


def parse_json(text: str) -> Any:
    """The value in `text`. Raises ValueError with a reason that reads after `field: `."""
    try:
        return _read(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def parse_written(text: str) -> dict[str, Any]:
    """The object in `text`, known to be one, with each number as the text it is written in."""
    record: dict[str, Any] = _read_written(text)
    return record


def job_of(
    columns: Columns, record: Mapping[str, Any], written: Callable[[], Mapping[str, Any]]
) -> tuple[Job | None, list[Problem]]:
    """The job in a record and no problems, or None and all problems. `written()` is the same
    record as `parse_written` reads it; it is asked for only where a truth is a number."""
    fields, rest = columns.split(record)
    problems: list[Problem] = []
    if type(fields.get("question_id")) is not str:
        _identify(fields, problems)
    if type(fields.get("ground_truth")) is not str:
        _keep_written(fields, problems, lambda: columns.split(written())[0])
    if rest or "metadata" in fields:
        _merge(fields, rest, problems)
    try:
        job = parse(fields)
    except JobFormatError as error:
        named = {field for field, _ in problems}
        problems += [
            (field, f"is missing ({columns.looked_for(field)})" if reason == MISSING else reason)
            for field, reason in error.problems
            if field not in named
        ]
        return None, problems
    return (None, problems) if problems else (job, problems)


def _identify(fields: dict[str, Any], problems: list[Problem]) -> None:
    """An integer id becomes its text."""
    match fields.get("question_id"):
        case None | str():
            pass
        case int() as number if not isinstance(number, bool):
            fields["question_id"] = str(number)
        case other:
            del fields["question_id"]
            problems.append(("question_id", f"expected text or an integer, got {shown(other)}"))


def _keep_written(
    fields: dict[str, Any],
    problems: list[Problem],
    written: Callable[[], Mapping[str, Any]],
) -> None:
    """A truth that is a number or a boolean becomes its JSON text: 1.50 stays `1.50`."""
    match fields.get("ground_truth"):
        case None | str():
            pass
        case bool() as truth:
            fields["ground_truth"] = "true" if truth else "false"
        case int() | float() as number:
            try:
                fields["ground_truth"] = str(written()["ground_truth"])
            except RecursionError:  # we are some calls deeper than when it was read first
                fields["ground_truth"] = str(number)  # never used: so deep a record is refused
        case other:
            del fields["ground_truth"]
            problems.append(("ground_truth", f"expected text or a number, got {shown(other)}"))


def _merge(fields: dict[str, Any], rest: dict[str, Any], problems: list[Problem]) -> None:
    """The metadata object (in CSV: JSON in a cell) and the columns that no field took, as one."""
    metadata = fields.pop("metadata", {})
    if isinstance(metadata, str):
        try:
            metadata = parse_json(metadata) if metadata.strip() else {}
        except ValueError as error:
            problems.append(("metadata", str(error)))
            return
    if not isinstance(metadata, dict):
        problems.append(("metadata", f"expected a JSON object, got {shown(metadata)}"))
        return
    if both := sorted(metadata.keys() & rest.keys()):
        names = ", ".join(repr(name) for name in both)
        problems.append(("metadata", f"{names}: both in the metadata object and a column"))
        return
    fields["metadata"] = {**rest, **metadata}


def shown(value: Any) -> str:
    """A JSON value as a reason names it."""
    match value:
        case None:
            return "null"
        case dict():
            return "an object"
        case list():
            return "an array"
        case _:
            text = json.dumps(value)
            return text if len(text) <= 40 else f"{text[:40]}..."
