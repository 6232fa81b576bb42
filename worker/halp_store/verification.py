"""`Verification`: what was found in a store. Frozen values; nothing here reads anything."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ProblemKind(StrEnum):
    """What is wrong; the order in which a person wants to hear of it."""

    DATASET = "dataset"
    """A line of the data set is bad, so its question is unknown."""
    DAMAGED = "damaged"
    """Bytes are missing or are not what was written."""
    UNREADABLE = "unreadable"
    """The disk or the bucket does not give it now; it may be whole."""
    FOREIGN = "foreign"
    """A segment or generation that was written for another store or configuration."""
    LINK = "link"
    """A symbolic link, or something else that is no regular file, below the root."""
    IDENTITY = "identity"
    """The columns name other questions or contents than the segment's zarr.json."""
    LAYERS = "layers"
    """The layer coordinate is not the store's."""
    NOT_FINITE = "not-finite"
    """A vector holds a NaN or an infinity, or a score an infinity."""
    NUMBERS = "numbers"
    """A count, position or grid that cannot be."""
    METADATA = "metadata"
    """The metadata of a row is not a JSON object."""
    DUPLICATE = "duplicate"
    """A question is stored twice."""
    CONTENT = "content"
    """A question is stored with other content than expected."""
    MISSING = "missing"
    """An expected question is neither stored nor failed nor queued."""
    UNEXPLAINED = "unexplained"
    """An expected question failed without a reason."""


class NoteKind(StrEnum):
    """What is worth knowing and not wrong."""

    UNPUBLISHED = "unpublished"
    """A segment that is being written, or that nobody will publish."""
    FENCED = "fenced"
    """A segment or generation that can never be published and still takes up room."""
    COMPACTING = "compacting"
    """A generation that is being written, or that a compaction died over."""
    COVERED = "covered"
    """Segments and generations that a newer generation stands for and that still take up room."""
    STRAY = "stray"
    """Something among the segments or generations that nobody of ours wrote."""
    UNEXPECTED = "unexpected"
    """A question that is stored and not expected."""
    FAILED_BUT_STORED = "failed-but-stored"
    """A question that failed on the server and is stored all the same."""


@dataclass(frozen=True)
class Problem:
    """sentence: what, where, expected, got, and what to do. The others are None where the problem
    is not of one question, segment or array. segment: its name, or `compacted/<number>`."""

    kind: ProblemKind
    sentence: str
    question_id: str | None = None
    segment: str | None = None
    array: str | None = None


@dataclass(frozen=True)
class Note:
    """As `Problem`, but nothing has to be done."""

    kind: NoteKind
    sentence: str
    question_id: str | None = None
    segment: str | None = None


@dataclass(frozen=True)
class Counts:
    """Where the expected questions are, each in one place; without expected ones, `stored` counts
    all that are stored and the others are 0."""

    stored: int = 0
    failed: int = 0
    queued: int = 0
    missing: int = 0


@dataclass(frozen=True)
class Verification:
    """rows: of the generation and of the segments. segments: that the generation does not cover,
    published and with a zarr.json that can be read. generation: `compacted/<number>` of the newest
    that can be read, or None. All of them were read whole. problems, notes: all that were found,
    the generation first, then segments in order of their names. deleted: how many of `rows` were
    deleted, so that no reader shows them."""

    rows: int
    segments: int
    generation: str | None
    problems: tuple[Problem, ...]
    notes: tuple[Note, ...]
    counts: Counts
    deleted: int = 0

    @property
    def ok(self) -> bool:
        """No problems."""
        return not self.problems
