"""Scenes and their pictures: the same each time, and as the scene says."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from halp_worker.demo.world.scene import (
    COLOURS,
    SIZES,
    coverage,
    draw,
    make_scene,
    nearest_colour,
)


def scenes(count, **options):
    rng = np.random.default_rng(5)
    return [make_scene(rng, **options) for _ in range(count)]


def test_a_seed_gives_the_same_scenes_and_the_same_pictures():
    """Byte for byte."""
    one, other = scenes(20), scenes(20)
    assert one == other
    assert all((draw(a) == draw(b)).all() for a, b in zip(one, other, strict=True))


def test_a_picture_has_the_size_that_was_asked_for():
    """And each size is of whole image tokens, 28 pixels a side."""
    for size in SIZES:
        (scene,) = scenes(1, size=size)
        assert draw(scene).shape == (size[1], size[0], 3)
        assert all(side % 28 == 0 for side in size)


def test_shapes_lie_inside_and_never_touch():
    """So that how many there are has one answer."""
    for scene in scenes(200):
        covered = [coverage(scene, shape) > 0 for shape in scene.shapes]
        assert np.sum(covered, axis=0).max() == 1
        for shape, own in zip(scene.shapes, covered, strict=True):
            assert min(shape.x, shape.y) > shape.radius_px
            assert shape.x + shape.radius_px < scene.width_px
            assert shape.y + shape.radius_px < scene.height_px
            assert own.any()


def test_a_clear_shape_is_drawn_in_its_colour():
    """Of the six, the nearest to the median of its pixels."""
    for scene in scenes(60, difficulty_limit=0.01):
        picture = draw(scene)
        for shape in scene.shapes:
            seen = np.median(picture[coverage(scene, shape) > 0.99], axis=0)
            distance = {name: np.abs(seen - rgb).sum() for name, rgb in COLOURS.items()}
            assert min(distance, key=distance.get) == shape.colour


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    # Of the square around it: pi / 4, 0.88 squared, 0.9 of a half, and a cross with arms of 0.32.
    [("circle", 0.75, 0.82), ("square", 0.74, 0.81), ("triangle", 0.4, 0.5), ("cross", 0.5, 0.57)],
)
def test_a_kind_covers_what_its_form_says(kind, least, most):
    """A check of the drawing that does not draw."""
    found = [(one, shape) for one in scenes(80) for shape in one.shapes if shape.kind == kind]
    assert len(found) > 20
    for scene, shape in found:
        share = coverage(scene, shape).sum() / (2 * shape.radius_px) ** 2
        assert least - 0.05 < share < most + 0.05, shape


def test_no_shape_looks_like_another_colour():
    """However far a colour wanders, its own name is the nearest: no truth is a matter of taste."""
    shapes = [shape for one in scenes(300, difficulty_limit=2.0) for shape in one.shapes]
    assert {nearest_colour(np.array(one.rgb)) == one.colour for one in shapes} == {True}


def test_harder_scenes_are_noisier_and_fainter():
    """What difficulty means, on average."""
    easy, hard = scenes(300, difficulty_limit=0.1), scenes(300)
    assert np.mean([one.noise for one in easy]) < np.mean([one.noise for one in hard])
    faint = [np.mean([s.opacity for one in some for s in one.shapes]) for some in (easy, hard)]
    assert faint[0] > faint[1]


def test_the_world_needs_no_torch():
    """Making a data set costs numpy and pillow."""
    code = "import sys, halp_worker.demo.world.dataset; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
