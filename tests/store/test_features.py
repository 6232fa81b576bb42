"""`FeatureBatch` lets nothing through that a store should not hold."""

import dataclasses

import numpy as np
import pytest

from halp_store.features import FeatureBatch


def _with(features, **columns):
    changed = {
        kind: dict(getattr(features, kind)) for kind in ("text", "integers", "vectors", "scores")
    }
    for kind in changed.values():
        for name in kind:
            kind[name] = columns.get(name, kind[name])
    return FeatureBatch(features.layout, **changed)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("vision_only", np.full((1, 8), np.nan, np.float32), "values that are not finite"),
        ("query_token", np.full((1, 2, 8), np.inf, np.float32), "values that are not finite"),
        ("query_token", np.zeros((1, 3, 8), np.float32), r"expected float32 \(1, 2, 8\)"),
        ("vision_only", np.zeros((1, 8)), "got float64"),
        ("risk", np.full((1,), -np.inf, np.float32), "values that are infinite"),
        ("risk", np.zeros((1, 1), np.float32), r"expected float32 \(1,\)"),
        ("risk", np.zeros((1,)), "got float64"),
        ("prompt_tokens", np.zeros((1,), np.int32), "expected int64"),
        ("answer", ("one", "two"), "expected 1 rows, got 2"),
    ],
)
def test_a_column_of_another_shape_or_kind_is_refused(make_rows, column, value, message):
    """The column is named, with what was expected and what came."""
    with pytest.raises(ValueError, match=f"column {column}: .*{message}"):
        _with(make_rows(["a"]), **{column: value})


@pytest.mark.parametrize("kind", ["text", "integers", "vectors", "scores"])
def test_a_missing_column_is_refused(make_rows, kind):
    """Exactly the layout's columns, no fewer."""
    features = make_rows(["a"])
    fewer = dict(list(getattr(features, kind).items())[1:])
    with pytest.raises(ValueError, match="columns: expected"):
        dataclasses.replace(features, **{kind: fewer})


def test_rows_can_be_taken_and_put_together(make_rows):
    """`take` and `concatenate` keep every column in step."""
    one, two = make_rows(["a", "b"]), make_rows(["c"])
    both = FeatureBatch.concatenate([one, two])
    assert both.keys == one.keys + two.keys
    back = both.take([2, 0])
    assert back.keys == (two.keys[0], one.keys[0])
    np.testing.assert_array_equal(back.vectors["query_token"][0], two.vectors["query_token"][0])
    np.testing.assert_array_equal(back.scores["risk"], both.scores["risk"][[2, 0]])
    assert back.text["answer"] == (two.text["answer"][0], one.text["answer"][0])
