"""What can be wrong with a store, one class per thing a caller may want to tell apart.

Every message says what, where, expected, got, and what to do.
"""

# ruff: noqa: N818 - the names say what is wrong; another "Error" would say it twice

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from halp_store.names import DELETIONS, is_generation
from halp_store.storage import SEGMENTS

_ABSENT: Final = object()
_NAMED: Final = 5
_CONFLICTS_NAMED: Final = 20


class StoreError(Exception):
    """Something about a store that its caller has to know; the base of all others here.

    Survives being pickled: dask and torch read in processes of their own.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, self.__dict__)


class NotAStore(StoreError):
    """The path does not hold a store, or holds something else."""

    def __init__(self, where: str, found: str) -> None:
        super().__init__(
            f"{where}: not a store: expected the zarr.json of a store, found {found}; "
            "give the path that `halp-worker run --store` was given"
        )


class LayoutVersionError(StoreError):
    """The store was written with a layout that this version does not know."""

    def __init__(self, where: str, expected: int, got: object) -> None:
        self.expected, self.got = expected, got
        super().__init__(
            f"{where}: layout version: expected {expected}, got {got!r}; "
            "open it with the halp-stream release that wrote it"
        )


class StoreMismatch(StoreError):
    """The store holds rows of another model configuration.

    differences: dotted field -> (value in the store, value here); an absent one is None.
    """

    def __init__(self, where: str, stored: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        found = dict(_differences(stored, ours))
        self.differences = {
            name: (_or_none(theirs), _or_none(mine)) for name, (theirs, mine) in found.items()
        }
        lines = [
            f"  {name}: the store has {_show(theirs)}, this configuration has {_show(mine)}"
            for name, (theirs, mine) in found.items()
        ]
        super().__init__(
            "\n".join(
                [f"{where}: holds rows of another configuration; these fields differ:", *lines]
            )
            + "\nuse a new path for this configuration, or the store's own values"
        )


class DamagedSegment(StoreError):
    """A published segment, or a generation, cannot be read as it was written.

    segment: its name; `compacted/<number>` for a generation.
    """

    def __init__(self, where: str, segment: str, array: str | None, what: str) -> None:
        self.segment, self.array = segment, array
        part = f"array {array}" if array else "its zarr.json"
        if is_generation(segment):
            kind, path = "generation", segment
            instead = (
                f"or delete {path} and compact again, which takes the segments it was made of: "
                "those that were pruned have to be enqueued again (delete segments/.pruned, too)"
            )
        else:
            kind, path = "segment", _path(segment)
            instead = f"or delete {path} and enqueue its questions again"
        super().__init__(
            f"{where}: {kind} {segment}: {part}: {what}; restore {path} from a copy, {instead}"
        )


class GoneSegment(DamagedSegment):
    """Something of it is not there; a reader whose view is old looks whether it was compacted."""


class StagingTooSlow(StoreError):
    """A segment was given up because staging it took longer than its deadline.

    After the deadline a clean-up may take its files for an orphan's. The rows stay buffered.
    """

    def __init__(self, where: str, segment: str, deadline_seconds: float, took: float) -> None:
        super().__init__(
            f"{where}: segment {segment}: staging took {took:.1f} s, expected at most "
            f"{deadline_seconds:g} s: it was not published and its rows stay buffered; "
            "look for a slow disk, or flush fewer rows at a time"
        )


class PublishFailed(StoreError):
    """No segment could be published in a bounded number of tries. The rows stay buffered."""

    def __init__(self, where: str, tries: int) -> None:
        super().__init__(
            f"{where}: expected a segment to be published, got {tries} refusals in a row: each "
            "name was already taken or fenced by a clean-up; the rows stay buffered; "
            "check that no clean-up with a far too short grace time is running on this store"
        )


class CompactionFailed(StoreError):
    """Nothing was compacted, and nothing was changed that a reader sees."""

    def __init__(self, where: str, tries: int) -> None:
        super().__init__(
            f"{where}: expected a generation to be published, but {tries} plans in a row lost "
            "their segments; check that nobody deletes segments meanwhile, and compact again"
        )


class NoRoom(StoreError):
    """The scratch disk is too small; sizes in bytes."""

    def __init__(self, where: str, scratch: object, needed: int, free: int) -> None:
        super().__init__(
            f"{where}: sorting its largest column takes {needed / 1e9:.1f} GB in {scratch}, which "
            f"has {free / 1e9:.1f} GB; give a folder on another disk with --scratch"
        )


class PruneRefused(StoreError):
    """The newest generation is not whole, so what it stands for is kept."""

    def __init__(
        self, where: str, generation: str, problems: int, first: str, is_damaged: bool = True
    ) -> None:
        remedy = (
            f"delete {generation} and compact again"
            if is_damaged
            else "see to the disk and prune again"
        )
        super().__init__(
            f"{where}: {generation} has {problems} problems, so nothing was removed: {remedy}; "
            f"the first problem: {first}"
        )


class CopyRefused(StoreError):
    """A copy cannot go there; nothing of what was there is changed."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(
            f"{where}: cannot become a copy: {what}; give a new path, or the one of an earlier "
            "copy of this store that nobody has written to"
        )


class MergeConflict(StoreError):
    """Stores have different rows for the same questions; nothing was written.

    ids: all of them.
    """

    def __init__(self, where: str, conflicts: Sequence[tuple[str, str, str]]) -> None:
        self.ids = tuple(question_id for question_id, _, _ in conflicts)
        named = [f"{name!r} in {a} and {b}" for name, a, b in conflicts[:_CONFLICTS_NAMED]]
        if more := len(conflicts) - len(named):
            named.append(f"and {more:,} more")
        super().__init__(
            f"{where}: cannot merge: {len(conflicts):,} questions have other content in two "
            f"stores: {', '.join(named)}; delete each in one of both with halp-store delete, and "
            "merge again"
        )


class GenerationMissing(DamagedSegment):
    """Segments were pruned for a generation that is not there: rows are missing."""

    def __init__(self, where: str, generation: str) -> None:
        self.segment, self.array = generation, None
        StoreError.__init__(
            self,
            f"{where}: {generation} is missing, and segments were removed because it has their "
            f"rows; restore {generation}, or make the copy again with `halp-store copy` if this is "
            "one. If it is lost for good: delete segments/.pruned, enqueue its questions again",
        )


class DamagedDeletion(DamagedSegment):
    """A file below `deleted/` cannot be read, so nobody can say which rows were deleted."""

    def __init__(self, where: str, path: str, what: str) -> None:
        self.segment, self.array = path, None
        StoreError.__init__(
            self,
            f"{where}: {path} is damaged, so which rows were deleted is unknown: {what}; restore "
            "it from a copy, or move it out of the store: the rows that it named are back then, "
            "and can be deleted again",
        )


class ForeignSegment(DamagedSegment):
    """A segment or generation below this root was written for another store or configuration."""

    def __init__(self, where: str, segment: str, what: str) -> None:
        self.segment, self.array = segment, None
        kind, path = "segment", _path(segment)
        if is_generation(segment):
            kind, path = "generation", segment
        elif segment.startswith(f"{DELETIONS}/"):
            kind, path = "deletion", segment
        StoreError.__init__(
            self,
            f"{where}: {kind} {segment} does not belong to this store: {what}; move {path} out of "
            "this store; `halp-store merge` brings the rows of stores together",
        )


class StoreGone(StoreError):
    """The root that was opened is not at its path any more: unmounted, moved, deleted, or another
    store is there now. Nothing was acknowledged since."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(
            f"{where}: the store that was opened is not there any more: {what}; mount or move it "
            "back and start again"
        )


class StoreUnavailable(StoreError, OSError):
    """The disk or the bucket does not do what is asked of it now; the same call may work later.

    errno: that of the operating system, or None.
    """

    def __init__(self, where: str, doing: str, error: OSError, remedy: str) -> None:
        reason = error.strerror or str(error) or type(error).__name__
        super().__init__(f"{where}: cannot {doing}: {reason}; {remedy}")
        self.errno = error.errno

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, {**self.__dict__, "errno": self.errno})


class LinkInStore(StoreError):
    """Below the root there is a symbolic link, or something else that is no regular file."""

    def __init__(self, where: str, path: str, kind: str = "a symbolic link") -> None:
        self.path = path
        super().__init__(
            f"{where}: {path} is {kind}, and nothing below a store is opened, written or deleted "
            "through one: put the files themselves in its place"
        )


class UnknownQuestion(StoreError, KeyError):
    """The store, as of its last refresh, has no row with this id."""

    def __init__(self, where: str, question_id: str, rows: int, near: list[str]) -> None:
        hint = f"; similar ids: {', '.join(near)}" if near else ""
        self._text = (
            f"{where}: no row for question id {question_id!r} among {rows} rows{hint}; "
            "refresh() shows rows that were committed since"
        )
        super().__init__(self._text)

    def __str__(self) -> str:  # KeyError's would be the repr
        return self._text


class DeletedQuestion(UnknownQuestion):
    """The row was deleted, and no other of its id was stored since."""

    def __init__(self, where: str, question_id: str) -> None:
        StoreError.__init__(
            self,
            f"{where}: question {question_id!r} was deleted with halp-store delete; enqueue it "
            "again, under a new --run, to have it extracted again",
        )
        self._text = self.args[0]


class NothingDeleted(StoreError):
    """Ids that were to be deleted are not in the store, so none was."""

    def __init__(self, where: str, unknown: Sequence[str], asked: int) -> None:
        self.unknown = tuple(unknown)
        more = ", ..." if len(unknown) > _NAMED else ""
        named = ", ".join(map(repr, unknown[:_NAMED]))
        super().__init__(
            f"{where}: nothing was deleted: {len(unknown):,} of {asked:,} ids are not in the "
            f"store: {named}{more}; leave these out, or give the path of another store"
        )


def _path(segment: str) -> str:
    return f"{SEGMENTS}/{segment}"


def _again(kind: type[StoreError], args: tuple[Any, ...], fields: Mapping[str, Any]) -> StoreError:
    error = kind.__new__(kind, *args)
    error.args = args  # an OSError's are set by its `__init__`
    for name, value in fields.items():
        setattr(error, name, value)
    return error


def _differences(
    stored: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, tuple[object, object]]]:
    found: list[tuple[str, tuple[object, object]]] = []
    for name in sorted({*stored, *ours}):
        theirs, mine = stored.get(name, _ABSENT), ours.get(name, _ABSENT)
        if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
            found += _differences(theirs, mine, f"{prefix}{name}.")
        elif theirs != mine:
            found.append((f"{prefix}{name}", (theirs, mine)))
    return found


def _or_none(value: object) -> object:
    return None if value is _ABSENT else value


def _show(value: object) -> str:
    return "nothing" if value is _ABSENT else repr(value)
