"""`Deletions`: which rows were deleted, as the immutable keys `deleted/<32 hex>.json` say.

A row is deleted if its question id is named together with the segment that it was committed with.
So a later row of the id, in another segment, counts, in whatever order things are discovered; and a
row that a generation took over stays deleted, because that knows the segment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from halp_store.errors import DamagedDeletion, GoneSegment
from halp_store.names import DELETIONS
from halp_store.root import Root
from halp_store.segment import parse_json
from halp_store.storage import Storage

MAX_BYTES: Final = 64 << 20
"""Of one key: more than 10,000 of the longest ids take."""

_NAME: Final = re.compile(r"[0-9a-f]{32}\.json")


@dataclass(frozen=True, eq=False)
class Deletions:
    """by_file: name below `deleted/` -> question id -> segments."""

    by_file: Mapping[str, Mapping[str, frozenset[str]]] = field(default_factory=dict)

    @cached_property
    def _segments(self) -> dict[str, frozenset[str]]:
        found: dict[str, frozenset[str]] = {}
        for named in self.by_file.values():
            for question_id, segments in named.items():
                found[question_id] = found.get(question_id, frozenset()) | segments
        return found

    def __contains__(self, question_id: object) -> bool:
        """Whether any row of this id was deleted."""
        return question_id in self._segments

    def covers(self, question_id: str, segment: str) -> bool:
        """Whether the row of this id that was committed with this segment is deleted."""
        return segment in self._segments.get(question_id, ())

    @property
    def names(self) -> list[str]:
        """Of the files, sorted."""
        return sorted(self.by_file)

    def ids_since(self, before: Deletions) -> set[str]:
        """The ids that files name which `before` does not have."""
        new = self.by_file.keys() - before.by_file.keys()
        return {question_id for name in new for question_id in self.by_file[name]}


def is_deletion(name: str) -> bool:
    """Whether a name below `deleted/` is one that `delete` gives."""
    return bool(_NAME.fullmatch(name))


def read_deletions(storage: Storage, root: Root, known: Deletions) -> Deletions:
    """All that there are; `known` itself if there are no others. Only new ones are read.

    Raises DamagedDeletion or ForeignSegment.
    """
    by_file = dict(known.by_file)
    for name in storage.list_names(DELETIONS):
        if name not in by_file and is_deletion(name):
            named = read_deletion(storage, root, name)
            if named is not None:
                by_file[name] = named
    return known if len(by_file) == len(known.by_file) else Deletions(by_file)


def planned_deletions(storage: Storage, root: Root, names: Iterable[str]) -> Deletions:
    """Those of these names. Raises GoneSegment if one is not there, or as `read_deletions`."""
    by_file = {}
    for name in names:
        named = read_deletion(storage, root, name) if is_deletion(name) else None
        if named is None:
            key = f"{DELETIONS}/{name}"
            raise GoneSegment(storage.where, key, None, "is missing, although it was published")
        by_file[name] = named
    return Deletions(by_file)


def read_deletion(storage: Storage, root: Root, name: str) -> Mapping[str, frozenset[str]] | None:
    """Question id -> segments; None if it is not published, yet or ever."""
    key = f"{DELETIONS}/{name}"
    document = storage.read(key)
    if not document:
        return None
    try:
        attributes, named = _parse(document)
    except ValueError as error:
        raise DamagedDeletion(storage.where, key, str(error)) from error
    root.check_stamp(storage.where, key, attributes)
    return named


def _parse(document: bytes) -> tuple[dict[str, Any], dict[str, frozenset[str]]]:
    """Raises ValueError saying what is wrong."""
    if len(document) > MAX_BYTES:
        raise ValueError(f"has {len(document):,} bytes, expected at most {MAX_BYTES:,}")
    parsed = parse_json(document)
    rows = parsed.get("rows") if isinstance(parsed, dict) else None
    if not isinstance(rows, list):
        raise ValueError("expected an object with the list `rows`, got something else")
    found: dict[str, set[str]] = {}
    for row in rows:
        match row:
            case [str(question_id), str(segment)]:
                found.setdefault(question_id, set()).add(segment)
            case _:
                raise ValueError(f"expected pairs of question id and segment, got {row!r:.80}")
    return parsed, {question_id: frozenset(segments) for question_id, segments in found.items()}
