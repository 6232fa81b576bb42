"""`verify_store`: whether a store holds what it says, whole, and what it is expected to hold.

Reads the newest generation and every published segment that it does not cover, and compares the ids
with lists that it is given. Refuses to know where the lists come from: a data set, a server.
Changes nothing.

Not checked: whether the numbers are those of the model; that takes a GPU and the images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping

from halp_store.address import storage_at
from halp_store.deletions import Deletions, is_deletion, read_deletion
from halp_store.errors import DamagedSegment, ForeignSegment, LinkInStore
from halp_store.features import RowKey
from halp_store.generation import (
    Generation,
    check_pruned,
    last_pruned,
    list_generations,
    newest_generation,
    plan_key,
    read_generation,
)
from halp_store.index import SegmentIndex
from halp_store.inspection import (
    inspect_generation,
    inspect_segment,
    is_given_up,
    stray_keys,
    unreadable,
)
from halp_store.names import DELETIONS, generation_name, generation_number, is_generation, prefix_of
from halp_store.published import PublishedGroup
from halp_store.root import Root, read_root
from halp_store.segment import Header, parse_header
from halp_store.storage import GENERATIONS, METADATA, SEGMENTS, Storage
from halp_store.verification import Counts, Note, NoteKind, Problem, ProblemKind, Verification

Progress = Callable[[int, int], None]


def verify_store(
    storage_or_path: Storage | str | os.PathLike[str],
    *,
    expected: Mapping[str, str] | None = None,
    failed: Mapping[str, str] | None = None,
    queued: Collection[str] | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Read everything that is published, and say all that is wrong with it.

    expected: question id -> content hash, "" if that is unknown; nothing is missing without it.
    failed: question id -> reason. queued: question ids. Both are read before this is called, or
        a question that is finished meanwhile looks missing. None: nobody asked a server.
    progress: is told (parts of the generation read, parts there), then (segments read, segments
        there).
    Memory: one array of one segment, a few chunks of the generation for each of the storage's
        threads, and about 300 bytes a row.
    Raises NotAStore or LayoutVersionError; all else that is wrong is in the answer.
    """
    place = storage_or_path
    storage = storage_at(place) if isinstance(place, str | os.PathLike) else place
    root = read_root(storage)
    while True:
        verifier = _Verifier(storage, root, expected)
        verifier.read(progress or (lambda done, total: None))
        # What is gone may have been compacted and pruned meanwhile. Then this begins anew.
        if not verifier.is_outdated():
            return verifier.answer(failed, queued)


class _Verifier:
    """Takes the generation first, then segments in order of their names, so that the first row of
    an id is the one that readers see."""

    def __init__(self, storage: Storage, root: Root, expected: Mapping[str, str] | None) -> None:
        self._storage, self._where, self._expected = storage, storage.where, expected
        self._root = root
        self._rows = 0
        self._notes: list[Note] = []
        self._is_missing_something = False
        # In this order: what is covered by a generation that comes later is not covered by this.
        self._names = sorted(storage.list_names(SEGMENTS))
        self._generation, self._problems = _newest_readable(storage)
        self._deletions, damaged = _readable_deletions(storage, root)
        self._problems += damaged
        self._problems += _links(storage)
        # Of what was taken; never refreshed.
        self._index = SegmentIndex(storage, root, self._deletions)
        covered = self._generation.segments if self._generation else ()
        self._covered = {one.name for one in covered}

    def read(self, progress: Progress) -> None:
        if self._generation:
            self._take_generation(self._generation, progress)
        self._look_at_other_generations()
        names = [name for name in self._names if name not in self._covered]
        for done, name in enumerate(names):
            progress(done, len(names))
            self._take(name)
        progress(len(names), len(names))

    def is_outdated(self) -> bool:
        """Whether what looks wrong may be explained by a generation that was published since."""
        if not (self._problems or self._is_missing_something):
            return False
        found, _ = _newest_readable(self._storage)
        number = self._generation.number if self._generation else 0
        return found is not None and found.number > number

    def answer(
        self, failed: Mapping[str, str] | None, queued: Collection[str] | None
    ) -> Verification:
        # A link is met again by whatever reads through it.
        problems, notes = list(dict.fromkeys(self._problems)), list(self._notes)
        if self._expected is None:
            counts = Counts(stored=len(self._index))
        else:
            counts = self._reconcile(self._expected, failed, queued, problems, notes)
        segments = len(self._index.segments)
        generation = self._generation.name if self._generation else None
        return Verification(
            self._rows,
            segments,
            generation,
            tuple(problems),
            tuple(notes),
            counts,
            self._index.rows_deleted,
        )

    def _take_generation(self, generation: Generation, progress: Progress) -> None:
        self._problems += inspect_generation(
            self._storage, self._root, generation, progress, self._deletions
        )
        self._rows += generation.rows
        try:
            self._index.add_generation(generation)
            if self._expected is not None:
                group = PublishedGroup(self._storage, generation.name, self._root)
                shape = (generation.rows,)
                names = ("question_id", "content_hash")
                columns = [group.read(one, shape).tolist() for one in names]
                for question_id, content in zip(*columns, strict=True):
                    if question_id not in self._index:
                        continue  # deleted
                    self._compare_content(question_id, content, generation.name)
            strays = stray_keys(self._storage, self._root, generation)
        except (DamagedSegment, LinkInStore, OSError) as error:
            # Mostly known already.
            found = unreadable(self._where, generation.name, None, error)
            if found.sentence not in {one.sentence for one in self._problems}:
                self._problems.append(found)
        else:
            self._notes += [self._stray(key, generation.name) for key in strays]

    def _look_at_other_generations(self) -> None:
        newest = self._generation.number if self._generation else 0
        superseded = 0
        for name in sorted(self._storage.list_names(GENERATIONS)):
            number, path = generation_number(name), f"{GENERATIONS}/{name}"
            if not number or generation_name(number) != path:
                self._notes.append(self._stray(path, path))
                continue
            if number == newest:
                continue
            will_not_be = is_given_up(self._storage, path)
            left = len(self._storage.list_keys(path)) - will_not_be
            if will_not_be and left:
                self._notes.append(
                    Note(
                        NoteKind.FENCED,
                        f"{self._where}: generation {path}: given up, so it will never be "
                        f"published, and still has {left} files; no reader looks at it, --repair "
                        "removes them",
                        segment=path,
                    )
                )
            elif number < newest:
                superseded += bool(left)
            elif left:
                self._unfinished(number)
        covered = sum(name in self._covered for name in self._names)
        if self._generation and (covered or superseded):
            self._notes.append(
                Note(
                    NoteKind.COVERED,
                    f"{self._where}: generation {self._generation.name} stands for {covered:,} "
                    f"segments and {superseded:,} older generations that still take up room; "
                    f"halp-store compact {self._where} --prune removes them",
                    segment=self._generation.name,
                )
            )

    def _unfinished(self, number: int) -> None:
        """A generation after the newest one that can be read: damaged, being written, or lost."""
        name = generation_name(number)
        if name in {problem.segment for problem in self._problems}:
            return
        if self._storage.read(f"{name}/{METADATA}"):
            return  # damaged, which is a problem already, or published since
        if self._storage.read(plan_key(number)):
            self._notes.append(
                Note(
                    NoteKind.COMPACTING,
                    f"{self._where}: generation {name}: a compaction is writing it, or died over "
                    f"it; no reader looks at it, halp-store compact {self._where} goes on with it",
                    segment=name,
                )
            )
            return
        # The plan comes before all else, and goes when what the generation stands for is pruned.
        what = "is missing or empty, and no compaction has planned to write it"
        error = DamagedSegment(self._where, name, None, what)
        self._problems.append(unreadable(self._where, name, None, error))

    def _take(self, name: str) -> None:
        try:
            document = self._storage.read(f"{SEGMENTS}/{name}/{METADATA}")
            header = parse_header(document) if document else None
        except (ValueError, LinkInStore, OSError) as error:
            # Of one that is not JSON, or that the disk does not give.
            self._problems.append(unreadable(self._where, name, None, error))
            return
        if header is None:
            self._notes += self._leftover(name, is_fenced=bool(document))
            return
        try:
            self._root.check_stamp(self._where, name, header.attributes)
        except ForeignSegment as error:
            self._problems.append(unreadable(self._where, name, None, error))
            return
        self._problems += inspect_segment(self._storage, self._root, name, header)
        self._compare(name, header)
        self._index.add(name, header)
        self._rows += len(header.question_ids)

    def _stray(self, path: str, segment: str) -> Note:
        return Note(
            NoteKind.STRAY,
            f"{self._where}: {path}: nothing that halp-stream wrote: ignored",
            segment=segment,
        )

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
            # Or half pruned, or pruned.
            self._is_missing_something = True
        elif left := len(self._storage.list_keys(root)) - 1:
            yield Note(
                NoteKind.FENCED,
                f"{self._where}: segment {name}: fenced, so it will never be published, and "
                f"still has {left} files; no reader looks at it, --repair removes them",
                segment=name,
            )

    def _compare(self, name: str, header: Header) -> None:
        """With the expected contents, and with the generation and the segments before this one."""
        here: dict[str, str] = {}
        for question_id, content in zip(header.question_ids, header.content_hashes, strict=True):
            if self._deletions.covers(question_id, name):
                continue
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
            kind = "generation" if is_generation(name) else "segment"
            self._problems.append(
                Problem(
                    ProblemKind.CONTENT,
                    f"{self._where}: {kind} {name}: question {question_id!r} has content "
                    f"{content}, expected {wanted}: its text, truth, image name or metadata was "
                    "changed; give the data set that this store was made from, or run the changed "
                    "one into a new store",
                    question_id,
                    name,
                )
            )

    def _duplicate(self, question_id: str, first: str, second: str, same: bool) -> Problem:
        places, seen = f"segments {first} and {second}", f"the one of {first}"
        wrong = f"delete segments/{first} and enqueue its questions again"
        if first == second:
            places, seen = f"segment {first} twice", "the first"
        elif is_generation(first):
            places = f"generation {first} and segment {second}"
            wrong = "run this question into a new store: no row of a generation is replaced"
        if same:
            what = (
                f"with the same content; readers take {seen}, so nothing is lost; "
                f"halp-store compact {self._where} leaves the other out"
            )
        else:
            what = (
                f"with other content; readers take {seen}; if that is the wrong one, {wrong}, or "
                f"halp-store compact {self._where} leaves the other out"
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
            "was deleted; enqueue the data set again, under a new --run, to have it extracted again"
            if question_id in self._deletions
            else "is neither stored nor failed nor queued; enqueue the data set again, under a new "
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


def _links(storage: Storage) -> list[Problem]:
    return [
        Problem(ProblemKind.LINK, str(LinkInStore(storage.where, key))) for key in storage.links()
    ]


def _readable_deletions(storage: Storage, root: Root) -> tuple[Deletions, list[Problem]]:
    """And a problem for each that cannot be read."""
    by_file, problems = {}, []
    for name in sorted(filter(is_deletion, storage.list_names(DELETIONS))):
        try:
            if named := read_deletion(storage, root, name):
                by_file[name] = named
        except (DamagedSegment, LinkInStore, OSError) as error:
            problems.append(unreadable(storage.where, f"{DELETIONS}/{name}", None, error))
    return Deletions(by_file), problems


def _newest_readable(storage: Storage) -> tuple[Generation | None, list[Problem]]:
    """And a problem for each after it that cannot be read."""
    try:
        pruned = last_pruned(storage)
        newest = newest_generation(storage, None)
        check_pruned(storage, pruned, newest)
        return newest, []
    except (DamagedSegment, LinkInStore, OSError) as error:
        name = getattr(error, "segment", GENERATIONS)
        problems = {name: unreadable(storage.where, name, None, error)}
    for number in reversed(list_generations(storage)):
        name = generation_name(number)
        try:
            if found := read_generation(storage, number):
                return found, list(problems.values())
        except (DamagedSegment, LinkInStore, OSError) as error:
            problems[name] = unreadable(storage.where, name, None, error)
    return None, list(problems.values())
