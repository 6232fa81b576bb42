"""`verify_store` and `repair` where there are generations: each row is accounted for once."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from halp_store import generation_writer, inspection, row_order
from halp_store.compaction import compact
from halp_store.fence import fence_segment
from halp_store.generation import newest_generation
from halp_store.generation_writer import GenerationWriter
from halp_store.inspection import inspect_generation
from halp_store.local import LocalStorage
from halp_store.pruning import prune
from halp_store.repair import Repair, repair
from halp_store.root import read_root
from halp_store.segment import TOMBSTONE_DOCUMENT
from halp_store.verification import Counts, NoteKind, ProblemKind
from halp_store.verify import verify_store

HEX = "0123456789abcdef" * 2
FIRST, SECOND = "compacted/000001", "compacted/000002"
IDS = [f"q{number:02d}" for number in range(20)]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    """Several shards, several chunks, and a last one that is not full, of few rows."""
    for room in (generation_writer, inspection):
        monkeypatch.setattr(room, "SHARD_ROWS", 8)
        monkeypatch.setattr(room, "CHUNK_ROWS", 4)
    monkeypatch.setattr(inspection._GenerationInspection, "block_rows", 4)
    monkeypatch.setattr(generation_writer, "TEXT_ROWS", 8)


@pytest.fixture
def path(tmp_path, fill):
    """A generation of 20 rows beside the three segments that it covers."""
    fill(tmp_path / "s", IDS)
    compact(LocalStorage(tmp_path / "s"))
    return tmp_path / "s"


@pytest.fixture
def compacted(tmp_path, open_writer, publish):
    """Write these rows as one generation, with nothing else in the store."""

    def write(features, of=None):
        path = tmp_path / "c"
        open_writer(path, **({"of": of} if of else {}))
        publish(path, features)
        compact(LocalStorage(path))
        shutil.rmtree(path / "segments")
        return path

    return write


def _only(path, **lists):
    (problem,) = verify_store(path, **lists).problems
    return problem


def _edit(path, change):
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def _covered_note(path, segments, generations, by=FIRST):
    (note,) = verify_store(path).notes
    assert (note.kind, note.segment) == (NoteKind.COVERED, by)
    assert f"{segments} segments and {generations} older generations" in note.sentence
    assert f"halp-store compact {path} --prune" in note.sentence


def test_rows_of_a_generation_and_of_the_segments_after_it_are_counted_once(path, fill):
    """Covered segments are neither rows nor duplicates: a note says that they take up room."""
    fill(path, ["z1", "z2"], worker="later")
    before = {one: one.stat().st_mtime_ns for one in path.rglob("*")}
    found = verify_store(path)
    assert (found.rows, found.segments, found.generation) == (22, 1, FIRST)
    assert (found.problems, found.counts) == ((), Counts(stored=22))
    assert {one: one.stat().st_mtime_ns for one in path.rglob("*")} == before
    _covered_note(path, 3, 0)


def test_a_pruned_store_has_nothing_to_say(path):
    """No problem and no note."""
    prune(LocalStorage(path), grace_seconds=0)
    found = verify_store(path)
    assert (found.rows, found.segments, found.problems, found.notes) == (20, 0, (), ())


def test_progress_counts_parts_of_the_generation_and_then_segments(path, fill):
    """Each count ends where it should."""
    fill(path, ["z1", "z2"], worker="later")
    told = []
    verify_store(path, progress=lambda done, total: told.append((done, total)))
    ends = [(done, total) for done, total in told if done == total]
    assert len(ends) == 2
    assert ends[-1] == (1, 1)
    assert told[: ends[0][1]] == [(one + 1, ends[0][1]) for one in range(ends[0][1])]


def test_expected_questions_are_found_in_a_generation(path):
    """With their contents: stored, changed, not expected and missing are told apart."""
    expected = {one: f"a-{one}" for one in IDS[1:]} | {"q05": "new", "m": "m"}
    found = verify_store(path, expected=expected, failed={}, queued=())
    assert found.counts == Counts(stored=19, missing=1)
    content, missing = found.problems
    assert (content.kind, content.question_id, content.segment) == (
        ProblemKind.CONTENT,
        "q05",
        FIRST,
    )
    assert f"generation {FIRST}: question 'q05' has content a-q05, expected new" in content.sentence
    assert (missing.kind, missing.question_id) == (ProblemKind.MISSING, "m")
    assert [(one.kind, one.question_id) for one in found.notes if one.question_id] == [
        (NoteKind.UNEXPECTED, "q00")
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a", "with the same content; readers take the one of compacted/000001, so nothing is lo"),
        ("b", "with other content; readers take the one of compacted/000001; if that is the wron"),
    ],
)
def test_an_id_in_the_generation_and_in_a_later_segment_is_found(
    path, publish, make_rows, content, said
):
    """The generation wins; compacting again leaves the other out."""
    name = publish(path, make_rows(["q03"], content))
    problem = _only(path)
    assert (problem.kind, problem.question_id, problem.segment) == (
        ProblemKind.DUPLICATE,
        "q03",
        name,
    )
    assert f"is stored in generation {FIRST} and segment {name}, {said}" in problem.sentence
    assert f"halp-store compact {path}" in problem.sentence
    assert verify_store(path).counts == Counts(stored=20)
    compact(LocalStorage(path))
    assert verify_store(path).ok


@pytest.mark.parametrize("column", ["vision_only", "vision_encoder", "vision_token", "query_token"])
def test_values_that_are_not_finite_are_found_in_every_row(compacted, make_rows, column):
    """In the first and the last row of each chunk; the row is named by its id."""
    features = make_rows(IDS)
    wrong = (0, 3, 4, 7, 8, 19)
    for row in wrong:
        features.vectors[column][row].flat[-1] = np.nan
    found = verify_store(compacted(features)).problems
    assert [(one.kind, one.question_id, one.segment, one.array) for one in found] == [
        (ProblemKind.NOT_FINITE, IDS[row], FIRST, column) for row in wrong
    ]
    assert "row 19 (question 'q19'): expected finite values" in found[-1].sentence


def test_a_score_may_be_none_but_not_infinite(compacted, make_rows):
    """As in a segment: the row is named by its id."""
    features = make_rows(IDS)
    features.scores["risk"][4], features.scores["mean_logprob"][17] = np.nan, -np.inf
    problem = _only(compacted(features))
    assert (problem.kind, problem.question_id, problem.array) == (
        ProblemKind.NOT_FINITE,
        "q17",
        "mean_logprob",
    )


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("query_token_position", 600),
        ("image_tokens", 0),
        ("answer_tokens", -1),
        ("image_grid_thw", [1, 0, 4]),
    ],
)
def test_numbers_that_cannot_be_are_found(compacted, make_rows, column, value):
    """As in a segment, each compared with the prompt of its own row."""
    features = make_rows(IDS)
    features.integers["prompt_tokens"][:] = 600
    features.integers[column][17] = value
    problem = _only(compacted(features))
    assert (problem.kind, problem.question_id, problem.array) == (
        ProblemKind.NUMBERS,
        "q17",
        column,
    )


def test_metadata_that_is_no_object_is_found(compacted, make_rows):
    """Reading the row would fail, or give something else than was enqueued."""
    features = make_rows(IDS)
    features.text["metadata"] = ("{}",) * 10 + ("[]",) + ("{}",) * 9
    problem = _only(compacted(features))
    assert (problem.kind, problem.question_id) == (ProblemKind.METADATA, "q10")


@pytest.fixture
def imported(layout):
    """A layout of rows whose source knew no positions and no vision encoder."""
    unknown = ["prompt_tokens", "query_token_position", "image_grid_thw", "vision_encoder"]
    return dataclasses.replace(layout, fingerprint={"imported": {"unknown": unknown}})


def test_what_nobody_knows_of_imported_rows_is_no_problem(compacted, make_rows, imported):
    """-1 in the columns that the store calls unknown, in segments and generations alike."""
    features = make_rows(IDS, of=imported)
    for column in ("prompt_tokens", "query_token_position", "image_grid_thw"):
        features.integers[column][:] = -1
    found = verify_store(compacted(features, imported))
    assert (found.problems, found.generation) == ((), FIRST)


@pytest.mark.parametrize(
    ("column", "value"),
    [("vision_token_position", -1), ("query_token_position", -2), ("image_grid_thw", [1, -1, 1])],
)
def test_only_what_nobody_knows_may_be_minus_one(
    path, tmp_path, open_writer, publish, make_rows, imported, column, value
):
    """Any other column, and any other value that cannot be, is a problem still."""
    open_writer(tmp_path / "i", imported)
    features = make_rows(IDS, of=imported)
    features.integers[column][2] = value
    publish(tmp_path / "i", features)
    problem = _only(tmp_path / "i")
    assert (problem.kind, problem.question_id, problem.array) == (
        ProblemKind.NUMBERS,
        "q02",
        column,
    )


def test_a_covered_row_that_the_generation_has_not_is_found(path, publish, make_rows):
    """Pruning would lose it."""
    name = publish(path, make_rows(["lost", "q01"]))
    _edit(
        path / FIRST / "zarr.json",
        lambda document: document["attributes"]["segments"].append([name, "2026-01-01", 0]),
    )
    problem = _only(path)
    assert (problem.kind, problem.question_id) == (ProblemKind.DAMAGED, "lost")
    assert (problem.segment, problem.array) == (FIRST, "question_id")
    assert f"of segment {name} is not in it, although it covers that" in problem.sentence
    assert "do not prune" in problem.sentence
    disk = LocalStorage(path)
    found = inspect_generation(disk, read_root(disk), newest_generation(disk, None))
    assert [one.question_id for one in found] == ["lost"]


def test_a_row_that_is_not_as_its_segment_committed_it_is_found(path, publish, make_rows):
    """The generation says which segment it is of, and that says another content."""
    name = _segments(path)[0]
    header = json.loads((path / "segments" / name / "zarr.json").read_bytes())
    ids = header["attributes"]["question_ids"]
    shutil.rmtree(path / "segments" / name)
    publish(path, make_rows(ids, "b"), name)
    found = verify_store(path).problems
    assert {(one.kind, one.array) for one in found} == {(ProblemKind.DAMAGED, "content_hash")}
    assert {one.question_id for one in found} == set(ids)
    assert "is in it with other content, although it covers that" in found[0].sentence


def test_the_rows_of_a_covered_duplicate_are_not_missed(path, publish, make_rows):
    """A row that another stood for when it was compacted is neither lost nor a duplicate."""
    publish(path, make_rows(["q03", "z"], "b"))
    compact(LocalStorage(path))
    found = verify_store(path)
    assert (found.ok, found.rows, found.generation) == (True, 21, SECOND)
    _covered_note(path, 4, 1, SECOND)


def test_a_covered_segment_is_not_read_whole(path):
    """Its rows are in the generation: damage to it is no problem, whatever is harmed."""
    for number, segment in enumerate(sorted((path / "segments").iterdir())):
        if number == 0:
            (segment / "zarr.json").write_bytes(b"rubbish")
        (segment / "answer" / "c.0").unlink()
    assert verify_store(path).ok
    _covered_note(path, 3, 0)


def _segments(path):
    return [one.name for one in (path / "segments").iterdir()]


def test_what_a_killed_pruning_left_is_covered(path, fill):
    """Not unpublished: segments and an older generation without their zarr.json."""
    fill(path, ["z"], worker="later")
    compact(LocalStorage(path))
    for name in _segments(path):
        (path / "segments" / name / "zarr.json").unlink()
    (path / FIRST / "zarr.json").unlink()
    found = verify_store(path)
    assert (found.ok, found.rows, found.generation) == (True, 21, SECOND)
    _covered_note(path, 4, 1, SECOND)


def test_repair_leaves_what_is_covered_to_prune(path):
    """No tombstone among it, however old, and no file of it goes."""
    names = _segments(path)
    for name in names:
        (path / "segments" / name / "zarr.json").unlink()
    disk = LocalStorage(path)
    before = set(disk.list_keys(""))
    assert repair(disk, grace_seconds=0) == Repair((), 0, 0, ())
    assert set(disk.list_keys("")) == before
    assert prune(disk, grace_seconds=0).segments == len(names)
    assert verify_store(path).notes == ()


def test_a_compaction_at_work_is_a_note(path, fill, monkeypatch):
    """Its generation is not published; repair leaves it alone and compact goes on with it."""
    fill(path, ["z1", "z2"], worker="later")

    def die(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(GenerationWriter, "_large", die)
        with pytest.raises(OSError, match="No space"):
            compact(LocalStorage(path))
    found = verify_store(path)
    assert (found.ok, found.rows, found.generation) == (True, 22, FIRST)
    kinds = {one.kind: one for one in found.notes}
    assert kinds.keys() == {NoteKind.COVERED, NoteKind.COMPACTING}
    assert kinds[NoteKind.COMPACTING].segment == SECOND
    assert f"halp-store compact {path} goes on" in kinds[NoteKind.COMPACTING].sentence
    disk = LocalStorage(path)
    before = set(disk.list_keys("compacted"))
    repair(disk, grace_seconds=0)
    assert set(disk.list_keys("compacted")) == before
    assert compact(disk).resumed
    assert verify_store(path).ok


def test_what_is_left_of_a_generation_that_was_given_up_goes_with_repair(path):
    """Its tombstone stays, so that its number is not used again."""
    disk = LocalStorage(path)
    disk.write(f"{SECOND}/answer/c.0", b"x")
    disk.publish(f"{SECOND}/zarr.json", TOMBSTONE_DOCUMENT)
    note = next(one for one in verify_store(path).notes if one.kind is NoteKind.FENCED)
    assert note.segment == SECOND
    assert "given up" in note.sentence
    assert "still has 1 files" in note.sentence
    assert repair(disk, grace_seconds=600).files_removed == 0
    assert repair(disk, grace_seconds=0).files_removed == 1
    assert disk.list_keys(SECOND) == [f"{SECOND}/zarr.json"]
    _covered_note(path, 3, 0)


@pytest.mark.parametrize("name", ["notes.txt", "1", "0000001", "000000"])
def test_what_is_no_generation_is_a_stray(path, name):
    """Named, and nothing is wrong; plans of compactions are ours."""
    LocalStorage(path).write(f"compacted/{name}", b"x")
    found = verify_store(path)
    strays = [one.sentence for one in found.notes if one.kind is NoteKind.STRAY]
    assert (found.ok, len(strays)) == (True, 1)
    assert f"compacted/{name}: nothing that halp-stream wrote" in strays[0]


@pytest.mark.parametrize("key", ["notes.txt", "answer/c.9", "vision_token/c.0.1.0", "extra/c.0"])
def test_what_is_no_part_of_a_generation_is_a_stray(path, key):
    """No reader looks at it."""
    LocalStorage(path).write(f"{FIRST}/{key}", b"x")
    found = verify_store(path)
    assert found.ok
    assert [one.sentence for one in found.notes if one.kind is NoteKind.STRAY] == [
        f"{path}: {FIRST}/{key}: nothing that halp-stream wrote: ignored"
    ]


def test_ids_that_are_not_sorted_are_found(path, monkeypatch, fill):
    """Also where two shards meet, and an id that is there twice."""

    def order(*arguments):
        found = row_order.order_rows(*arguments)
        ids = list(found.ids)
        ids[8], ids[12] = ids[7], "a"
        return dataclasses.replace(found, ids=tuple(ids))

    fill(path, ["z"], worker="later")
    monkeypatch.setattr("halp_store.compaction.order_rows", order)
    compact(LocalStorage(path))
    found = [one for one in verify_store(path).problems if "not sorted" in one.sentence]
    assert [(one.kind, one.segment, one.array) for one in found] == [
        (ProblemKind.DAMAGED, SECOND, "question_id")
    ] * 2
    assert "row 8: expected an id after 'q07', got 'q07'" in found[0].sentence
    assert "row 12: expected an id after 'q11', got 'a'" in found[1].sentence


def test_an_origin_that_the_generation_does_not_list_is_found(path):
    """Each row was committed with one of its segments."""
    _edit(
        path / FIRST / "zarr.json",
        lambda document: document["attributes"]["segments"].pop(),
    )
    found = verify_store(path).problems
    origins = [one for one in found if one.kind is ProblemKind.NUMBERS]
    assert {(one.segment, one.array) for one in origins} == {(FIRST, "segment")}
    assert "expected 0 to 1, got 2" in origins[0].sentence
    assert {one.kind for one in found} == {ProblemKind.NUMBERS, ProblemKind.DUPLICATE}


class During(LocalStorage):
    """Something happens the first time that a key with this ending is read."""

    def __init__(self, root, ending, happen):
        super().__init__(root)
        self.ending, self.happen = ending, happen

    def read(self, key):
        if key.endswith(self.ending) and (happen := self.happen):
            self.happen = None
            happen(LocalStorage(self.root))
        return super().read(key)


def _compact_and_prune(disk):
    compact(disk)
    prune(disk, grace_seconds=0)


@pytest.mark.parametrize(
    "moment",
    ["zarr.json", f"{FIRST}/zarr.json", "answer/c.0", "later/zarr.json", "later/answer/c.0"],
)
def test_a_compaction_and_pruning_meanwhile_is_no_problem(path, publish, make_rows, moment):
    """Whatever was being read: the rows are in the new generation, and all are counted."""
    later = publish(path, make_rows(["z1", "z2"]))
    disk = During(path, moment.replace("later", later), _compact_and_prune)
    found = verify_store(disk, expected=dict.fromkeys([*IDS, "z1", "z2"], ""))
    assert disk.happen is None
    assert found.problems == ()
    assert (found.rows, found.segments, found.generation) == (22, 0, SECOND)
    assert found.counts == Counts(stored=22)


def test_a_store_that_is_compacted_for_the_first_time_meanwhile_is_whole(tmp_path, fill, make_rows):
    """Also without lists: no row is left out of the count."""
    fill(tmp_path, IDS)
    last = max(_segments(tmp_path))
    found = verify_store(During(tmp_path, f"{last}/zarr.json", _compact_and_prune))
    assert (found.problems, found.rows, found.segments) == ((), 20, 0)


def test_damage_that_no_newer_generation_explains_stays(path, publish, make_rows):
    """A generation that was published meanwhile is read instead, with what is wrong with it."""
    later = publish(path, make_rows(["z1", "z2"]))

    def happen(disk):
        compact(disk)
        (disk.root / SECOND / "answer" / "c.1").unlink()

    found = verify_store(During(path, f"{later}/answer/c.0", happen))
    assert found.problems == ()  # what it had read was whole
    problem = _only(path)
    assert (problem.segment, problem.array) == (SECOND, "answer")


def test_fenced_segments_beside_a_generation_are_left_alone(path):
    """As without one."""
    fence_segment(LocalStorage(path), f"a-{HEX}")
    assert verify_store(path).ok
    _covered_note(path, 3, 0)
