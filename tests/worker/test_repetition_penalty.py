"""`--repetition-penalty`: the answers of `generate` with it, and nothing else changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor
from typer.testing import CliRunner

from halp_worker.batcher import Batch
from halp_worker.delivery import row_key
from halp_worker.model.extractor import Extractor
from halp_worker.model.penalty import RepetitionPenalty

from .conftest import SHAPE_NAMES

STEPS = 12


def extract(bench, samples, **generation):
    generation = dataclasses.replace(bench.loaded.generation, max_new_tokens=STEPS, **generation)
    own = Extractor(dataclasses.replace(bench.loaded, generation=generation), bench.layout)
    return own.extract(Batch(tuple(row_key(one.job) for one in samples), tuple(samples))).features


def generated(bench, sample, **options):
    """One question at a time: in a padded batch `generate` counts the padding as seen."""
    inputs = bench.plain_inputs([sample])
    with torch.inference_mode():
        output = bench.plain.generate(
            **inputs,
            max_new_tokens=STEPS,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    answer = output.sequences[0, inputs["input_ids"].shape[1] :]
    return answer, torch.stack(output.logits, dim=1)[0]


def test_the_rule_is_the_librarys():
    """Positive and negative logits, seen and unseen, in bfloat16 too: the same tokens."""
    random = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.randn(8, 50, generator=random).to(dtype)
        prompts = torch.randint(50, (8, 20), generator=random)
        expected = RepetitionPenaltyLogitsProcessor(1.3)(prompts, logits.float())
        penalty = RepetitionPenalty.of_prompts(1.3, list(prompts), logits)
        chosen = penalty.choose(logits)
        assert torch.equal(chosen.tokens, expected.argmax(-1))
        again = penalty.choose(logits)
        more = torch.cat([prompts, chosen.tokens[:, None]], dim=1)
        expected = RepetitionPenaltyLogitsProcessor(1.3)(more, logits.float())
        assert torch.equal(again.tokens, expected.argmax(-1))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPE_NAMES)
@pytest.mark.parametrize("penalty", [1.05, 1.5])
def test_answers_equal_generate_with_the_penalty(bench, shape, penalty):
    """In a batch of mixed sizes from which rows leave, and alone. Scores are of the model's own
    distribution, before the penalty."""
    bench = bench(shape)
    samples = bench.samples()
    plain = extract(bench, samples)
    together = extract(bench, samples, repetition_penalty=penalty)
    tokenizer, stops = bench.loaded.processor.tokenizer, bench.loaded.generation.stop_tokens
    for row, sample in enumerate(samples):
        answer, logits = generated(bench, sample, repetition_penalty=penalty)
        expected = tokenizer.decode(answer, skip_special_tokens=True)
        alone = extract(bench, [sample], repetition_penalty=penalty)
        assert together.text["answer"][row] == alone.text["answer"][0] == expected
        ends = [n for n, token in enumerate(answer.tolist()) if token in stops]
        counted = answer[: ends[0] + 1] if ends else answer
        logprobs = logits.double().log_softmax(-1)[: len(counted)]
        mean = logprobs.gather(-1, counted[:, None]).mean()
        assert abs(together.scores["mean_logprob"][row] - mean) < 1e-4
    name = "first_token_entropy"
    assert np.array_equal(together.scores[name], plain.scores[name])
    for name, states in plain.vectors.items():
        assert np.array_equal(together.vectors[name], states), name
    if penalty > 1.2:
        assert together.text["answer"] != plain.text["answer"], "the penalty must show"


@pytest.mark.slow
def test_rows_that_leave_take_what_they_have_seen_with_them(bench):
    """With a stop token that ends some answers early the others are what they were."""
    bench = bench()
    samples = bench.samples()
    answers = [generated(bench, one, repetition_penalty=1.5)[0].tolist() for one in samples]
    stop = next(t for a in answers for t in a[:6] if 0 < sum(t in b for b in answers) < 4)
    cut = extract(bench, samples, repetition_penalty=1.5, stop_tokens=(stop,))
    tokenizer = bench.loaded.processor.tokenizer
    for row, answer in enumerate(answers):
        kept = answer[: answer.index(stop)] if stop in answer else answer
        assert cut.text["answer"][row] == tokenizer.decode(kept, skip_special_tokens=True)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
@pytest.mark.parametrize("command", [["run", "--store", "x.zarr"], ["extract", "a.png", "Is it?"]])
def test_a_penalty_is_a_number_above_nothing(command, value):
    """A wrong command line is refused before anything is loaded."""
    from halp_worker.cli import app

    result = CliRunner().invoke(app, [*command, "--repetition-penalty", value])
    assert result.exit_code == 2
    assert "expected a number above 0" in result.output
