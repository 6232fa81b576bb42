"""Questions: what they say is true of the scene, and no answer is likelier than another."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from halp_probe.judging.judges import judge_auto
from halp_probe.judging.verdict import Label, Question
from halp_producer.job import parse
from halp_worker.demo.world.dataset import entries, write_dataset
from halp_worker.demo.world.questions import ANSWERS, QUESTION_KINDS
from halp_worker.demo.world.scene import COLOURS, SHAPE_KINDS


@pytest.fixture(scope="module")
def asked():
    """(scene, question) of 400 pictures."""
    return [(one.scene, question) for one in entries(400, seed=3) for question in one.questions]


def answer_from_the_text(scene, text):
    """The right answer, from the question's words alone: shares nothing with what made it."""
    words = re.findall(r"\w+", text.lower())

    def fitting(part):
        colours = {word for word in part if word in COLOURS}
        kinds = {k for k in SHAPE_KINDS for word in part if word in (k, f"{k}s", f"{k}es")}
        return [
            shape
            for shape in scene.shapes
            if (not colours or shape.colour in colours) and (not kinds or shape.kind in kinds)
        ]

    match words:
        case ["is", "there", *_]:
            return "yes" if fitting(words) else "no"
        case ["how", "many", *_]:
            return str(len(fitting(words)))
        case ["what", "colour", *_]:
            (shape,) = fitting(words)
            return shape.colour
        case ["what", "shape", *_]:
            (shape,) = fitting(words)
            return shape.kind
        case ["where", *_]:
            at = words.index("relative")
            (one,), (other,) = fitting(words[:at]), fitting(words[at:])
            right, down = one.x - other.x, one.y - other.y
            if abs(right) > abs(down):
                return "right" if right > 0 else "left"
            return "below" if down > 0 else "above"
    raise AssertionError(text)


def test_every_truth_holds_when_read_from_the_scene(asked):
    """By a second reader of the words, over thousands of questions."""
    wrong = [q for scene, q in asked if answer_from_the_text(scene, q.text) != q.answer]
    assert not wrong


def test_answers_are_those_of_the_kind(asked):
    """A list that tells chance."""
    assert {question.kind for _, question in asked} == set(QUESTION_KINDS)
    assert all(question.answer in ANSWERS[question.kind] for _, question in asked)


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_no_answer_is_likelier_than_another(asked, kind):
    """Each within a quarter of its equal share: who does not look is right at chance only."""
    counts = Counter(question.answer for _, question in asked if question.kind == kind)
    share = counts.total() / len(ANSWERS[kind])
    assert all(0.75 * share < counts[answer] < 1.25 * share for answer in ANSWERS[kind]), counts


def test_about_half_of_what_is_not_there_shares_a_word_with_what_is(asked):
    """Hard negatives: the colour or the kind is in the picture, the two together are not."""
    hard = [
        any(shape.colour in q.text or shape.kind in q.text for shape in scene.shapes)
        for scene, q in asked
        if q.kind == "existence" and q.answer == "no"
    ]
    assert 0.4 < np.mean(hard) < 0.6


def test_a_mention_is_where_the_words_are_and_lists_the_shapes_they_fit(asked):
    """Every shape of it has the colour and kind that the words say."""
    for scene, question in asked:
        for mention in question.mentions:
            words = question.text[mention.start : mention.end].split()
            for number in mention.shapes:
                shape = scene.shapes[number]
                assert all(
                    word in (shape.colour, shape.kind) or word.startswith(("shape", shape.kind))
                    for word in words
                ), question


def test_no_question_is_asked_twice_about_a_picture():
    """Each question of a picture is another text."""
    for one in entries(100, seed=4):
        texts = [question.text for question in one.questions]
        assert len(set(texts)) == len(texts)


def test_a_data_set_is_one_that_can_be_enqueued(tmp_path):
    """Every line is a job, every picture is there, and ids are unique."""
    dataset = write_dataset(tmp_path, 12, seed=7)
    jobs = [parse(json.loads(line)) for line in dataset.read_text().splitlines()]
    assert len({job.question_id for job in jobs}) == len(jobs) == 84
    assert all((tmp_path / "images" / job.image).is_file() for job in jobs)
    assert {job.metadata["kind"] for job in jobs} == set(QUESTION_KINDS)


def test_a_larger_data_set_starts_with_the_smaller_one():
    """The same seed, so that a set can grow."""
    assert list(entries(5, seed=2)) == list(entries(9, seed=2))[:5]
    assert list(entries(5, seed=2)) != list(entries(5, seed=3))


def test_the_command_writes_the_data_set_that_the_function_does(tmp_path):
    """`python -m halp_worker.demo.world`."""
    command = [sys.executable, "-m", "halp_worker.demo.world", "--images", "2", "--seed", "9"]
    subprocess.run([*command, str(tmp_path / "a")], check=True, capture_output=True)
    write_dataset(tmp_path / "b", 2, seed=9)
    for name in ("dataset.jsonl", "images/9-00001.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_judge_of_the_demo_knows_every_answer_of_every_kind(asked):
    """Right where it is the truth, in any case and with a stop, and wrong where it is another."""
    for kind in QUESTION_KINDS:
        question = next(one for _, one in asked if one.kind == kind)
        for said in ANSWERS[kind]:
            for shown in (said, f" {said.title()}.\n"):
                verdict = judge_auto(Question("q", question.text, question.answer, shown))
                expected = Label.RIGHT if said == question.answer else Label.WRONG
                assert verdict.label is expected, verdict
