"""Pictures and questions as one batch: many questions behind one picture in a single sequence.

A sequence is the chat's start with the picture (the prefix), then each question with its answer.
Each question sees the prefix and itself only and is placed as if it stood there alone, so what the
network computes for it equals a forward of that question by itself, at an eighth of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from halp_worker.demo.world.questions import QUESTION_KINDS, Question, Tally, ask
from halp_worker.demo.world.scene import (
    COLOURS,
    SHAPE_KINDS,
    SIZES,
    Scene,
    Shape,
    coverage,
    draw,
    make_scene,
)

CELL_PX: Final = 28
"""Side of what one image token shows: two by two patches of 14 pixels."""

_MIN_COVERED: Final = 0.06
"""A shape counts as shown by a token from this share of its cell on; less is but an edge."""

NOTHING: Final = -1


@dataclass(frozen=True)
class Batch:
    """B pictures of one size with Q questions each; T tokens a sequence, N image tokens a picture.

    pixel_values: float32 [B * patches, 1176], grid: int64 [B, 3], as the processor makes them.
    input_ids: int64 [B, T]. positions: int64 [3, B, T]. mask: bool [B, 1, T, T], True where seen.
    asked: int64 [B * Q, 2], sequence and place of each prompt's last token; the answer follows it.
    answers: int64 [B * Q, 2], the answer's token and the one that ends the turn.
    kinds: int64 [B * Q], index into QUESTION_KINDS.
    named: int64 [M, 2], places of words that name shapes. matches: int64 [M], how many they fit.
    named_kinds, named_colours: int64 [M], of the one shape; NOTHING if not one.
    spots: float32 [M, 2], where the one shape is, -1 to 1 across and down; NaN if not one.
    steps: float32 [B * Q, 2], from the second named shape to the first; NaN if not a relation.
    cell_kinds, cell_colours: int64 [B * N], what each image token shows; NOTHING where nothing.
    cell_spots: float32 [B * N, 2], centre of the shape shown, NaN where nothing.
    cell_centres: float32 [B * N], how many shapes have their centre there.
    """

    pixel_values: torch.Tensor
    grid: torch.Tensor
    input_ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    asked: torch.Tensor
    answers: torch.Tensor
    kinds: torch.Tensor
    named: torch.Tensor
    matches: torch.Tensor
    named_kinds: torch.Tensor
    named_colours: torch.Tensor
    spots: torch.Tensor
    steps: torch.Tensor
    cell_kinds: torch.Tensor
    cell_colours: torch.Tensor
    cell_spots: torch.Tensor
    cell_centres: torch.Tensor


@dataclass(frozen=True)
class Posed:
    """One scene and what is asked about it."""

    scene: Scene
    questions: tuple[Question, ...]


PLAN: Final = (
    "existence",
    "existence",
    "colour",
    "shape",
    "count",
    "count",
    "relation",
    "relation",
)
"""The kinds of the questions that share a picture in training."""


def pose(rng: np.random.Generator, pictures: int, difficulty_limit: float) -> tuple[Posed, ...]:
    """`pictures` scenes of one size with their questions; answers are balanced over them."""
    size = SIZES[int(rng.integers(len(SIZES)))]
    tally = Tally()
    posed = []
    for _ in range(pictures):
        scene = make_scene(rng, size=size, difficulty_limit=difficulty_limit)
        posed.append(Posed(scene, ask(scene, rng, tally, PLAN)))
    return tuple(posed)


class Packer:
    """Turns posed scenes of one size into a batch, with the checkpoint's processor and template."""

    def __init__(self, processor: Any, model: Any) -> None:
        self._images = processor.image_processor
        self._tokenizer = processor.tokenizer
        self._image_token = processor.image_token
        self._rope_index = model.model.get_rope_index
        content = [{"type": "image"}, {"type": "text", "text": "\0"}]
        rendered = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        self._before, self._after = rendered.split("\0")
        self._end = self._tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._pad = self._tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self._prefixes: dict[tuple[int, int], tuple[list[int], torch.Tensor]] = {}

    def pack(self, posed: Sequence[Posed]) -> Batch:
        """The batch of these scenes; they must be of one size."""
        pictures = [draw(one.scene) for one in posed]
        seen = self._images(images=pictures, return_tensors="pt")
        prefix, prefix_positions = self._prefix(seen["image_grid_thw"][0])
        sequences = [self._sequence(one, len(prefix)) for one in posed]
        length = len(prefix) + max(len(one.ids) for one in sequences)
        input_ids = torch.full((len(posed), length), self._pad)
        owners = torch.full((len(posed), length), -1)
        positions = torch.zeros(3, len(posed), length, dtype=torch.int64)
        input_ids[:, : len(prefix)] = torch.tensor(prefix)
        owners[:, : len(prefix)] = 0
        positions[:, :, : len(prefix)] = prefix_positions
        start = int(prefix_positions.max()) + 1
        for row, one in enumerate(sequences):
            span = slice(len(prefix), len(prefix) + len(one.ids))
            input_ids[row, span] = torch.tensor(one.ids)
            owners[row, span] = torch.tensor(one.owners)
            positions[:, row, span] = start + torch.tensor(one.places)
        cells = [_cells(one.scene) for one in posed]
        return Batch(
            pixel_values=seen["pixel_values"],
            grid=seen["image_grid_thw"],
            input_ids=input_ids,
            positions=positions,
            mask=_mask(owners),
            asked=torch.tensor([(r, at) for r, one in enumerate(sequences) for at in one.asked]),
            answers=torch.tensor([pair for one in sequences for pair in one.answers]),
            kinds=torch.tensor(
                [QUESTION_KINDS.index(q.kind) for one in posed for q in one.questions]
            ),
            named=torch.tensor([(r, at) for r, one in enumerate(sequences) for at in one.named]),
            matches=torch.tensor([number for one in sequences for number in one.matches]),
            named_kinds=torch.tensor([looks[0] for one in sequences for looks in one.looks]),
            named_colours=torch.tensor([looks[1] for one in sequences for looks in one.looks]),
            spots=torch.tensor([spot for one in sequences for spot in one.spots]),
            steps=torch.tensor([step for one in sequences for step in one.steps]),
            cell_kinds=torch.from_numpy(np.concatenate([one.kinds for one in cells])),
            cell_colours=torch.from_numpy(np.concatenate([one.colours for one in cells])),
            cell_spots=torch.from_numpy(np.concatenate([one.spots for one in cells])),
            cell_centres=torch.from_numpy(np.concatenate([one.centres for one in cells])),
        )

    def _prefix(self, grid: torch.Tensor) -> tuple[list[int], torch.Tensor]:
        _, rows, columns = (int(number) for number in grid)
        if (rows, columns) not in self._prefixes:
            text = self._before.replace(
                self._image_token, self._image_token * (rows * columns // 4)
            )
            ids = self._tokenizer(text)["input_ids"]
            token = self._tokenizer.convert_tokens_to_ids(self._image_token)
            types = torch.tensor([[int(one == token) for one in ids]])
            positions, _ = self._rope_index(torch.tensor([ids]), types, image_grid_thw=grid[None])
            self._prefixes[rows, columns] = (ids, positions)
        return self._prefixes[rows, columns]

    def _sequence(self, posed: Posed, start: int) -> _Sequence:
        one = _Sequence()
        for number, question in enumerate(posed.questions, start=1):
            read = self._tokenizer(question.text + self._after, return_offsets_mapping=True)
            (answer,) = self._tokenizer(question.answer)["input_ids"]
            ids = read["input_ids"]
            first = start + len(one.ids)
            for mention in question.mentions:
                at = next(
                    i for i, (_, end) in enumerate(read["offset_mapping"]) if end >= mention.end
                )
                one.named.append(first + at)
                one.matches.append(len(mention.shapes))
                alone = len(mention.shapes) == 1
                one.spots.append(_spot(posed.scene, mention.shapes[0]) if alone else _NOWHERE)
                one.looks.append(
                    _looks(posed.scene.shapes[mention.shapes[0]]) if alone else _NO_ONE
                )
            one.steps.append(_NOWHERE)
            if question.kind == "relation":
                (x, y), (a, b) = one.spots[-2:]
                one.steps[-1] = (x - a, y - b)
            one.asked.append(first + len(ids) - 1)
            one.answers.append((answer, self._end))
            one.ids += [*ids, answer]
            one.owners += [number] * (len(ids) + 1)
            one.places += range(len(ids) + 1)
        return one


_NOWHERE: Final = (float("nan"), float("nan"))
_NO_ONE: Final = (NOTHING, NOTHING)


class _Sequence:
    """What is collected of one sequence, token by token and question by question."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.owners: list[int] = []
        self.places: list[int] = []
        self.asked: list[int] = []
        self.answers: list[tuple[int, int]] = []
        self.named: list[int] = []
        self.matches: list[int] = []
        self.looks: list[tuple[int, int]] = []
        self.spots: list[tuple[float, float]] = []
        self.steps: list[tuple[float, float]] = []


@dataclass(frozen=True)
class _Cells:
    kinds: np.ndarray
    colours: np.ndarray
    spots: np.ndarray
    centres: np.ndarray


def _cells(scene: Scene) -> _Cells:
    """What each image token shows: the shape that covers most of its cell."""
    rows, columns = scene.height_px // CELL_PX, scene.width_px // CELL_PX
    shares = np.zeros((len(scene.shapes), rows * columns), dtype=np.float32)
    centres = np.zeros(rows * columns, dtype=np.float32)
    for number, shape in enumerate(scene.shapes):
        covered = coverage(scene, shape).reshape(rows, CELL_PX, columns, CELL_PX)
        shares[number] = covered.mean((1, 3)).ravel()
        centres[int(shape.y) // CELL_PX * columns + int(shape.x) // CELL_PX] += 1
    shown = shares.argmax(0)
    empty = shares.max(0) < _MIN_COVERED
    kinds, colours = np.array([_looks(shape) for shape in scene.shapes])[shown].T
    spots = np.array([_spot(scene, number) for number in range(len(scene.shapes))])[shown]
    kinds[empty] = NOTHING
    colours[empty] = NOTHING
    spots[empty] = np.nan
    return _Cells(kinds, colours, spots.astype(np.float32), centres)


def _looks(shape: Shape) -> tuple[int, int]:
    return SHAPE_KINDS.index(shape.kind), tuple(COLOURS).index(shape.colour)


def _spot(scene: Scene, number: int) -> tuple[float, float]:
    """A shape's centre; one unit is half of the longest side a picture can have."""
    unit = 84.0
    shape = scene.shapes[number]
    return (shape.x - unit) / unit, (shape.y - unit) / unit


def _mask(owners: torch.Tensor) -> torch.Tensor:
    """True where a token sees another: an earlier one, of its own question or of the prefix."""
    places = torch.arange(owners.shape[1])
    earlier = places[:, None] >= places
    own = owners[:, :, None] == owners[:, None, :]
    return (earlier & (own | (owners[:, None, :] == 0)))[:, None]
