"""No image on both sides of a split, whatever the images are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halp_probe.splits import CannotSplit, check_apart, check_folds, folds, most_folds


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(2, 6),
    st.lists(st.integers(1, 12), min_size=30, max_size=60),
    st.floats(0.2, 0.8),
)
def test_no_image_is_on_both_sides(seed, count, sizes, share):
    """Of images of any size; each row is tested once, and both classes are learned from."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    wrong = np.random.default_rng(seed).random(len(groups)) < share
    if most_folds(groups, wrong) < count:
        return
    tested = []
    for train, test in folds(groups, wrong, count, seed):
        assert not set(groups[train]) & set(groups[test])
        assert sorted([*train, *test]) == list(range(len(groups)))
        assert 0 < wrong[train].sum() < len(train)
        tested += test.tolist()
    assert sorted(tested) == list(range(len(groups)))


def test_folds_are_stratified_and_follow_from_the_seed():
    """The share of wrong rows is near that of all; another seed has other folds."""
    groups = np.arange(600) // 3
    wrong = np.random.default_rng(0).random(600) < 0.2
    one, again, other = (folds(groups, wrong, 5, seed) for seed in (1, 1, 2))
    assert all(abs(wrong[test].mean() - wrong.mean()) < 0.03 for _, test in one)
    assert [test.tolist() for _, test in one] == [test.tolist() for _, test in again]
    assert [test.tolist() for _, test in one] != [test.tolist() for _, test in other]


def test_too_few_images_are_refused_with_the_counts():
    """A sentence that says how many there are and what to do; no split."""
    groups = np.arange(20) // 5
    wrong = np.arange(20) % 2 == 0
    with pytest.raises(CannotSplit, match=r"5 folds .*got 4 and 4 of 4 images.*fewer folds"):
        folds(groups, wrong, 5, 0)
    with pytest.raises(CannotSplit, match="0 wrong of 20 rows; label more rows"):
        folds(groups, np.zeros(20, bool), 3, 0)
    with pytest.raises(CannotSplit, match="at least 2 folds"):
        folds(groups, wrong, 1, 0)


def test_a_split_that_leaks_is_refused_whoever_made_it():
    """The check does not trust what makes the folds."""
    groups, wrong = np.arange(8) // 2, np.arange(8) % 2 == 0
    half = np.arange(4)
    with pytest.raises(CannotSplit, match="1 images are in the training and in the test rows"):
        check_apart(groups[:5], groups[5:])
    leaking = [(np.arange(1, 8), np.array([0])), (np.array([0]), np.arange(1, 8))]
    with pytest.raises(CannotSplit, match="in the training and in the test"):
        check_folds(groups, wrong, leaking)
    with pytest.raises(CannotSplit, match="in one test fold, got 4"):
        check_folds(groups, wrong, [(half + 4, half)])
    with pytest.raises(CannotSplit, match="are all right"):
        check_folds(groups, np.arange(8) < 4, [(half + 4, half), (half, half + 4)])
