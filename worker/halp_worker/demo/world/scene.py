"""A synthetic world of coloured shapes: scenes, the pictures of them, and nothing else.

A scene is a plain value from which its picture follows byte for byte. What makes a picture hard to
read is drawn once per scene, as its difficulty: noise and fading grow with it. What may be asked
about a scene, and what is true of it, is the business of `questions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

SHAPE_KINDS: Final = ("circle", "square", "triangle", "cross")

COLOURS: Final = {
    "red": (208, 32, 40),
    "orange": (244, 132, 20),
    "yellow": (226, 206, 20),
    "green": (40, 150, 58),
    "blue": (36, 84, 206),
    "purple": (136, 48, 168),
}
"""Name to RGB. Neighbours (red and orange, blue and purple) are what a faded picture confuses."""

SIZES: Final = ((112, 112), (140, 112), (112, 140), (140, 140), (168, 112), (168, 140))
"""Width and height of pictures in pixels: multiples of 28, so that no processor resizes them."""

MAX_SHAPES: Final = 4

_SHAPE_COUNT_ODDS: Final = (0.1, 0.2, 0.3, 0.4)
_MIN_RADIUS_PX: Final = 7.0
_MAX_RADIUS_PX: Final = 18.0
_REACH: Final = 1.3
"""How far the corner of a square or a triangle lies from its centre, in radii: shapes never touch,
so how many there are has one answer."""

_FAINTEST: Final = 0.1
"""Opacity that no shape goes below: what is there can be seen, if barely."""

_LIKENESS_ODDS: Final = 0.6
"""Of scenes whose shapes share a kind or a colour: without them, counts above one would be rare."""

_OVERSAMPLING: Final = 4
"""A shape's edge is drawn this many times larger and averaged, so that it is smooth."""


@dataclass(frozen=True)
class Shape:
    """One shape of a scene.

    kind: of SHAPE_KINDS. colour: of COLOURS. x, y: centre in pixels from the top left.
    radius_px: half its width. rgb: its colour as drawn, 0 to 255, jittered. opacity: 0 to 1.
    """

    kind: str
    colour: str
    x: float
    y: float
    radius_px: float
    rgb: tuple[float, float, float]
    opacity: float


@dataclass(frozen=True)
class Scene:
    """All that a picture shows.

    difficulty: 0 is clear, 1 the hardest of training. corners: RGB of the background's top left
    and bottom right. noise: standard deviation of the noise on each channel, of 255.
    noise_seed: which noise.
    """

    width_px: int
    height_px: int
    difficulty: float
    shapes: tuple[Shape, ...]
    corners: tuple[tuple[float, ...], tuple[float, ...]]
    noise: float
    noise_seed: int


def make_scene(
    rng: np.random.Generator, *, size: tuple[int, int] | None = None, difficulty_limit: float = 1.0
) -> Scene:
    """Draws a scene; the same generator state gives the same scene.

    size: width and height in pixels, one of SIZES; drawn where None. difficulty_limit: the scene's
    difficulty is uniform from 0 to this.
    """
    width_px, height_px = SIZES[int(rng.integers(len(SIZES)))] if size is None else size
    difficulty = float(rng.uniform(0, difficulty_limit))
    count = 1 + int(rng.choice(MAX_SHAPES, p=_SHAPE_COUNT_ODDS))
    spots = _spots(rng, width_px, height_px, count)
    names = _names(rng, len(spots))
    shapes = tuple(
        Shape(
            kind=kind,
            colour=colour,
            x=x,
            y=y,
            radius_px=radius_px,
            rgb=_jittered(rng, colour, 6 + 28 * difficulty),
            # Each shape fades on its own, so that one picture has clear and faint ones.
            opacity=_opacity(rng, difficulty),
        )
        for (kind, colour), (x, y, radius_px) in zip(names, spots, strict=True)
    )
    corners = tuple(tuple(float(part) for part in rng.uniform(190, 250, 3)) for _ in range(2))
    return Scene(
        width_px=width_px,
        height_px=height_px,
        difficulty=difficulty,
        shapes=shapes,
        corners=(corners[0], corners[1]),
        noise=3 + 42 * difficulty * float(rng.uniform(0.4, 1)),
        noise_seed=int(rng.integers(2**32)),
    )


def draw(scene: Scene) -> np.ndarray:
    """The scene's picture: uint8 [height_px, width_px, 3], the same bytes each time."""
    across = np.linspace(0, 1, scene.width_px)[None, :, None]
    down = np.linspace(0, 1, scene.height_px)[:, None, None]
    first, last = (np.asarray(corner) for corner in scene.corners)
    picture = first + (last - first) * (across + down) / 2
    for shape in scene.shapes:
        share = coverage(scene, shape)[:, :, None] * shape.opacity
        picture = picture * (1 - share) + np.asarray(shape.rgb) * share
    noise = np.random.default_rng(scene.noise_seed).standard_normal(picture.shape, dtype=np.float32)
    noisy: np.ndarray = (picture + noise * scene.noise).round().clip(0, 255).astype(np.uint8)
    return noisy


def coverage(scene: Scene, shape: Shape) -> np.ndarray:
    """How much of each pixel the shape covers, 0 to 1: float32 [height_px, width_px]."""
    left, top = int(shape.x - shape.radius_px) - 1, int(shape.y - shape.radius_px) - 1
    side = int(2 * shape.radius_px) + 4
    stamp = Image.new("L", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    x, y = (shape.x - left) * _OVERSAMPLING, (shape.y - top) * _OVERSAMPLING
    _outline(ImageDraw.Draw(stamp), shape.kind, x, y, shape.radius_px * _OVERSAMPLING)
    share = np.asarray(stamp.reduce(_OVERSAMPLING), dtype=np.float32) / 255
    whole = np.zeros((scene.height_px, scene.width_px), dtype=np.float32)
    rows = slice(max(top, 0), min(top + side, scene.height_px))
    columns = slice(max(left, 0), min(left + side, scene.width_px))
    whole[rows, columns] = share[
        rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]
    return whole


def _outline(pen: ImageDraw.ImageDraw, kind: str, x: float, y: float, radius: float) -> None:
    if kind == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    elif kind == "square":
        half = radius * 0.88  # as large to the eye as a circle of this radius
        pen.rectangle((x - half, y - half, x + half, y + half), fill=255)
    elif kind == "triangle":
        base = y + radius * 0.8
        pen.polygon([(x, y - radius), (x + radius, base), (x - radius, base)], fill=255)
    else:
        arm = radius * 0.32
        pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=255)
        pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=255)


def _spots(
    rng: np.random.Generator, width_px: int, height_px: int, count: int
) -> list[tuple[float, float, float]]:
    """Places that do not touch, as (x, y, radius): `count` of them."""
    while True:
        spots: list[tuple[float, float, float]] = []
        for _ in range(20 * count):
            radius = float(rng.uniform(_MIN_RADIUS_PX, _MAX_RADIUS_PX))
            x = float(rng.uniform(radius + 1, width_px - radius - 1))
            y = float(rng.uniform(radius + 1, height_px - radius - 1))
            if all(np.hypot(x - a, y - b) > _REACH * (radius + r) + 1 for a, b, r in spots):
                spots.append((x, y, radius))
                if len(spots) == count:
                    return spots


def _names(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Kind and colour of `count` shapes; often some of them share one of the two."""
    colours = tuple(COLOURS)
    kinds = [SHAPE_KINDS[int(rng.integers(len(SHAPE_KINDS)))] for _ in range(count)]
    names = [colours[int(rng.integers(len(colours)))] for _ in range(count)]
    if count > 1 and rng.random() < _LIKENESS_ODDS:
        alike = int(rng.integers(2, count + 1))
        shared = kinds if rng.random() < 0.5 else names
        shared[:alike] = [shared[0]] * alike
    return list(zip(kinds, names, strict=True))


def _opacity(rng: np.random.Generator, difficulty: float) -> float:
    faded = float(rng.uniform(0.0, 0.1) + difficulty * rng.uniform(0.1, 0.78))
    return max(1 - faded, _FAINTEST)


def nearest_colour(rgb: np.ndarray) -> str:
    """The one of COLOURS that is nearest to these three numbers."""
    return min(COLOURS, key=lambda name: float(np.linalg.norm(rgb - np.asarray(COLOURS[name]))))


def _jittered(rng: np.random.Generator, colour: str, spread: float) -> tuple[float, float, float]:
    """Near the colour and nearer to no other, so that its name is true of what is drawn."""
    while True:
        moved = (np.asarray(COLOURS[colour]) + rng.normal(0, spread, 3)).clip(0, 255)
        if nearest_colour(moved) == colour:
            red, green, blue = (float(part) for part in moved)
            return red, green, blue
