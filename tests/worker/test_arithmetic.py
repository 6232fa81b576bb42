"""The bounds of `tolerance`: rounding stays within them, and a mistake is far outside."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch

from tolerance import assert_within, relative

from .conftest import SHAPE_NAMES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_states_are_as_close_to_float64_as_rounding_allows_and_mistakes_are_not(bench, shape):
    """The plain model alone and the batch of the passes, against the plain model in float64; the
    state of the neighbouring token, of the layer before and of another question is a thousand
    bounds away."""
    bench = bench(shape)
    samples = bench.samples()
    features = bench.extract(samples).features
    exact = copy.deepcopy(bench.plain).double()
    finals = []
    for row, sample in enumerate(samples):
        inputs = bench.plain_inputs([sample])
        with torch.inference_mode():
            plain = bench.plain(**inputs, output_hidden_states=True)
            inputs["pixel_values"] = inputs["pixel_values"].double()
            states = exact(**inputs, output_hidden_states=True).hidden_states
        for position in bench.layout.positions:
            at = int(features.integers[f"{position}_position"][row])
            for index, layer in enumerate(bench.layout.layers[:-1]):
                bound, truth = bench.bound(layer), states[layer + 1][0, at]
                alone = plain.hidden_states[layer + 1][0, at]
                assert_within(relative(alone, truth), bound, "plain", position, layer)
                got = features.vectors[position][row, index]
                assert_within(relative(got, truth), bound, "ours", position, layer)
                assert relative(states[layer + 1][0, at - 1], truth) > 1000 * bound
                assert relative(states[layer][0, at], truth) > 1000 * bound
        finals.append(features.vectors["query_token"][row])
    for one, other in pairwise(finals):
        assert relative(one, other) > 1000 * bench.bound()


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_scores_of_other_questions_are_outside_the_bound(bench, shape):
    """Those of the four differ by far more than rounding."""
    bench = bench(shape)
    for values in bench.extract(bench.samples()).features.scores.values():
        assert values.max() - values.min() > 20 * bench.score_bound
