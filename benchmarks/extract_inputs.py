"""Inputs like the published data set's: mixed pictures, about two questions each, JPEG files.

Pictures are random cuts from the demo's real photographs (from generated ones where the packages
that carry those are not installed). Same seed, same inputs. Knows no model; lengths are counted
with the tokenizer it is given.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from halp_worker.demo.photos import write_dataset
from halp_worker.fates import FatalError

PATCH_AREA: Final = 28 * 28
"""Pixels of one image token."""

QUESTIONS: Final = (1, 2, 3, 4)
QUESTION_WEIGHTS: Final = (0.35, 0.35, 0.25, 0.05)
"""Of one picture; 2.0 in the mean, as 10,000 questions on 4,852 images are."""

RATIOS: Final = (1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9)
OPENINGS: Final = ("Is there", "What colour is", "How many", "Where does", "What is on", "Does")
WORDS: Final = (
    "a cat in the picture flower people astronaut stand table rocket fly at night yes no the of on "
    "is red green blue orange white black one two three left right above below cup spoon coffee "
    "temple roof water sky tree eyes helmet flag smoke tower wheel"
)


@dataclass(frozen=True)
class Question:
    """One line of the data set."""

    question_id: str
    image: str
    question: str


@dataclass(frozen=True)
class Inputs:
    """dataset: the JSONL file of `questions`, in its order. images: the folder they name."""

    questions: tuple[Question, ...]
    dataset: Path
    images: Path

    def path(self, question: Question) -> Path:
        return self.images / question.image

    def first(self, count: int, dataset: Path) -> Inputs:
        """At least `count` questions, of as few pictures as that takes, as a data set of its own:
        every picture with all its questions, one after the other."""
        chosen: list[Question] = []
        for image in dict.fromkeys(one.image for one in self.questions):
            chosen += [one for one in self.questions if one.image == image]
            if len(chosen) >= count:
                break
        return _written(chosen, dataset, self.images)


@dataclass(frozen=True)
class Sizes:
    """Means: image tokens of a picture, tokens of a question's own text. Both vary around them."""

    image_tokens: int
    question_tokens: int


def make_inputs(
    folder: Path,
    samples: int,
    sizes: Sizes,
    *,
    seed: int,
    name: str,
    count_tokens: Callable[[str], int],
    shuffled: bool = True,
) -> Inputs:
    """Writes `samples` questions and their pictures below `folder`.

    shuffled: the lines, so that questions of one picture are apart.
    """
    chance = random.Random(f"{seed} {name}")
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    photos = _photos(folder / "photos", seed)
    questions: list[Question] = []
    while len(questions) < samples:
        picture = f"{name}_{len(questions):05}.jpg"
        _cut(photos, sizes.image_tokens, chance).save(images / picture, quality=90)
        for _ in range(chance.choices(QUESTIONS, QUESTION_WEIGHTS)[0]):
            text = _question(sizes.question_tokens, chance, count_tokens)
            questions.append(Question(f"{name}_{len(questions)}", picture, text))
    del questions[samples:]
    if shuffled:
        chance.shuffle(questions)
    return _written(questions, folder / f"{name}.jsonl", images)


def _written(questions: Sequence[Question], dataset: Path, images: Path) -> Inputs:
    lines = [
        json.dumps(
            {
                "question_id": one.question_id,
                "image": one.image,
                "question": one.question,
                "ground_truth": "No",
                "metadata": {"category": "existence", "dataset": "benchmark"},
            }
        )
        for one in questions
    ]
    dataset.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Inputs(tuple(questions), dataset, images)


def _photos(folder: Path, seed: int) -> list[Image.Image]:
    try:
        write_dataset(folder)
    except FatalError:
        return _generated(seed)
    files = sorted((folder / "images").iterdir())
    return [Image.open(path).convert("RGB") for path in files]


def _generated(seed: int) -> list[Image.Image]:
    """Clouds of colour with some grain: about as hard to compress as a photograph."""
    drawn = np.random.default_rng(seed)
    photos = []
    for _ in range(6):
        coarse = drawn.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((640, 480)), dtype=np.int16)
        grain = drawn.integers(-12, 13, smooth.shape, dtype=np.int16)
        photos.append(Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)))
    return photos


def _cut(photos: Sequence[Image.Image], image_tokens: int, chance: random.Random) -> Image.Image:
    """A random part of one of them, at the size that gives about so many tokens."""
    photo = chance.choice(photos)
    ratio = chance.choice(RATIOS)
    area = image_tokens * PATCH_AREA * chance.uniform(0.7, 1.3)
    width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
    scale = chance.uniform(0.6, 1.0) * min(photo.width / ratio, photo.height)
    cut_width, cut_height = scale * ratio, scale
    left = chance.uniform(0, photo.width - cut_width)
    top = chance.uniform(0, photo.height - cut_height)
    box = (left, top, left + cut_width, top + cut_height)
    return photo.resize((width, height), Image.Resampling.BICUBIC, box=box)


def _question(tokens: int, chance: random.Random, count_tokens: Callable[[str], int]) -> str:
    wanted = tokens * chance.uniform(0.4, 1.6)
    text, words = chance.choice(OPENINGS), WORDS.split()
    while count_tokens(text + "?") < wanted:
        text += " " + chance.choice(words)
    return text + "?"
