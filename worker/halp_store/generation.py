"""`Generation`: one sorted group under `compacted/`, as `compact` writes it; which is the newest.

Numbers count from 1, and a generation covers all that those before it covered. It is published
like a segment: its zarr.json is created last and only if absent, so it is there as a whole or not
at all. A tombstone in its place means that this number was given up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from halp_store.errors import DamagedSegment, GenerationMissing, GoneSegment
from halp_store.names import generation_name, generation_number
from halp_store.segment import STAMP, group_attributes
from halp_store.storage import GENERATIONS, METADATA, SEGMENTS, Storage

SHARD_ROWS: Final = 2048
"""Of a vector column: 57 MB for five layers of 3584, a file that disks and buckets like."""
CHUNK_ROWS: Final = 64
"""What is decompressed for one row: half a millisecond a layer."""
TEXT_ROWS: Final = 1024
"""Of a column of texts, integers or scores, which has no shards."""

PLANS: Final = f"{GENERATIONS}/.plans"
"""Outside of what readers list: a plan is there before anything of its generation is, and goes when
that generation is pruned after."""

PRUNED: Final = f"{SEGMENTS}/.pruned"
"""A marker for the newest generation that segments were pruned for: rows are missing where neither
it nor a later one is there."""

ORIGIN_COLUMN: Final = "segment"
"""Integer column that generations alone have, dims (question): which of `segments` the row was
committed with."""


@dataclass(frozen=True)
class Origin:
    """A segment whose rows a generation took over. created: ISO 8601. provenance: what its worker
    recorded."""

    name: str
    created: str
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Generation:
    """number: from 1. rows: N. segments: those that it covers; `segment` counts along them.
    stamp: of the store that it was written for."""

    number: int
    rows: int
    segments: tuple[Origin, ...]
    stamp: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return generation_name(self.number)

    def origin_names(self, where: str, numbers: Iterable[int]) -> list[str]:
        """Of values of the column of origins. Raises DamagedSegment for one that cannot be."""
        names = []
        for number in numbers:
            if not 0 <= number < len(self.segments):
                what = f"expected 0 to {len(self.segments) - 1}, got {number}"
                raise DamagedSegment(where, self.name, ORIGIN_COLUMN, what)
            names.append(self.segments[number].name)
        return names


def attributes_of(generation: Generation, created: str, stamp: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes in the group's zarr.json. Inverse of `parse_generation`."""
    recorded: list[Mapping[str, Any]] = []
    segments: list[tuple[str, str, int]] = []
    for one in generation.segments:
        if one.provenance not in recorded:
            recorded.append(one.provenance)
        segments.append((one.name, one.created, recorded.index(one.provenance)))
    return {
        **stamp,
        "coordinates": "question_id",
        "generation": generation.number,
        "rows": generation.rows,
        "created": created,
        "segments": segments,
        # Each once: workers write thousands of segments with one and the same.
        "provenance": recorded,
    }


def parse_generation(document: bytes) -> Generation | None:
    """What the zarr.json of a generation says; None for a tombstone.

    Raises ValueError saying what is wrong with it.
    """
    attributes = group_attributes(document)
    if attributes is None:
        return None
    try:
        recorded = attributes["provenance"]
        segments = tuple(
            Origin(str(name), str(created), recorded[number])
            for name, created, number in attributes["segments"]
        )
        number, rows = int(attributes["generation"]), int(attributes["rows"])
        stamp = {name: attributes.get(name) for name in STAMP}
        return Generation(number, rows, segments, stamp)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ValueError(f"attributes of a generation expected ({error!r})") from error


def read_generation(storage: Storage, number: int) -> Generation | None:
    """None if there is none, not yet, or never. Raises DamagedSegment."""
    name = generation_name(number)
    document = storage.read(f"{name}/{METADATA}")
    if not document:
        return None
    try:
        found = parse_generation(document)
        if found is not None and found.number != number:
            raise ValueError(f"expected generation {number}, got {found.number}")
    except ValueError as error:
        raise DamagedSegment(storage.where, name, None, str(error)) from error
    return found


def newest_generation(storage: Storage, known: Generation | None) -> Generation | None:
    """The published generation with the highest number; `known` if there is none after it.

    Raises DamagedSegment.
    """
    lowest = known.number if known else 0
    while True:
        highest = _last_published(storage, lowest)
        for number in range(highest, lowest, -1):
            if found := read_generation(storage, number):
                return found
        # All that was seen was given up, unless it was pruned since.
        if highest == lowest or _is_published(storage, highest):
            return known


def _last_published(storage: Storage, known: int) -> int:
    """The highest number that is taken, or `known`: one that was, or 0."""
    # A listing may lag behind on object storage; a read of the next name does not.
    highest = _last_in_row(storage, known)
    # `prune` takes generations from the oldest on: as long as the known one is there, a next one
    # that is not there never was. Else those after it may be gone, too, but for the newest.
    if highest == known and not (known and _is_published(storage, known)):
        listed = (number for number in reversed(list_generations(storage)) if number > known)
        last = next((number for number in listed if _is_published(storage, number)), known)
        highest = _last_in_row(storage, last)
    return highest


def _last_in_row(storage: Storage, number: int) -> int:
    while _is_published(storage, number + 1):
        number += 1
    return number


def _is_published(storage: Storage, number: int) -> bool:
    """Or given up, by a tombstone."""
    return bool(storage.read(f"{generation_name(number)}/{METADATA}"))


def list_generations(storage: Storage) -> list[int]:
    """The numbers of all that is there, published or not, ascending."""
    names = map(generation_number, storage.list_names(GENERATIONS))
    return sorted(number for number in names if number)


def plan_key(number: int) -> str:
    """Of the plan of a generation."""
    return f"{PLANS}/{number:06d}.json"


def mark_pruned(storage: Storage, number: int) -> None:
    """From now on a store without generation `number`, or a later one, is an error."""
    storage.publish(_marker_key(number), b"{}")
    for older in _markers(storage):
        if older < number:
            storage.delete(_marker_key(older))


def last_pruned(storage: Storage) -> int:
    """The highest generation that segments were pruned for; 0 without any. It is there already, so
    ask for this before the newest generation."""
    return max(_markers(storage), default=0)


def check_pruned(storage: Storage, last: int, newest: Generation | None) -> None:
    """Raise GenerationMissing if segments were pruned for a generation after `newest`. last: what
    `last_pruned` gave before `newest` was looked for."""
    if last > (newest.number if newest else 0):
        raise GenerationMissing(storage.where, generation_name(last))


def _markers(storage: Storage) -> list[int]:
    names = (name.removesuffix(".json") for name in storage.list_names(PRUNED))
    return [number for number in map(generation_number, names) if number]


def _marker_key(number: int) -> str:
    return f"{PRUNED}/{number:06d}.json"


def check_none_is_lost(storage: Storage, newest: Generation | None) -> None:
    """Raises GoneSegment for a generation after `newest` that has lost its zarr.json.

    One that is being written has none either, but it has a plan.
    """
    known = newest.number if newest else 0
    for number in list_generations(storage):
        name = generation_name(number)
        if number <= known or storage.read(plan_key(number)) is not None:
            continue
        # Published and pruned after since it was listed? Then it has one, or there is a newer one.
        if storage.read(f"{name}/{METADATA}") or newest_generation(storage, newest) is not newest:
            continue
        raise GoneSegment(storage.where, name, None, "is missing, although it was published")
