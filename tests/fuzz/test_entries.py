"""Whatever lies on a stream: a job, or a JobFormatError that says why it is none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halp_producer.job import MAX_METADATA_DEPTH, Job, JobFormatError, decode, parse

FUZZ = settings(settings.get_profile("fuzz"), max_examples=500)
GOOD = {
    b"v": b"1",
    b"question_id": b"q1",
    b"image": b"a/b.jpg",
    b"question": b"What is it?",
    b"ground_truth": b"a dog",
    b"metadata": b'{"a":[1,2.5,null]}',
}


def ended(fields):
    """The job, checked to be whole, or None for a JobFormatError with reasons."""
    try:
        job = decode(fields)
    except JobFormatError as error:
        problems = error.problems
    else:
        again = {name.encode(): value.encode() for name, value in job.encode().items()}
        assert decode(again) == job
        return job
    assert problems
    assert all(isinstance(field, str) and reason.strip() for field, reason in problems)
    return None


NAMES = st.sampled_from([*GOOD, b"", b"V", b"v ", b"\xff", b"extra", b"__class__", b"model_config"])
TOKENS = [
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b",",
        b":",
        b"NaN",
        b"1e999",
        b"-Infinity",
        b"null",
        b"\\ud800",
    ),
    *(b"1", b"true", b"\0", b"\xff", b"\xef\xbb\xbf", b" ", b"\n", b"a", b'"a":', b"9" * 5_000),
]
VALUES = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from(TOKENS), max_size=8).map(b"".join),
    st.sampled_from(list(GOOD.values())),
)


@FUZZ
@given(st.dictionaries(NAMES | st.binary(max_size=10), VALUES, max_size=8))
def test_any_fields_at_all_are_a_job_or_a_reason(fields):
    """Bytes of any kind under any name."""
    ended(fields)


@FUZZ
@given(changes=st.dictionaries(NAMES, VALUES | st.none(), min_size=1, max_size=3))
def test_a_good_entry_with_changes_is_a_job_or_a_reason(changes):
    """Fields replaced, added and (None) left out; the entry's own version still decides first."""
    fields = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
    job = ended(fields)
    if fields.get(b"v") != b"1":
        assert job is None


@FUZZ
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
))  # fmt: skip
def test_any_json_as_metadata_is_kept_or_refused(value):
    """Infinities, NaN and lone surrogates are refused; all else comes back as it was."""
    job = ended({**GOOD, b"metadata": json.dumps(value).encode()})
    if job is not None:
        assert job.metadata == value


@pytest.mark.parametrize(
    "metadata",
    [
        *(b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b'{"a":' + b"9" * 4_301 + b"}"),
        *(b"{" + b" " * (1 << 21) + b"}", b'{"a":"' + b"x" * (1 << 20) + b'"}', b"[]", b"", b"\0"),
        *(
            b'{"a":1e999}',
            b'{"a":NaN}',
            b'{"\\ud800":1}',
            b"null",
            b'"{}"',
            b"{}{}",
            b"\xef\xbb\xbf{}",
        ),
        b'{"a":' + b"[" * (MAX_METADATA_DEPTH + 1) + b"]" * (MAX_METADATA_DEPTH + 1) + b"}",
    ],
    ids=lambda value: repr(value[:16]),
)
def test_metadata_that_is_none_is_refused(metadata):
    """Deep, long, infinite or no object; blanks around an object are no harm."""
    job = ended({**GOOD, b"metadata": metadata})
    assert job is None or job.metadata == {}


@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20])
@pytest.mark.parametrize("field", [b"question", b"ground_truth", b"image", b"question_id"])
def test_a_text_is_accepted_up_to_its_limit(field, size):
    """A mebibyte, not a byte more; an id has 512."""
    job = ended({**GOOD, field: b"x" * size})
    assert (job is not None) == (size <= 1 << 20 and field != b"question_id")


def test_a_python_caller_gets_reasons_too():
    """`parse` of what no file holds: a circle, huge integers, bytes, sets, wrong keys."""
    circle: list[object] = []
    circle.append(circle)
    for value in (
        *({"a": circle}, {"a": 10**10_000}, {"a": b"x"}, {"a": {1, 2}}, {1: 2}, {"a": object()}),
        *({"a": float("nan")}, {"\ud800": 1}, [("a", 1)], "{}", 7, None),
    ):
        with pytest.raises(JobFormatError, match="metadata: "):
            parse(
                {
                    **{k.decode(): v.decode() for k, v in GOOD.items() if k != b"v"},
                    "metadata": value,
                }
            )
    with pytest.raises(JobFormatError, match=r"question_id: .*extra: "):
        parse({"question_id": 7, "image": "a", "question": "b", "ground_truth": "c", "extra": Job})
