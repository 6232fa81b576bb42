"""`Query`: which rows meet conditions, and what is said of those that cannot be understood."""

import json

import numpy as np
import pytest

from halp_store import open_store, query
from halp_store.fields import UnknownField
from halp_store.query import FilterError, Query
from halp_store.view import View

ROWS = {
    "a": ("Yes, a dog.", "stop", 3, {"set": "POPE", "score": 0.5, "id": 10**20, "ok": True}),
    "b": ("yes", "length", 12, {"set": "GQA", "score": 10, "id": 10**20 + 1, "n": {"x": "7"}}),
    "c": ("No", "stop", 5, {"set": "POPE", "score": "9", "tags": ["u", "v"]}),
    "d": ("\x1b[31mNo\nway", "stop", 200, {"set": None, "n.x": 3, "score": "high"}),
}
RISKS = {"a": 0.8, "b": np.nan, "c": 0.25, "d": 1.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory, open_writer, make_rows):
    path = tmp_path_factory.mktemp("query") / "s"
    writer = open_writer(path)
    # Of two segments, so that rows of both are put in order.
    for ids in ("bd", "ac"):
        features = make_rows(list(ids))
        rows = [ROWS[one] for one in ids]
        features.text["answer"] = tuple(row[0] for row in rows)
        features.text["finish_reason"] = tuple(row[1] for row in rows)
        features.text["metadata"] = tuple(json.dumps(row[3]) for row in rows)
        features.scores["risk"] = np.array([RISKS[one] for one in ids], np.float32)
        features.integers["answer_tokens"] = np.array([row[2] for row in rows], np.int64)
        writer.append(features)
        writer.flush()
    return open_store(path)


def _ids(store, *filters):
    return "".join(Query.parse(store.layout, filters).ids(store))


@pytest.mark.parametrize(
    ("condition", "ids"),
    [
        ("answer_tokens>5", "bd"),
        ("answer_tokens>=5", "bcd"),
        (" answer_tokens < 12 ", "ac"),
        ("answer_tokens<=3", "a"),
        ("answer_tokens=+12", "b"),
        ("answer_tokens==12", "b"),
        ("answer_tokens!=12", "acd"),
        (f"answer_tokens<{10**40}", "abcd"),
        ("finish_reason=length", "b"),
        ("finish_reason!=length", "acd"),
        ("question_id>=b", "bcd"),
        ("question_id='c'", "c"),
        ("answer~^(Yes|No)", "ac"),
        ("answer~(?i)^yes", "ab"),
        ("answer!~(?i)yes", "cd"),
        ('answer~"\nway"', "d"),
        ("answer=", ""),
        ("question_text~of b, a$", "b"),
    ],
)
def test_columns_compare_by_their_type(store, condition, ids):
    """Integers by size, texts by their characters or a pattern."""
    assert _ids(store, condition) == ids


@pytest.mark.parametrize(
    ("condition", "ids"),
    [
        ("risk>0.5", "ad"),
        ("risk >= 1", "d"),
        ("risk>=.8", "ad"),
        ("risk>0.8", "d"),
        ("risk=0.8", "a"),
        ("risk==8e-1", "a"),
        ("risk!=0.8", "bcd"),
        ("risk<0.8", "c"),
        ("risk<=2.5e-1", "c"),
        ("risk>-1", "acd"),
        ("risk<1e999", "acd"),
        ("risk<-1", ""),
        ("'risk'>0", None),
        ("risk>high", None),
        ("risk>", None),
        ("risk>nan", None),
        ("risk~0", None),
        ("risk!~0", None),
    ],
)
def test_scores_compare_as_numbers(store, condition, ids):
    """In float32, as they are stored: 0.8 finds 0.8. Where there is none, `!=` alone is met."""
    if ids is not None:
        assert _ids(store, condition) == ids
        return
    with pytest.raises(FilterError, match=r"holds numbers|no column"):
        _ids(store, condition)


@pytest.mark.parametrize(
    ("condition", "ids"),
    [
        ("metadata.set=POPE", "ac"),
        ("metadata.set!=POPE", "bd"),
        ("metadata.score>5", "bcd"),
        ("metadata.score>9.5", "bd"),
        ("metadata.score=9.0", "c"),
        ("metadata.score<1e0", "a"),
        ("metadata.score~^hi", "d"),
        (f"metadata.id={10**20}", "a"),
        (f"metadata.id>{10**20}", "b"),
        ("metadata.n.x=7", "b"),
        ("metadata.n.x<=7", "bd"),
        ("metadata.ok=true", "a"),
        ("metadata.ok!=true", "bcd"),
        ("metadata.set~.", "abc"),
        ("metadata.set!~.", "d"),
        ('metadata.tags~"v"', "c"),
        ("metadata~POPE", "ac"),
    ],
)
def test_metadata_compares_as_numbers_where_both_are(store, condition, ids):
    """Also those that a CSV wrote as text; exactly, so that long ids stay apart; else as text."""
    assert _ids(store, condition) == ids


@pytest.mark.parametrize("name", ["answer", "answer_tokens", "metadata.set", "metadata.score"])
def test_not_equal_is_all_that_equal_leaves_out(store, name):
    """A row without the metadata too: no row is lost between the two."""
    for value in ("5", "9", "12", "POPE", "yes"):
        if name == "answer_tokens" and not value.isdecimal():
            continue
        for sign in ("=", "~")[: 1 if name == "answer_tokens" else 2]:
            met = _ids(store, f"{name}{sign}{value}")
            assert _ids(store, f"{name}!{sign}{value}") == "".join(sorted({*"abcd"} - {*met}))


def test_all_conditions_have_to_hold(store):
    """And without any, every row is wanted."""
    assert _ids(store, "finish_reason=stop", "answer_tokens>3", "metadata.set=POPE") == "c"
    assert _ids(store) == "abcd"


def test_rows_come_in_the_order_of_the_view(store):
    """A query can ask a part of a store, too."""
    assert _ids(store[["d", "b", "a"]], "answer_tokens>5") == "db"


def test_only_what_is_compared_is_read(store, monkeypatch):
    """No vectors, and each column once, in batches."""
    read, asked = View.read, []

    def spy(view, columns, **options):
        asked.append((len(view), tuple(columns)))
        return read(view, columns, **options)

    monkeypatch.setattr(View, "read", spy)
    monkeypatch.setattr(query, "BATCH_ROWS", 3)
    assert _ids(store, "answer~o", "answer_tokens>3", "metadata.n.x=3", "metadata.score~.") == "d"
    columns = ("answer", "answer_tokens", "metadata")
    assert asked == [(3, columns), (1, columns)]


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("nope=1", r"no column 'nope'; there are question_id, .* and metadata\.NAME"),
        ("__import__('os').getcwd()=1", "no column .__import__"),
        ("query_token>1", "'query_token' is a column of vectors"),
        ("image_grid_thw=1", "'image_grid_thw' has three numbers a row"),
        ("metadata.=1", "no column 'metadata.'"),
        ("answer", "expected COLUMN, one of = != < <= > >= ~ !~, and a value"),
        (">5", "expected COLUMN"),
        ("", "expected COLUMN"),
        ("answer~(", "not a regular expression: missing"),
        ("answer_tokens>five", "answer_tokens holds integers: expected one, got 'five'"),
        ("answer_tokens>5.5", "expected one, got '5.5'"),
        ("answer_tokens>5 and x=y", "give each condition as an argument of its own"),
        ("answer_tokens~5", "holds integers: expected one of < <= > >= = !="),
    ],
)
def test_what_cannot_be_understood_is_an_error_that_says_what_was_expected(store, condition, said):
    """Before anything is read, and nothing of it is run."""
    with pytest.raises(FilterError, match=said):
        Query.parse(store.layout, ["answer=x", condition])


def test_all_that_is_wrong_is_said_at_once(store):
    """A line for each condition."""
    with pytest.raises(FilterError) as error:
        Query.parse(store.layout, ["nope=1", "answer=x", "answer~("])
    first, second = str(error.value).splitlines()
    assert first.startswith("nope=1: no column")
    assert second.startswith("answer~(: not a regular")


def test_metadata_that_no_row_has_is_an_error_that_says_which_there_is(store):
    """A misspelt name would else mean no row, or with `!=` every row."""
    with pytest.raises(UnknownField, match=r"no row has metadata\.sett; .* metadata\.set\b"):
        _ids(store, "metadata.sett!=POPE")


def test_an_empty_store_has_no_rows_that_meet_a_condition(tmp_path, open_writer):
    """Nor can it be said then that metadata is misspelt."""
    open_writer(tmp_path / "s")
    assert _ids(open_store(tmp_path / "s"), "metadata.set=POPE") == ""


def test_conditions_that_were_joined_get_a_hint(store):
    """A text column takes the second one for a part of the value."""
    joined = Query.parse(store.layout, ["finish_reason=stop and answer_tokens>5"])
    assert joined.ids(store) == []
    assert "an argument of its own" in joined.hint
    assert Query.parse(store.layout, ["finish_reason=stop"]).hint is None
