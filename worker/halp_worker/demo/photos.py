"""Real photographs that other packages' wheels carry, and questions about them.

For tests and benchmarks; the demo's own pictures are of another world. Nothing is downloaded and
nothing is shipped here: the files are copied out of scikit-image and scikit-learn, whose own notes
name their photographers (NASA, SpaceX, R. Michelson, S. van der Walt, Middlebury Stereo,
danielbuechele, vultilion).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from halp_worker.fates import FatalError


@dataclass(frozen=True)
class Photo:
    """package, path: where the wheel has it. questions: (question, ground truth) pairs."""

    package: str
    path: str
    questions: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """The file's name in the demo's folder."""
        return Path(self.path).name.replace("_left", "")


PHOTOS: Final = (
    Photo(
        "skimage",
        "data/astronaut.png",
        (
            ("What colour is the astronaut's suit?", "Orange"),
            ("Is the person wearing a hat?", "No"),
            ("What stands behind her on the right?", "A model of a space shuttle"),
            ("How many flags are there?", "One"),
        ),
    ),
    Photo(
        "skimage",
        "data/chelsea.png",
        (
            ("Which animal is this?", "A cat"),
            ("What colour are its eyes?", "Green"),
            ("Is there a dog in the picture?", "No"),
        ),
    ),
    Photo(
        "skimage",
        "data/coffee.png",
        (
            ("What is in the cup?", "Coffee"),
            ("What lies on the saucer?", "A spoon"),
            ("Is the table made of glass?", "No; it is made of wood"),
        ),
    ),
    Photo(
        "skimage",
        "data/rocket.jpg",
        (
            ("Is the rocket still on the ground?", "Yes"),
            ("Is the sky full of clouds at noon?", "No; it is dusk and the sky is clear"),
        ),
    ),
    Photo(
        "skimage",
        "data/motorcycle_left.png",
        (
            ("What colour is the motorcycle?", "Red"),
            ("How many wheels of the motorcycle can be seen?", "Two"),
            ("Is anybody riding it?", "No"),
        ),
    ),
    Photo(
        "sklearn",
        "datasets/images/china.jpg",
        (
            ("What kind of building is this?", "A pagoda"),
            ("What is behind the building?", "A lake"),
            ("Is it snowing?", "No"),
        ),
    ),
    Photo(
        "sklearn",
        "datasets/images/flower.jpg",
        (
            ("What colour is the flower?", "Orange"),
            ("Is there a bee on the flower?", "No"),
        ),
    ),
)


def write_dataset(folder: Path) -> Path:
    """Copies the photographs to `folder/images` and writes `folder/dataset.jsonl`; returns it.

    Raises FatalError naming the packages if one that carries them is not installed.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    lines = []
    for photo in PHOTOS:
        shutil.copyfile(_package_folder(photo.package) / photo.path, images / photo.name)
        for number, (question, truth) in enumerate(photo.questions, start=1):
            record = {
                "question_id": f"{Path(photo.name).stem}_{number}",
                "image": photo.name,
                "question": question,
                "ground_truth": truth,
                "metadata": {"source": photo.package},
            }
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    dataset = folder / "dataset.jsonl"
    dataset.write_text("".join(lines), encoding="utf-8")
    return dataset


def _package_folder(package: str) -> Path:
    # Without importing it: skimage alone would cost seconds.
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FatalError(f"{package} is not installed: pip install scikit-image scikit-learn")
    return Path(spec.origin).parent
