"""Questions about a scene of the synthetic world, and what is true of it.

Every question has one right answer of one word. Answers are balanced over a set of questions by a
tally: of what may be asked about a scene, that is asked whose answer was given least so far. So a
model that does not look at the picture is right at chance only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from halp_worker.demo.world.scene import COLOURS, MAX_SHAPES, SHAPE_KINDS, Scene, Shape

QUESTION_KINDS: Final = ("existence", "colour", "shape", "count", "relation")

DIRECTIONS: Final = ("left", "right", "above", "below")

ANSWERS: Final = {
    "existence": ("yes", "no"),
    "colour": tuple(COLOURS),
    "shape": SHAPE_KINDS,
    "count": tuple(str(number) for number in range(MAX_SHAPES + 1)),
    "relation": DIRECTIONS,
}
"""Question kind to every answer it can have; chance is one over their number."""

_CLEAR_PX: Final = 14.0
_CLEAR_RATIO: Final = 1.6
"""A direction is asked for where one axis parts the shapes by this much, and that much more than
the other: what is left of a picture's shape is then not a matter of taste."""


@dataclass(frozen=True)
class Mention:
    """Shapes that a question names.

    start, end: the naming words' place in the question's text, in characters.
    shapes: indices into the scene's shapes of those that the words fit; empty if none does.
    """

    start: int
    end: int
    shapes: tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """kind: of QUESTION_KINDS. answer: the right one, of ANSWERS[kind]."""

    kind: str
    text: str
    answer: str
    mentions: tuple[Mention, ...]


class Tally:
    """How often each answer of each kind was given; what keeps a set of questions balanced."""

    def __init__(self) -> None:
        self._given: Counter[tuple[str, str]] = Counter()

    def choose(self, rng: np.random.Generator, candidates: Sequence[Question]) -> Question:
        """One of the candidates with the answer given least so far, and counts it."""
        fewest = min(self._given[question.kind, question.answer] for question in candidates)
        rarest = [q for q in candidates if self._given[q.kind, q.answer] == fewest]
        # An answer first, then a question that has it: many ways of asking make none likelier.
        answers = sorted({question.answer for question in rarest})
        answer = answers[int(rng.integers(len(answers)))]
        fitting = [question for question in rarest if question.answer == answer]
        chosen = fitting[int(rng.integers(len(fitting)))]
        self._given[chosen.kind, chosen.answer] += 1
        return chosen


def ask(
    scene: Scene, rng: np.random.Generator, tally: Tally, kinds: Sequence[str]
) -> tuple[Question, ...]:
    """One question of each of `kinds`, no text twice.

    Where a scene allows none of a kind (no two shapes, no relation), one on existence takes its
    place, which every scene allows.
    """
    asked: dict[str, Question] = {}
    for kind in kinds:
        candidates = [q for q in _CANDIDATES[kind](scene, rng) if q.text not in asked]
        if not candidates:
            candidates = [q for q in _existence(scene, rng) if q.text not in asked]
        question = tally.choose(rng, candidates)
        asked[question.text] = question
    return tuple(asked.values())


def _existence(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """All that are there; of those that are not, as many hard ones (one word fits) as easy ones."""
    hard, easy = [], []
    for colour in COLOURS:
        for kind in SHAPE_KINDS:
            fitting = _fitting(scene, colour=colour, kind=kind)
            before = "Is there an " if colour[0] in "aeiou" else "Is there a "
            answer = "yes" if fitting else "no"
            question = _question("existence", before, f"{colour} {kind}", "?", answer, fitting)
            if fitting:
                yield question
            elif _fitting(scene, colour=colour) or _fitting(scene, kind=kind):
                hard.append(question)
            else:
                easy.append(question)
    yield from hard if not easy or rng.random() < 0.5 else easy


def _colour(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    for kind in SHAPE_KINDS:
        fitting = _fitting(scene, kind=kind)
        if len(fitting) == 1:
            colour = scene.shapes[fitting[0]].colour
            yield _question("colour", "What colour is the ", kind, "?", colour, fitting)


def _shape(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    for colour in COLOURS:
        fitting = _fitting(scene, colour=colour)
        if len(fitting) == 1:
            kind = scene.shapes[fitting[0]].kind
            yield _question("shape", "What shape is the ", colour, " thing?", kind, fitting)


def _count(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    named = [
        (f"{kind}s" if kind != "cross" else "crosses", _fitting(scene, kind=kind))
        for kind in SHAPE_KINDS
    ]
    named += [(f"{colour} shapes", _fitting(scene, colour=colour)) for colour in COLOURS]
    named.append(("shapes", tuple(range(len(scene.shapes)))))
    for words, fitting in named:
        yield _question("count", "How many ", words, " are there?", str(len(fitting)), fitting)


def _relation(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    for first, one in enumerate(scene.shapes):
        for second, other in enumerate(scene.shapes):
            if first == second or not (_alone(scene, one) and _alone(scene, other)):
                continue
            direction = direction_from(other, one)
            if direction is None:
                continue
            start = "Where is the "
            middle = f"{one.colour} {one.kind}"
            between = " relative to the "
            last = f"{other.colour} {other.kind}"
            at = len(start) + len(middle) + len(between)
            yield Question(
                kind="relation",
                text=f"{start}{middle}{between}{last}?",
                answer=direction,
                mentions=(
                    Mention(len(start), len(start) + len(middle), (first,)),
                    Mention(at, at + len(last), (second,)),
                ),
            )


def direction_from(origin: Shape, shape: Shape) -> str | None:
    """Where `shape` is, seen from `origin`: of DIRECTIONS, or None if it is a matter of taste."""
    right, down = shape.x - origin.x, shape.y - origin.y
    if abs(right) > max(_CLEAR_PX, _CLEAR_RATIO * abs(down)):
        return "right" if right > 0 else "left"
    if abs(down) > max(_CLEAR_PX, _CLEAR_RATIO * abs(right)):
        return "below" if down > 0 else "above"
    return None


def _question(
    kind: str, before: str, words: str, after: str, answer: str, shapes: tuple[int, ...]
) -> Question:
    mention = Mention(len(before), len(before) + len(words), shapes)
    return Question(kind, before + words + after, answer, (mention,))


def _fitting(
    scene: Scene, *, colour: str | None = None, kind: str | None = None
) -> tuple[int, ...]:
    return tuple(
        index
        for index, shape in enumerate(scene.shapes)
        if colour in (None, shape.colour) and kind in (None, shape.kind)
    )


def _alone(scene: Scene, shape: Shape) -> bool:
    return len(_fitting(scene, colour=shape.colour, kind=shape.kind)) == 1


_CANDIDATES: Final[dict[str, Callable[[Scene, np.random.Generator], Iterator[Question]]]] = {
    "existence": _existence,
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "relation": _relation,
}
