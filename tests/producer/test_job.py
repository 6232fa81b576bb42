"""The wire contract: what a job is, and that it survives the stream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halp_producer.job import (
    MAX_ID_BYTES,
    MAX_METADATA_DEPTH,
    MAX_TEXT_BYTES,
    Job,
    JobFormatError,
    decode,
    hash_fields,
    parse,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NOT_BLANK = TEXT.filter(lambda text: text.strip() != "")
IDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40).filter(
    lambda text: text.strip() != ""
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
JOBS = st.builds(
    Job,
    question_id=IDS,
    image=NOT_BLANK.filter(lambda text: "\0" not in text),
    question=NOT_BLANK,
    ground_truth=TEXT,
    metadata=st.dictionaries(TEXT, JSON, max_size=3),
)
GOOD: dict[str, Any] = {
    "question_id": "q1",
    "image": "a/b.jpg",
    "question": "What is this?",
    "ground_truth": "a dog",
    "metadata": {"category": "existence"},
}


def on_the_wire(job: Job) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in job.encode().items()}


@given(JOBS)
def test_what_was_encoded_decodes_to_an_equal_job(job):
    """Any job survives the stream unchanged, to the last code point."""
    again = decode(on_the_wire(job))
    assert again == job
    assert again.content_hash == job.content_hash == hash_fields(job.encode())


@given(JOBS, JOBS)
def test_hashes_are_equal_exactly_for_equal_content(one, other):
    """The content hash tells two jobs apart whenever their fields differ."""
    assert (one.content_hash == other.content_hash) == (one.encode() == other.encode())


def test_text_moved_from_one_field_to_the_next_changes_the_hash():
    """Fields cannot run into each other: `ab` + `c` is not `a` + `bc`."""
    one = parse({**GOOD, "image": "ab", "question": "c"})
    other = parse({**GOOD, "image": "a", "question": "bc"})
    assert one.content_hash != other.content_hash


def test_metadata_holds_what_json_holds_and_is_the_jobs_own():
    """A tuple becomes a list, a key becomes text, and the caller's object is not shared."""
    mine: dict[str, Any] = {"sizes": (1, 2), "by": {3: "three"}}
    job = parse({**GOOD, "metadata": mine})
    mine["sizes"] = ()
    assert job.metadata == {"sizes": [1, 2], "by": {"3": "three"}}
    assert decode(on_the_wire(job)) == job


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("question_id", "", "is empty"),
        ("question_id", " \t", "is empty"),
        ("question_id", "a\nb", "control character"),
        ("question_id", "a\x85b", "control character"),
        ("question_id", "é" * (MAX_ID_BYTES // 2 + 1), f"longer than {MAX_ID_BYTES} bytes"),
        ("question_id", 17, "expected text, got int"),
        ("image", "", "is empty"),
        ("image", "a\0b", "NUL"),
        ("question", "  ", "is empty"),
        ("question", "\ud800", "not valid Unicode"),
        ("question", "x" * (MAX_TEXT_BYTES + 1), "the limit is"),
        ("ground_truth", None, "expected text"),
        ("metadata", [], "expected an object, got list"),
        ("metadata", {"a": float("nan")}, "is not JSON"),
        ("metadata", {"a": [float("inf")]}, "is not JSON"),
        ("metadata", {"a": "\udfff"}, "not valid Unicode"),
        ("metadata", {"\udfff": 1}, "not valid Unicode"),
        ("metadata", {"a": {1, 2}}, "is not JSON"),
        ("metadata", {"a": 10**5000}, "is not JSON"),
        ("colour", "red", "is not a field of a job"),
    ],
)
def test_a_wrong_field_is_refused_by_name(field, value, reason):
    """A job that could not be stored or found again cannot be built."""
    with pytest.raises(JobFormatError) as caught:
        parse({**GOOD, field: value})
    assert [name for name, _ in caught.value.problems] == [field]
    assert reason in str(caught.value)


def test_every_wrong_field_is_named_at_once():
    """One look at the error is enough to mend a record."""
    with pytest.raises(JobFormatError) as caught:
        parse({"question_id": "", "image": 3})
    assert {name for name, _ in caught.value.problems} == {
        "question_id",
        "image",
        "question",
        "ground_truth",
    }


def test_metadata_may_be_deep_but_not_bottomless():
    """Nesting is bounded, so that no reader down the line runs out of stack."""

    def nested(levels: int) -> Any:
        value: Any = 1
        for _ in range(levels):
            value = [value]
        return value

    assert decode(on_the_wire(parse({**GOOD, "metadata": {"a": nested(MAX_METADATA_DEPTH)}})))
    with pytest.raises(JobFormatError, match="metadata: is nested deeper than"):
        parse({**GOOD, "metadata": {"a": nested(MAX_METADATA_DEPTH + 1)}})
    with pytest.raises(JobFormatError, match="metadata: is nested deeper than"):
        parse({**GOOD, "metadata": {"a": nested(500_000)}})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({b"v": b"2"}, "v: expected version 1"),
        ({b"v": None}, "v: expected version 1"),
        ({b"question": b"\xff"}, "entry: is not UTF-8"),
        ({b"\xff": b"x"}, "entry: is not UTF-8"),
        ({b"metadata": b"{"}, "metadata: is not JSON"),
        ({b"metadata": b"[1]"}, "metadata: expected an object"),
        ({b"metadata": b'{"a": NaN}'}, "metadata: is not JSON"),
        ({b"metadata": b'{"a": ' + b"9" * 5000 + b"}"}, "metadata: is not JSON"),
        ({b"metadata": b'{"a": ' + b"[" * 200_000}, "metadata: is not JSON"),
        ({b"metadata": b'{"a": "\\ud800"}'}, "metadata: is not valid Unicode"),
        ({b"extra": b"x"}, "extra: is not a field"),
        ({b"image": None}, "image: is missing"),
    ],
)
def test_a_foreign_stream_entry_is_an_error_with_its_field(change, reason):
    """Whatever is on the stream, decoding gives a job or a JobFormatError, nothing else."""
    fields = {**on_the_wire(parse(GOOD)), **change}
    with pytest.raises(JobFormatError, match="^" + reason):
        decode({name: value for name, value in fields.items() if value is not None})


def test_the_stream_entry_has_these_fields_in_this_order():
    """Golden: other versions of this program read these names."""
    assert parse(GOOD).encode() == {
        "v": "1",
        "question_id": "q1",
        "image": "a/b.jpg",
        "question": "What is this?",
        "ground_truth": "a dog",
        "metadata": '{"category":"existence"}',
    }
    assert list(parse(GOOD).encode()) == [
        "v", "question_id", "image", "question", "ground_truth", "metadata",
    ]  # fmt: skip
    assert parse(GOOD).content_hash == "f1a303ee4d5a65debf4673b41d4c83e7"
    assert json.loads(parse(GOOD).encode()["metadata"]) == GOOD["metadata"]
