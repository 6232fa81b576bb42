"""How sure the model was: the entropy of the first token, the probability of the answer."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from halp_worker.batcher import Batch
from halp_worker.delivery import row_key
from halp_worker.model import extractor
from halp_worker.model.extractor import Extractor
from halp_worker.model.likelihood import Chosen, entropy, greedy, mean_logprob
from tolerance import apart, assert_within, rounding

from .conftest import SHAPE_NAMES

each_shape = pytest.mark.parametrize("shape", SHAPE_NAMES)


def extract(bench, samples, **generation):
    """Rows of an extractor that generates in another way."""
    generation = dataclasses.replace(bench.loaded.generation, **generation)
    own = Extractor(dataclasses.replace(bench.loaded, generation=generation), bench.layout)
    return own.extract(Batch(tuple(row_key(one.job) for one in samples), tuple(samples))).features


def generated(bench, samples, **changes):
    """Of transformers' own `generate`: tokens (B, T), and float64 log-probabilities (B, T, V) of
    the whole vocabulary at each."""
    inputs = bench.plain_inputs(samples)
    with torch.inference_mode():
        output = bench.plain.generate(
            **inputs, output_logits=True, return_dict_in_generate=True, **changes
        )
    logprobs = torch.stack(output.logits, dim=1).double().log_softmax(-1)
    return output.sequences[:, inputs["input_ids"].shape[1] :], logprobs


def means(tokens, logprobs, stops):
    """One row at a time, in words: up to and including the first stop token."""
    found = []
    for row, answer in enumerate(tokens.tolist()):
        ends = [number for number, token in enumerate(answer) if token in stops]
        length = ends[0] + 1 if ends else len(answer)
        found.append(np.mean([float(logprobs[row, n, answer[n]]) for n in range(length)]))
    return np.array(found)


# -- the arithmetic ------------------------------------------------------------------------------


def test_entropy_is_nothing_where_one_token_has_it_all_and_most_where_all_are_alike():
    """In nats; a token that cannot come does not spoil it."""
    logits = torch.tensor([[200.0, 0, 0, 0], [3, 3, 3, 3], [1, 1, -1e30, -1e30]])
    expected = torch.tensor([0, math.log(4), math.log(2)])
    bound = math.log(4) * rounding(4, 4)  # exp, sum, log, sum of products
    assert_within(apart(entropy(logits), expected), bound)
    assert_within(apart(entropy(logits[1:].bfloat16()), expected[1:]), bound)


def test_what_follows_the_first_stop_token_does_not_count():
    """The stop token does; without one all tokens do."""
    tokens = torch.tensor([[5, 9, 5, 9], [5, 5, 5, 5], [9, 0, 0, 0], [8, 9, 8, 0]])
    logprobs = -torch.tensor([[1.0, 3, 50, 50], [1, 2, 3, 4], [7, 0, 0, 0], [2, 50, 50, 50]])
    found = mean_logprob(Chosen(tokens, logprobs), (9, 8))
    assert found.tolist() == [-2, -2.5, -7, -2]


def test_the_greedy_token_is_the_argmax_and_its_probability_is_of_float32():
    """Of two that are alike the first, as `argmax` has it; bfloat16 is not rounded again."""
    logits = torch.tensor([[0.0, 7, 7, -3], [2, 1, 0, 0]]).bfloat16()
    found = greedy(logits)
    assert torch.equal(found.tokens, logits.argmax(-1))
    assert found.logprobs.dtype == torch.float32
    expected = logits.double().log_softmax(-1).gather(-1, found.tokens[:, None])[:, 0]
    assert_within(apart(found.logprobs, expected), 2 * rounding(4, 4))


# -- against generate ----------------------------------------------------------------------------


@pytest.mark.slow
@each_shape
def test_scores_equal_those_of_generates_own_logits(bench, shape):
    """A batch of mixed sizes whose answers run into the limit, in float32."""
    bench = bench(shape)
    samples = bench.samples()
    scores = bench.extract(samples).features.scores
    tokens, logprobs = generated(bench, samples)
    first = logprobs[:, 0]
    expected = -(first.exp() * first).sum(-1).numpy()
    assert_within(apart(scores["first_token_entropy"], expected), bench.score_bound)
    stops = set(bench.loaded.generation.stop_tokens)
    by_hand = means(tokens, logprobs, stops)
    assert_within(apart(scores["mean_logprob"], by_hand), bench.score_bound)
    assert expected.std() > 0, "the oracle must say something"


@pytest.mark.slow
@each_shape
def test_an_answer_that_ends_early_counts_its_stop_token_and_nothing_after(bench, shape):
    """With each token that occurs in the stop token's place: some answers end at once, others go
    on, and rows leave the batch meanwhile."""
    bench = bench(shape)
    samples = bench.samples()
    steps = 12
    tokens, logprobs = generated(bench, samples, max_new_tokens=steps, eos_token_id=[-1])
    lengths = set()
    for stop in {token for answer in tokens.tolist() for token in answer}:
        found = extract(bench, samples, stop_tokens=(stop,), max_new_tokens=steps)
        expected = means(tokens, logprobs, {stop})
        assert_within(apart(found.scores["mean_logprob"], expected), bench.score_bound)
        lengths |= set(found.integers["answer_tokens"].tolist())
    assert {0, steps} <= lengths, "the oracle must see answers of no token and of all"


@pytest.mark.slow
@each_shape
def test_without_an_answer_the_first_tokens_entropy_is_that_of_a_forward(bench, shape):
    """Of the logits at the last prompt token, each prompt alone."""
    bench = bench(shape)
    samples = bench.samples()
    found = extract(bench, samples, max_new_tokens=0).scores
    for row, sample in enumerate(samples):
        with torch.inference_mode():
            logits = bench.plain(**bench.plain_inputs([sample])).logits[0, -1]
        first = logits.double().log_softmax(-1)
        expected = -(first.exp() * first).sum()
        assert_within(apart(found["first_token_entropy"][row], expected), bench.score_bound)
    assert np.isnan(found["mean_logprob"]).all()


@pytest.mark.slow
def test_the_output_layer_is_used_once_a_token(bench):
    """What is read of the logits is read of those that choose the token."""
    bench = bench()
    calls = []
    handle = bench.loaded.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    bench.extract(bench.samples())
    handle.remove()
    assert len(calls) == bench.loaded.generation.max_new_tokens


@pytest.mark.slow
def test_logits_that_are_not_finite_are_that_rows_rejection(bench, monkeypatch):
    """Where the states themselves are: by the name of the score that shows it."""
    bench = bench()
    samples = bench.samples()
    original = extractor.next_logits

    def spoiled(model, states):
        logits = original(model, states).clone()
        logits[1, 7] = float("nan")
        return logits

    monkeypatch.setattr(extractor, "next_logits", spoiled)
    extraction = bench.extract(samples)
    ((_, rejection),) = extraction.fates
    assert rejection.reason == "not_finite"
    assert "first_token_entropy" in rejection.error
    assert len(extraction.features) == len(samples) - 1


@pytest.mark.slow
def test_rows_for_a_store_without_scores_have_none(bench):
    """Those of a store of layout version 1, which goes on as it began."""
    bench = bench()
    layout = dataclasses.replace(bench.layout, scores=())
    samples = bench.samples()
    keys = tuple(row_key(one.job) for one in samples)
    features = Extractor(bench.loaded, layout).extract(Batch(keys, tuple(samples))).features
    assert features.scores == {}
    assert features.text == bench.extract(samples).features.text
