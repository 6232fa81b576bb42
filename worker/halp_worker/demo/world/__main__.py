"""`python -m halp_worker.demo.world --images 400 --seed 7 OUT`: a fresh data set of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halp_worker.demo.world.dataset import QUESTIONS_PER_PICTURE, write_dataset


def main(
    out: Annotated[Path, typer.Argument(help="Folder for images/ and dataset.jsonl; made if new.")],
    images: Annotated[
        int, typer.Option(min=1, help=f"Pictures, with {QUESTIONS_PER_PICTURE} questions each.")
    ] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same data set.")] = 7,
) -> None:
    """Write pictures of coloured shapes and questions about them that no training has seen."""
    dataset = write_dataset(out, images, seed)
    typer.echo(f"{images * QUESTIONS_PER_PICTURE} questions on {images} pictures: {dataset}")


if __name__ == "__main__":
    typer.run(main)
