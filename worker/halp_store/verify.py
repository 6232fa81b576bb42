"""`verify_store`: whether a store holds what it says, whole, and what it is expected to hold.

Reads every published segment, one array at a time, and compares the ids with lists that it is
given. Refuses to know where the lists come from: a data set, a server. Changes nothing.

Not checked: whether the numbers are those of the model; that takes a GPU and the images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping

from halp_store.address import storage_at
from halp_store.errors import DamagedSegment
from halp_store.features import RowKey
from halp_store.index import SegmentIndex
from halp_store.inspection import damage, inspect_segment
from halp_store.names import prefix_of
from halp_store.root import read_root
from halp_store.segment import Header, parse_header
from halp_store.storage import METADATA, SEGMENTS, Storage
from halp_store.verification import Counts, Note, NoteKind, Problem, ProblemKind, Verification


def verify_store(
    storage_or_path: Storage | str | os.PathLike[str],
    *,
    expected: Mapping[str, str] | None = None,
    failed: Mapping[str, str] | None = None,
    queued: Collection[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Read everything that is published, and say all that is wrong with it.

    expected: question id -> content hash, "" if that is unknown; nothing is missing without it.
    failed: question id -> reason. queued: question ids. Both are read before this is called, or
        a question that is finished meanwhile looks missing. None: nobody asked a server.
    progress: is told (segments read, segments there).
    Memory: one array of one segment, and about 150 bytes a row.
    Raises NotAStore or LayoutVersionError; all else that is wrong is in the answer.
    """
    place = storage_or_path
    storage = storage_at(place) if isinstance(place, str | os.PathLike) else place
    verifier = _Verifier(storage, expected)
    names = sorted(storage.list_names(SEGMENTS))
    for done, name in enumerate(names):
        if progress:
            progress(done, len(names))
        verifier.take(name)
    if progress:
        progress(len(names), len(names))
    return verifier.answer(failed, queued)


class _Verifier:
    """Takes segments in order of their names, so that the first row of an id is the one that
    readers see."""

    def __init__(self, storage: Storage, expected: Mapping[str, str] | None) -> None:
        self._storage, self._where, self._expected = storage, storage.where, expected
        self._layout = read_root(storage)
        self._index = SegmentIndex(storage)  # of what was taken; never refreshed
        self._rows = 0
        self._problems: list[Problem] = []
        self._notes: list[Note] = []

    def take(self, name: str) -> None:
        try:
            document = self._storage.read(f"{SEGMENTS}/{name}/{METADATA}")
            header = parse_header(document) if document else None
        except (ValueError, OSError) as error:
            # Of one that is not JSON, or that the disk does not give.
            self._problems.append(damage(DamagedSegment(self._where, name, None, str(error))))
            return
        if header is None:
            self._notes += self._leftover(name, is_fenced=bool(document))
            return
        self._problems += inspect_segment(self._storage, self._layout, name, header)
        self._compare(name, header)
        self._index.add(name, header)
        self._rows += len(header.question_ids)

    def answer(
        self, failed: Mapping[str, str] | None, queued: Collection[str] | None
    ) -> Verification:
        problems, notes = list(self._problems), list(self._notes)
        if self._expected is None:
            counts = Counts(stored=len(self._index))
        else:
            counts = self._reconcile(self._expected, failed, queued, problems, notes)
        segments = len(self._index.segments)
        return Verification(self._rows, segments, tuple(problems), tuple(notes), counts)

    def _leftover(self, name: str, is_fenced: bool) -> Iterator[Note]:
        root = f"{SEGMENTS}/{name}"
        if prefix_of(name) is None:
            yield Note(
                NoteKind.STRAY,
                f"{self._where}: {root}: not a segment, and nothing that a worker wrote: ignored",
                segment=name,
            )
        elif not is_fenced:
            age = self._storage.age_seconds(root)
            # Published or removed since it was looked at: nothing to say.
            if age is not None and not self._storage.read(f"{root}/{METADATA}"):
                yield Note(
                    NoteKind.UNPUBLISHED,
                    f"{self._where}: segment {name}: changed {age:,.0f} s ago and not published: "
                    "a worker is writing it, or died over it; no reader looks at it, --repair "
                    "removes it when it is older than the grace",
                    segment=name,
                )
        elif left := len(self._storage.list_keys(root)) - 1:
            yield Note(
                NoteKind.FENCED,
                f"{self._where}: segment {name}: fenced, so it will never be published, and "
                f"still has {left} files; no reader looks at it, --repair removes them",
                segment=name,
            )

    def _compare(self, name: str, header: Header) -> None:
        """With the expected contents, and with the segments before this one."""
        here: dict[str, str] = {}
        for question_id, content in zip(header.question_ids, header.content_hashes, strict=True):
            if question_id in here:
                same = here[question_id] == content
                self._problems.append(self._duplicate(question_id, name, name, same))
                continue
            here[question_id] = content
            if place := self._index.find(question_id):
                same = self._index.state(RowKey(question_id, content)) == "stored"
                self._problems.append(self._duplicate(question_id, place.segment, name, same))
            elif self._expected is not None:
                self._compare_content(question_id, content, name)

    def _compare_content(self, question_id: str, content: str, name: str) -> None:
        wanted = (self._expected or {}).get(question_id)
        if wanted is None:
            self._notes.append(
                Note(
                    NoteKind.UNEXPECTED,
                    f"{self._where}: question {question_id!r} is stored and not expected",
                    question_id,
                    name,
                )
            )
        elif wanted and wanted != content:
            self._problems.append(
                Problem(
                    ProblemKind.CONTENT,
                    f"{self._where}: segment {name}: question {question_id!r} has content "
                    f"{content}, expected {wanted}: its text, truth, image name or metadata was "
                    "changed; give the data set that this store was made from, or run the changed "
                    "one into a new store",
                    question_id,
                    name,
                )
            )

    def _duplicate(self, question_id: str, first: str, second: str, same: bool) -> Problem:
        places = f"segments {first} and {second}"
        if first == second:
            places = f"segment {first} twice"
        seen = f"readers take the {'first' if first == second else 'one of ' + first}"
        if same:
            what = f"with the same content; {seen}, so nothing is lost and nothing need be done"
        else:
            what = (
                f"with other content; {seen}; if that is the wrong one, delete segments/{first} "
                "and enqueue its questions again"
            )
        return Problem(
            ProblemKind.DUPLICATE,
            f"{self._where}: question {question_id!r} is stored in {places}, {what}",
            question_id,
            second,
        )

    def _reconcile(
        self,
        expected: Mapping[str, str],
        failed: Mapping[str, str] | None,
        queued: Collection[str] | None,
        problems: list[Problem],
        notes: list[Note],
    ) -> Counts:
        asked = failed is not None or queued is not None
        failed, queued = failed or {}, queued or ()
        stored = lost = waiting = 0
        missing: list[str] = []
        for question_id in expected:
            if question_id in self._index:
                stored += 1
                if question_id in failed:
                    notes.append(_failed_but_stored(question_id, failed[question_id]))
            elif question_id in failed:
                lost += 1
                if not failed[question_id]:
                    problems.append(_unexplained(question_id))
            elif question_id in queued:
                waiting += 1
            else:
                missing.append(question_id)
        problems += [self._missing(question_id, asked) for question_id in missing]
        return Counts(stored, lost, waiting, len(missing))

    def _missing(self, question_id: str, asked: bool) -> Problem:
        what = (
            "is neither stored nor failed nor queued; enqueue the data set again, under a new "
            "--run if this run counts the question as done"
            if asked
            else "is not stored; pass --run to see whether it failed or is queued"
        )
        return Problem(
            ProblemKind.MISSING, f"{self._where}: question {question_id!r} {what}", question_id
        )


def _failed_but_stored(question_id: str, reason: str) -> Note:
    return Note(
        NoteKind.FAILED_BUT_STORED,
        f"question {question_id!r} is stored, and among the failed of the run ({reason})",
        question_id,
    )


def _unexplained(question_id: str) -> Problem:
    return Problem(
        ProblemKind.UNEXPLAINED,
        f"question {question_id!r} is among the failed of the run, without a reason; look at it "
        "with halp-producer failed, and enqueue it again",
        question_id,
    )
