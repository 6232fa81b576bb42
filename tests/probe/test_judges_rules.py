"""What holds for every judge, and what each one is for."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halp_probe.judging.judges import NAMES, judge_auto, judge_named
from halp_probe.judging.kinds import options_of
from halp_probe.judging.normalise import truth_of, words
from halp_probe.judging.verdict import Kind, Label, Question

RIGHT, WRONG, ABSTAINED, UNJUDGED = Label.RIGHT, Label.WRONG, Label.ABSTAINED, Label.UNJUDGED

PIECES = [
    *("yes", "no", "No,", "there is no", "not", "dog", "red", "or", "and", "a", "the", "one"),
    *(
        "two",
        "3",
        "1,000",
        "3.5",
        "-5",
        "50%",
        "(A)",
        "B.",
        "A.",
        ";",
        "|",
        "/",
        ",",
        "n, o",
        "['no']",
    ),
    *(
        "I cannot tell",
        "unanswerable",
        "hundred",
        "dozen",
        "but",
        "\n",
        "\u00df",
        "\u0130",
        "caf\u00e9",
    ),
    *(
        "\U0001f600",
        "\u0915\u093f",
        "\u00b2",
        "\u00bd",
        "\u2163",
        "\u0663",
        "\x00",
        "\u202e",
        "Is there",
    ),
]
TEXTS = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join))
ASCII = st.lists(
    st.sampled_from([one for one in PIECES if one.isascii() and one != "\x00"]), max_size=8
).map(" ".join)
REASONS = st.sampled_from(["stop", "length", "abstained", "skipped", "failed", ""])


def judged(truth, answer, question="What is it?", judge="auto", **changes):
    verdict = judge_named(judge)(Question("q", question, truth, answer, **changes))
    return verdict.label


@pytest.mark.parametrize("name", NAMES)
@given(question=TEXTS, truth=TEXTS, answer=TEXTS, reason=REASONS)
@settings(max_examples=60, deadline=None)
def test_no_text_is_too_odd_for_a_judge(name, question, truth, answer, reason):
    """Every judge says something of everything, with a rule."""
    verdict = judge_named(name)(Question("q", question, truth, answer, reason))
    assert verdict.rule


@pytest.mark.parametrize(
    "piece", ["no ", "1,", "million ", "one hundred and ", "((", "a/", "['a',"]
)
def test_a_model_that_repeats_itself_does_not_stop_a_judge(piece):
    """Nor a truth like that."""
    long = piece * 3000
    for row in ((long, "no", "no"), ("Is it?", long, "no"), ("How many?", "3", long)):
        assert judge_auto(Question("q", *row)).rule


@given(question=TEXTS, truth=TEXTS)
@settings(max_examples=200, deadline=None)
def test_a_truth_is_right_as_its_own_answer(question, truth):
    """Wherever there is a truth."""
    verdict = judge_auto(Question("q", question, truth, truth))
    assert verdict.label in ({RIGHT} if verdict.kind is not Kind.NONE else {UNJUDGED})


@given(question=ASCII, truth=ASCII, answer=ASCII, around=st.sampled_from(['"{}"', "{}.", " {}! "]))
@settings(max_examples=300, deadline=None)
def test_case_and_what_is_around_an_answer_do_not_count(question, truth, answer, around):
    """Nor do spaces."""
    plain = judge_auto(Question("q", question, truth, answer))
    for other in (answer.upper(), answer.swapcase(), around.format(answer)):
        assert judge_auto(Question("q", question, truth, other)).label is plain.label, other


@pytest.mark.parametrize("judge", NAMES)
def test_what_was_not_answered_is_not_judged(judge):
    """For its risk, for an error, or because a published script failed."""
    assert judged("no", "", judge=judge, finish_reason="abstained") is ABSTAINED
    assert judged("no", "yes", judge=judge, finish_reason="failed") is UNJUDGED
    assert judged("no", "", judge=judge, finish_reason="skipped") is UNJUDGED
    assert judged("no", "[Generation failed]", judge=judge) is UNJUDGED


def test_an_answer_that_was_cut_off_is_judged():
    """What it says, it says."""
    assert judged("red", "It is red because", finish_reason="length") is RIGHT


@pytest.mark.parametrize(
    ("truth", "answer", "label"),
    [
        ("No", "no", RIGHT),
        ("No", " No.\n", RIGHT),
        ("two  cats", "Two cats", RIGHT),
        ("\uff12", "2", RIGHT),
        ("n, o", "No", RIGHT),
        ("No", "No, there is none.", WRONG),
        ("3.5", "35", WRONG),
        ("2", "two", WRONG),
        ("Yes", "No", WRONG),
        ("Yes", "I cannot tell", ABSTAINED),
        ("", "No", UNJUDGED),
        ("No", "", UNJUDGED),
        ("?", "No", UNJUDGED),
    ],
)
def test_exact_forgives_case_spaces_and_outer_punctuation_alone(truth, answer, label):
    """Every truth is compared, whatever its kind."""
    assert judged(truth, answer, judge="exact") is label


@pytest.mark.parametrize("judge", ["yesno", "numeric", "choice"])
def test_a_judge_of_one_kind_leaves_the_others(judge):
    """Even an answer that is the truth."""
    of_kind = {
        "yesno": ("Is it?", "yes", "Yes, it is", "No"),
        "numeric": ("How many?", "3", "three", "4"),
        "choice": ("Which? (A) red (B) blue", "B", "blue", "red"),
    }
    for name, (question, truth, right, wrong) in of_kind.items():
        expected = (RIGHT, WRONG) if name == judge else (UNJUDGED, UNJUDGED)
        given_labels = tuple(judged(truth, one, question, judge) for one in (right, wrong))
        assert given_labels == expected, name
        if name != judge:
            assert judged(truth, truth, question, judge) is UNJUDGED
    assert judged("a cat", "a cat", judge=judge) is UNJUDGED


@pytest.mark.parametrize(
    ("truth", "answer", "label"),
    [
        ("no", "Yes.", WRONG),
        ("yes", "No, but yes", WRONG),
        ("no", "I cannot tell", RIGHT),
        ("no", "There is a dog with no collar", RIGHT),
        ("three", "four", RIGHT),
        ("red", "blue", RIGHT),
        ("n, o", "yes", RIGHT),
        ("", "yes", RIGHT),
    ],
)
def test_the_published_rule_calls_wrong_only_what_says_yes_for_no(truth, answer, label):
    """Its mistakes are repeated: a wrong open answer counts as right."""
    assert judged(truth, answer, judge="halp-reference") is label


def test_synonyms_are_added_to_those_that_are_built_in():
    """Groups that share a phrase are one."""
    judge = judge_named("auto", [["crimson", "dark red"], ["gray", "ash"], ["dark red", "wine"]])
    for truth, answer in (("crimson", "dark red"), ("grey", "ash"), ("wine", "It is crimson.")):
        assert judge(Question("q", "What?", truth, answer)).label is RIGHT
    assert judged("crimson", "dark red") is WRONG


def test_a_repaired_truth_is_said():
    """Nobody should wonder where "no" came from."""
    verdict = judge_auto(Question("q", "Is there?", "n, o", "yes"))
    assert verdict.note == "the truth 'n, o' is read as 'no'"
    assert judge_auto(Question("q", "Is there?", "no", "yes")).note == ""


@pytest.mark.parametrize("truth", ["A, B", "1, 2", "a, b, c", "x", "red, blue", "B, D, A"])
def test_a_list_stays_a_list(truth):
    """Letters and digits that are listed are no spelled word."""
    assert not truth_of(truth).repaired


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Twenty-two", "22"),
        ("two hundred and five thousand", "205000"),
        ("one two three", "1 2 3"),
        ("a hundred", "100"),
        ("two dozen", "24"),
        ("The Cat's  pyjamas!", "cats pyjamas"),
        ("the", "the"),
        ("2.50", "2.5"),
        ("1,000,000", "1000000"),
        ("10,5", "10 5"),
        ("no one", "no one"),
        ("a\u200bb", "ab"),
        ("9" * 50, "9" * 50),
    ],
)
def test_words_are_what_two_ways_of_writing_have_in_common(text, expected):
    """Number words are digits; articles, case and punctuation are gone."""
    assert " ".join(words(text)) == expected


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Which? (A) red (B) blue", {"a": "red", "b": "blue"}),
        ("Which?\nA. red\nB. blue, dark\nC. x", {"a": "red", "b": "blue, dark", "c": "x"}),
        ("Which? A) 1 B) 2", {"a": "1", "b": "2"}),
        ("Choices:\n(A) 1/2\n(B) 0.5", {"a": "1/2", "b": "0.5"}),
        ("Which?\n(A) 6\n(B) 8\nSay the letter.", {"a": "6", "b": "8"}),
        ("Is it A. Smith?", {}),
        ("What is (B)? Or (A)?", {}),
        ("", {}),
    ],
)
def test_options_are_letters_in_order_with_a_text(question, expected):
    """From A on, two at least."""
    assert options_of(question) == expected


def test_the_examples_of_the_documentation_are_true():
    """Each line of its table of kinds."""
    text = (Path(__file__).parents[2] / "docs/labels.md").read_text(encoding="utf-8")
    found = re.findall(
        r"^\|.*\| ([^|`]+) \u00b7 `([^`]+)` \u00b7 \"([^\"]+)\"[^|]*\| (\w+) \|$", text, re.M
    )
    assert len(found) >= 14
    for question, truth, answer, label in found:
        assert judged(truth, answer, question) == label, (question, truth, answer)


@pytest.mark.parametrize(
    ("question", "truth", "answer", "label"),
    [
        ("How many dogs are there?", "none", "0", Label.RIGHT),
        ("How many dogs are there?", "None", "There are no dogs.", Label.RIGHT),
        ("How many dogs are there?", "no dogs", "Two.", Label.WRONG),
        ("When?", "2 pm", "2 am", Label.WRONG),
        ("When?", "2 pm", "At 2 pm.", Label.RIGHT),
        ("Where?", "Caf\u00e9 M\u00fcller", "In the cafe Muller.", Label.RIGHT),
        ("What?", "-5", "minus 5", Label.RIGHT),
        ("What?", "\u22125 degrees", "-5", Label.RIGHT),
        ("What?", "-5", "5", Label.WRONG),
        ("What?", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u0928\u0926", Label.WRONG),
    ],
)
def test_one_thing_written_in_two_ways_is_one_thing(question, truth, answer, label):
    """None is zero where it is asked how many, accents may be left out, and a time is no number."""
    assert judge_auto(Question("q", question, truth, answer)).label is label
