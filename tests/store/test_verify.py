"""`verify_store`: damage of every kind is found, and each question is accounted for."""

import dataclasses
import json

import numpy as np
import pytest

from halp_store.errors import NotAStore
from halp_store.fence import fence_segment
from halp_store.layout import TEXT_COLUMNS
from halp_store.local import LocalStorage
from halp_store.verification import Counts, NoteKind, ProblemKind
from halp_store.verify import verify_store

from .conftest import HARMS, remove, truncate

HEX = "0123456789abcdef" * 2


@pytest.fixture
def path(tmp_path, open_writer):
    open_writer(tmp_path / "s")
    return tmp_path / "s"


@pytest.fixture
def segment(path, publish, make_rows):
    """The folder of a segment with the questions a and b."""
    return path / "segments" / publish(path, make_rows(["a", "b"]))


def _only(path, **lists):
    (problem,) = verify_store(path, **lists).problems
    return problem


def _edit(segment, change):
    """Change a segment's zarr.json, and the arrays' own with it."""
    document = json.loads((segment / "zarr.json").read_bytes())
    change(document)
    (segment / "zarr.json").write_text(json.dumps(document))
    for name, own in document["consolidated_metadata"]["metadata"].items():
        (segment / name / "zarr.json").write_text(json.dumps(own))


def test_a_sound_store_has_no_problems_and_is_not_changed(path, segment, publish, make_rows):
    """Rows and segments are counted, and verifying writes nothing."""
    publish(path, make_rows(["c"]))
    before = {one: one.stat().st_mtime_ns for one in path.rglob("*")}
    found = verify_store(LocalStorage(path))
    assert (found.rows, found.segments, found.problems, found.notes) == (3, 2, (), ())
    assert found.counts == Counts(stored=3)
    assert found.ok
    assert {one: one.stat().st_mtime_ns for one in path.rglob("*")} == before


def test_what_is_no_store_is_an_error(tmp_path):
    """There is nothing to verify then."""
    with pytest.raises(NotAStore):
        verify_store(tmp_path)


@pytest.mark.parametrize("harm", HARMS)
def test_harm_to_any_file_of_a_segment_is_found(path, segment, layout, harm):
    """Each array's chunks and metadata are read: the problem names the segment and the array."""
    files = [one for one in segment.rglob("*") if one.is_file() and one.parent != segment]
    arrays = {one.parent.name for one in files}
    assert arrays == {
        "layer",
        *TEXT_COLUMNS,
        *layout.number_columns(),
    }
    for file in files:
        good = file.read_bytes()
        harm(file)
        problem = _only(path)
        assert problem.kind is ProblemKind.DAMAGED
        assert (problem.segment, problem.array) == (segment.name, file.parent.name)
        assert f"segment {segment.name}: array {file.parent.name}: " in problem.sentence
        assert "restore" in problem.sentence
        file.write_bytes(good)
    assert verify_store(path).ok


UNREADABLE = {
    "torn": b'{"zarr_format": 3, "node',
    "no group": b"[]",
    "no text": b"\xff\xfe",
    "too deep": b"[" * 9999,
    "surrogate": b'{"attributes": {"layout_version": 1, "nonce": "n", "question_ids": ["x"],'
    b' "content_hashes": ["\\ud800"]}}',
}


@pytest.mark.parametrize("document", UNREADABLE.values(), ids=UNREADABLE)
def test_a_zarr_json_that_cannot_be_read_is_found(path, segment, document):
    """What the segment holds is unknown then, so its questions are missing too."""
    (segment / "zarr.json").write_bytes(document)
    found = verify_store(path, expected={"a": "", "b": ""}, failed={}, queued=())
    assert [one.kind for one in found.problems] == [
        ProblemKind.DAMAGED,
        ProblemKind.MISSING,
        ProblemKind.MISSING,
    ]
    assert f"segment {segment.name}: its zarr.json: " in found.problems[0].sentence
    assert (found.rows, found.segments) == (0, 0)


def test_a_segment_without_the_metadata_of_its_arrays_is_found(path, segment):
    """A header alone is not a segment."""
    document = json.loads((segment / "zarr.json").read_bytes())
    del document["consolidated_metadata"]
    (segment / "zarr.json").write_text(json.dumps(document))
    assert "consolidated_metadata" in _only(path).sentence


def test_no_problem_hides_another(path, segment, publish, make_rows):
    """Harm in two arrays of one segment and in another segment: all is said at once."""
    other = path / "segments" / publish(path, make_rows(["c"]), "other")
    remove(segment / "query_token" / "c.0.1.0")
    truncate(segment / "answer" / "c.0")
    (other / "zarr.json").write_bytes(b"rubbish")
    found = {(one.segment, one.array) for one in verify_store(path).problems}
    assert found == {
        (segment.name, "query_token"),
        (segment.name, "answer"),
        (other.name, None),
    }


@pytest.mark.parametrize("key", ["vision_only/c.0.0", "image_grid_thw/c.0.0", "image/c.0", ""])
def test_what_the_disk_does_not_give_is_a_problem(path, segment, key):
    """A bad sector under one file does not end the check of the others."""

    class BadSector(LocalStorage):
        def read(self, wanted):
            if wanted == f"segments/{segment.name}/{key or 'zarr.json'}":
                raise OSError(5, "Input/output error")
            return super().read(wanted)

    (problem,) = verify_store(BadSector(path)).problems
    assert (problem.kind, problem.segment) == (ProblemKind.DAMAGED, segment.name)
    assert problem.array == (key.partition("/")[0] or None)
    assert "Input/output error" in problem.sentence


def test_a_segment_that_goes_away_while_it_is_read_is_a_problem(path, segment):
    """Not an error that ends it, whatever read it is that fails."""

    class Going(LocalStorage):
        reads = 0

        def read(self, key):
            if key == f"segments/{segment.name}/zarr.json":
                self.reads += 1
                if self.reads == 2:
                    raise OSError(116, "Stale file handle")
            return super().read(key)

    (problem,) = verify_store(Going(path)).problems
    assert "Stale file handle" in problem.sentence


@pytest.mark.parametrize("column", ["vision_only", "vision_encoder", "vision_token", "query_token"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found(path, publish, make_rows, column, value):
    """In any vector, with an intact checksum: the row is named."""
    features = make_rows(["a", "b"])
    features.vectors[column][1].flat[-1] = value
    name = publish(path, features)
    problem = _only(path)
    assert problem.kind is ProblemKind.NOT_FINITE
    assert (problem.question_id, problem.segment, problem.array) == ("b", name, column)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_score_may_be_none_but_not_infinite(path, publish, make_rows, value):
    """NaN stands for what there is not; the row of an infinity is named."""
    features = make_rows(["a", "b"])
    features.scores["risk"][1] = value
    name = publish(path, features)
    if np.isnan(value):
        assert verify_store(path).ok
        return
    problem = _only(path)
    assert (problem.kind, problem.array) == (ProblemKind.NOT_FINITE, "risk")
    assert (problem.question_id, problem.segment) == ("b", name)
    assert "expected a number or NaN" in problem.sentence


@pytest.mark.parametrize("is_older", [True, False])
def test_a_segment_with_other_columns_than_the_stores_is_found(
    tmp_path, open_writer, publish, make_rows, layout, plain, is_older
):
    """Without the scores that the store has, or with scores that it has not."""
    ours, theirs = (layout, plain) if is_older else (plain, layout)
    open_writer(tmp_path / "v", ours)
    name = publish(tmp_path / "v", make_rows(["a"], of=theirs))
    found = verify_store(tmp_path / "v").problems
    assert {(problem.kind, problem.segment) for problem in found} == {(ProblemKind.DAMAGED, name)}
    sentences = "\n".join(problem.sentence for problem in found)
    assert "other arrays than expected: first_token_entropy, mean_logprob, risk" in sentences


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("query_token_position", -1, "0 to 599, got -1"),
        ("vision_token_position", 600, "0 to 599, got 600"),
        ("image_tokens", 0, "1 to 600, got 0"),
        ("image_tokens", 601, "1 to 600, got 601"),
        ("answer_tokens", -1, "0 or more, got -1"),
        ("image_grid_thw", [1, 0, 4], r"1 or more, got [1, 0, 4]"),
    ],
)
def test_numbers_that_cannot_be_are_found(path, publish, make_rows, column, value, expected):
    """Positions are inside the prompt, tokens and patches are there."""
    features = make_rows(["a", "b"])
    features.integers["prompt_tokens"][:] = 600
    features.integers[column][1] = value
    publish(path, features)
    problem = _only(path)
    assert problem.kind is ProblemKind.NUMBERS
    assert (problem.question_id, problem.array) == ("b", column)
    assert f"row 1 (question 'b'): expected {expected}" in problem.sentence


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("query_token_position", 0),
        ("query_token_position", 599),
        ("image_tokens", 600),
        ("answer_tokens", 0),
    ],
)
def test_numbers_at_their_bounds_are_sound(path, publish, make_rows, column, value):
    """The first and last token of the prompt, and an answer of nothing."""
    features = make_rows(["a"])
    features.integers["prompt_tokens"][:] = 600
    features.integers[column][0] = value
    publish(path, features)
    assert verify_store(path).ok


def test_a_prompt_of_nothing_is_found(path, publish, make_rows):
    """And so is all that should be inside it."""
    features = make_rows(["a"])
    features.integers["prompt_tokens"][0] = 0
    publish(path, features)
    found = {one.array for one in verify_store(path).problems}
    assert found == {
        "prompt_tokens",
        "image_tokens",
        "vision_token_position",
        "query_token_position",
    }


@pytest.mark.parametrize("value", ["", "[]", "{", '"x"'])
def test_metadata_that_is_no_object_is_found(path, publish, make_rows, value):
    """Reading the row would fail, or give something else than was enqueued."""
    features = make_rows(["a", "b"])
    features.text["metadata"] = ("{}", value)
    publish(path, features)
    problem = _only(path)
    assert (problem.kind, problem.question_id) == (ProblemKind.METADATA, "b")


@pytest.mark.parametrize(
    ("attribute", "column"), [("question_ids", "question_id"), ("content_hashes", "content_hash")]
)
def test_a_header_that_does_not_say_what_the_columns_say_is_found(path, segment, attribute, column):
    """zarr.json has no checksum of its own: ids and contents are compared with the columns."""
    _edit(segment, lambda document: document["attributes"][attribute].__setitem__(1, "x"))
    problem = _only(path)
    assert (problem.kind, problem.array) == (ProblemKind.IDENTITY, column)
    assert "row 1" in problem.sentence
    assert "expected 'x'" in problem.sentence


def test_layers_that_are_not_the_stores_are_found(path, publish, make_rows, layout):
    """The same number of layers, but others."""
    publish(path, make_rows(["a"], of=dataclasses.replace(layout, layers=(0, 4))))
    problem = _only(path)
    assert (problem.kind, problem.array) == (ProblemKind.LAYERS, "layer")
    assert "expected [0, 3]" in problem.sentence
    assert "got [0, 4]" in problem.sentence


@pytest.mark.parametrize("change", [{"hidden_size": 9}, {"vision_hidden_size": 7}])
def test_shapes_that_are_not_the_stores_are_found(path, publish, make_rows, layout, change):
    """Each array is compared with the store's layout and the number of ids."""
    publish(path, make_rows(["a"], of=dataclasses.replace(layout, **change)))
    found = verify_store(path).problems
    assert {one.kind for one in found} == {ProblemKind.DAMAGED}
    assert all("expected shape" in one.sentence for one in found)


@pytest.mark.parametrize(
    ("column", "dtype"),
    [("vision_only", np.float64), ("image_tokens", np.int32), ("risk", np.float64)],
)
def test_types_that_are_not_the_stores_are_found(path, publish, make_rows, column, dtype):
    """float32 and int64 are what every reader was promised."""
    features = make_rows(["a"])
    kinds = (features.vectors, features.integers, features.scores)
    kind = next(one for one in kinds if column in one)
    kind[column] = kind[column].astype(dtype)
    publish(path, features)
    problem = _only(path)
    assert (problem.kind, problem.array) == (ProblemKind.DAMAGED, column)
    assert np.dtype(dtype).name in problem.sentence


def test_texts_that_are_no_texts_are_found(path, publish, make_rows):
    """A column of numbers in the place of answers."""
    features = make_rows(["a"])
    name = publish(path, features)
    _edit(
        path / "segments" / name,
        lambda document: document["consolidated_metadata"]["metadata"].__setitem__(
            "answer", document["consolidated_metadata"]["metadata"]["image_tokens"]
        ),
    )
    segment = path / "segments" / name
    (segment / "answer" / "c.0").write_bytes((segment / "image_tokens" / "c.0").read_bytes())
    problem = _only(path)
    assert (problem.array, "expected texts, got int64" in problem.sentence) == ("answer", True)


def test_an_arrays_own_metadata_must_be_the_segments(path, segment):
    """Other Zarr readers take the array's own zarr.json."""
    own = segment / "answer" / "zarr.json"
    own.write_text(own.read_text().replace('"string"', '"bytes"'))
    assert "its own zarr.json differs" in _only(path).sentence


@pytest.mark.parametrize(
    ("content", "said"), [("a", "with the same content"), ("b", "with other content")]
)
def test_an_id_in_two_segments_is_found(path, publish, make_rows, content, said):
    """Both are named, and which of them readers take."""
    first = publish(path, make_rows(["a", "x"], "a"), f"a-{HEX}")
    second = publish(path, make_rows(["y", "x"], content), f"b-{HEX}")
    problem = _only(path)
    assert (problem.kind, problem.question_id) == (ProblemKind.DUPLICATE, "x")
    assert f"'x' is stored in segments {first} and {second}, {said}" in problem.sentence
    assert f"readers take the one of {first}" in problem.sentence


@pytest.mark.parametrize(
    ("contents", "said"),
    [(("c", "c"), "with the same content"), (("c", "d"), "with other content")],
)
def test_an_id_twice_in_a_segment_is_found(path, publish, make_rows, contents, said):
    """No writer of ours does that."""
    features = make_rows(["x", "x"])
    features.text["content_hash"] = contents
    name = publish(path, features)
    problem = _only(path)
    assert (problem.kind, problem.segment) == (ProblemKind.DUPLICATE, name)
    assert f"'x' is stored in segment {name} twice, {said}" in problem.sentence


def test_each_expected_question_is_stored_failed_queued_or_missing(path, segment):
    """Stored comes first, then failed, then queued; the rest is missing and says what to do."""
    expected = {"a": "a-a", "b": "", "f": "f", "q": "q", "m": "m"}
    found = verify_store(path, expected=expected, failed={"f": "image-missing"}, queued={"q"})
    assert found.counts == Counts(stored=2, failed=1, queued=1, missing=1)
    (problem,) = found.problems
    assert (problem.kind, problem.question_id) == (ProblemKind.MISSING, "m")
    assert "neither stored nor failed nor queued" in problem.sentence
    assert found.notes == ()


def test_without_a_server_what_is_missing_may_have_failed(path, segment):
    """The sentence says how to find out."""
    problem = _only(path, expected={"a": "", "b": "", "m": ""})
    assert (problem.kind, problem.question_id) == (ProblemKind.MISSING, "m")
    assert "pass --run to see whether it failed or is queued" in problem.sentence


def test_a_failure_without_a_reason_is_a_problem(path, segment):
    """Lost with a reason is accounted for; lost without one is not."""
    found = verify_store(path, expected={"a": "", "b": "", "f": ""}, failed={"f": ""}, queued=())
    assert [one.kind for one in found.problems] == [ProblemKind.UNEXPLAINED]
    assert found.counts.failed == 1


def test_content_that_was_not_expected_is_a_problem(path, segment):
    """The store holds another version of the question than the data set."""
    problem = _only(path, expected={"a": "a-a", "b": "new"})
    assert (problem.kind, problem.question_id) == (ProblemKind.CONTENT, "b")
    assert "has content a-b, expected new" in problem.sentence
    assert problem.segment == segment.name


def test_what_is_stored_and_not_expected_is_a_note(path, segment):
    """The store may hold more than one data set."""
    found = verify_store(path, expected={"a": "a-a"})
    assert found.ok
    assert [(one.kind, one.question_id) for one in found.notes] == [(NoteKind.UNEXPECTED, "b")]
    assert found.counts == Counts(stored=1)


def test_what_failed_and_is_stored_all_the_same_is_a_note(path, segment):
    """Counted as stored, once."""
    found = verify_store(path, expected={"a": "", "b": ""}, failed={"b": "attempts"}, queued=())
    assert found.ok
    assert [(one.kind, one.question_id) for one in found.notes] == [
        (NoteKind.FAILED_BUT_STORED, "b")
    ]
    assert found.counts == Counts(stored=2)


def test_leftovers_are_notes(path, segment):
    """Staged and not published, fenced with files left, strays: named, and nothing is wrong."""
    disk = LocalStorage(path)
    staged, fenced, clean = f"a-{HEX}", f"b-{HEX}", f"c-{HEX}"
    for name in (staged, fenced):
        disk.write(f"segments/{name}/answer/zarr.json", b"{}")
    fence_segment(disk, fenced)
    fence_segment(disk, clean)
    disk.write("segments/notes.txt", b"x")
    found = verify_store(path)
    assert found.ok
    assert {(one.kind, one.segment) for one in found.notes} == {
        (NoteKind.UNPUBLISHED, staged),
        (NoteKind.FENCED, fenced),
        (NoteKind.STRAY, "notes.txt"),
    }
    assert "still has 1 files" in next(one.sentence for one in found.notes if one.segment == fenced)
    assert (found.rows, found.segments) == (2, 1)


def test_a_segment_published_while_it_is_looked_at_is_no_leftover(path, publish, make_rows):
    """A worker at work causes no alarm."""
    disk = LocalStorage(path)
    disk.write(f"segments/a-{HEX}/stray", b"x")

    class Publishing(LocalStorage):
        def age_seconds(self, prefix):
            publish(path, make_rows(["a"]), f"a-{HEX}")
            return super().age_seconds(prefix)

    found = verify_store(Publishing(path))
    assert (found.problems, found.notes) == ((), ())


def test_progress_counts_segments(path, segment, publish, make_rows):
    """From none to all."""
    publish(path, make_rows(["c"]))
    told = []
    verify_store(path, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (2, 2)]
