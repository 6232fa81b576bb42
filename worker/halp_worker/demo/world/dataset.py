"""A data set of the synthetic world: pictures, and questions as `halp-producer enqueue` reads them.

Made from a seed alone. No scene of it is ever seen in training, whatever the two seeds are; a
larger set of the same seed starts with the smaller one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from halp_worker.demo.world.questions import Question, Tally, ask
from halp_worker.demo.world.scene import Scene, draw, make_scene

HELD_OUT: Final = 2
"""First part of the seed of every data set; training has another there."""

PLAN: Final = ("existence", "colour", "shape", "count", "count", "relation", "relation")
"""Kinds of the questions on one picture; many scenes have no relation and get existence for it."""

HARDEST: Final = 2.0
"""Scenes are up to this difficult; training ends at 1, where the model is nearly always right."""

QUESTIONS_PER_PICTURE: Final = len(PLAN)


@dataclass(frozen=True)
class Entry:
    """One picture of a data set and its questions."""

    name: str
    scene: Scene
    questions: tuple[Question, ...]


def entries(pictures: int, seed: int) -> Iterator[Entry]:
    """The data set's entries, one by one; nothing is drawn yet."""
    tally = Tally()
    for number in range(pictures):
        rng = np.random.default_rng((HELD_OUT, seed, number))
        scene = make_scene(rng, difficulty_limit=HARDEST)
        yield Entry(f"{seed}-{number:05d}", scene, ask(scene, rng, tally, PLAN))


def write_dataset(folder: Path, pictures: int, seed: int) -> Path:
    """Writes `folder/images/*.png` and `folder/dataset.jsonl`; returns the latter.

    A question's metadata says its kind and what made it hard: the scene's difficulty, its
    noise (standard deviation, of 255), and the opacity (0 to 1) of the faintest shape it names.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    lines = []
    for entry in entries(pictures, seed):
        image = f"{entry.name}.png"
        Image.fromarray(draw(entry.scene)).save(images / image, optimize=True)
        for number, question in enumerate(entry.questions, start=1):
            record = {
                "question_id": f"{entry.name}-{number}",
                "image": image,
                "question": question.text,
                "ground_truth": question.answer,
                "metadata": _metadata(entry.scene, question),
            }
            lines.append(json.dumps(record) + "\n")
    dataset = folder / "dataset.jsonl"
    dataset.write_text("".join(lines), encoding="utf-8")
    return dataset


def _metadata(scene: Scene, question: Question) -> dict[str, Any]:
    named = [scene.shapes[at].opacity for mention in question.mentions for at in mention.shapes]
    return {
        "kind": question.kind,
        "difficulty": round(scene.difficulty, 3),
        "noise": round(scene.noise, 2),
        "opacity": round(min(named), 3) if named else None,
        "shapes": len(scene.shapes),
    }
