"""Whether an answer is the truth, letter for letter once both are tidied."""

import pytest

from halp_worker.dashboard.agreement import agreement


@pytest.mark.parametrize(
    ("truth", "answer", "expected"),
    [
        ("No", "no", "matches"),
        ("No", " No.\n", "matches"),
        ("two  cats", "Two cats", "matches"),
        ("\uff12", "2", "matches"),
        ("No", "No, there is none.", "differs"),
        ("3.5", "35", "differs"),
        ("Yes", "No", "differs"),
        ("", "No", None),
        ("No", "", None),
        ("?", "No", None),
    ],
)
def test_case_spaces_and_outer_punctuation_do_not_count(truth, answer, expected):
    """Nothing else is forgiven, and where one of both is empty there is nothing to say."""
    assert agreement(truth, answer) == expected
