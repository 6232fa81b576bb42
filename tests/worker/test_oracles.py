"""Every stored number against an independent way to get it, on three shapes of config."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from halp_worker.batcher import Batch
from halp_worker.delivery import row_key
from halp_worker.model.extractor import Extractor
from tolerance import apart, assert_within, relative

from .conftest import QUESTIONS, SHAPE_NAMES

pytestmark = pytest.mark.slow

each_shape = pytest.mark.parametrize("shape", SHAPE_NAMES)


@each_shape
def test_hook_values_equal_the_hidden_states_of_the_model(bench, shape):
    """Layer i's row is `output_hidden_states[i+1]`; the last equals it through the final norm."""
    bench = bench(shape)
    samples = bench.samples()
    features = bench.extract(samples).features
    with torch.inference_mode():
        states = bench.plain(**bench.plain_inputs(samples), output_hidden_states=True).hidden_states
    norm = bench.plain.model.language_model.norm
    length = states[0].shape[1]
    for position in bench.layout.positions:
        columns = (
            features.integers[f"{position}_position"] + length - features.integers["prompt_tokens"]
        )
        for index, layer in enumerate(bench.layout.layers):
            got = torch.from_numpy(features.vectors[position][:, index])
            if layer == bench.loaded.n_layers - 1:
                with torch.inference_mode():
                    got = norm(got)
            expected = states[layer + 1][torch.arange(len(samples)), torch.from_numpy(columns)]
            assert_within(relative(got, expected), bench.bound(layer), position, layer)


@each_shape
def test_vision_only_is_the_mean_of_the_images_own_merged_tokens(bench, shape):
    """Each image's mean equals the mean of `get_image_features`, image by image."""
    bench = bench(shape)
    samples = bench.samples()
    features = bench.extract(samples).features
    for row, sample in enumerate(samples):
        with torch.inference_mode():
            vision = bench.plain.model.get_image_features(
                sample.image.pixel_values, sample.image.grid_thw
            )
        (merged,) = vision.pooler_output
        assert merged.shape[0] == features.integers["image_tokens"][row]
        for name, expected in (
            ("vision_only", merged),
            ("vision_encoder", vision.last_hidden_state),
        ):
            got = features.vectors[name][row]
            assert_within(relative(got, expected.mean(0)), bench.vision_bound, name)


@each_shape
def test_a_batch_of_mixed_sizes_equals_singles(bench, shape):
    """In float32, padding and company change nothing beyond rounding, and no answer."""
    bench = bench(shape)
    samples = bench.samples()
    together = bench.extract(samples).features
    assert len({sample.prompt_tokens for sample in samples}) == len(samples), "batch is padded"
    for row, sample in enumerate(samples):
        alone = bench.extract([sample]).features
        for name in together.vectors:
            distance = relative(together.vectors[name][row], alone.vectors[name][0])
            assert_within(distance, bench.bound(), name)
        for name in together.integers:
            assert np.array_equal(together.integers[name][row], alone.integers[name][0]), name
        for name in together.scores:
            distance = apart(together.scores[name][row], alone.scores[name][0])
            assert_within(distance, bench.score_bound, name)
        assert together.text["answer"][row] == alone.text["answer"][0]


@each_shape
def test_bfloat16_batched_is_about_as_close_to_float32_as_bfloat16_single(bench, shape):
    """Batching may add at most half of what bfloat16 itself costs, column by column."""
    exact, rounded = bench(shape, "float32"), bench(shape, "bfloat16")
    truth = exact.extract(exact.samples()).features.vectors
    batched = rounded.extract(rounded.samples()).features.vectors
    singles = [rounded.extract([sample]).features.vectors for sample in rounded.samples()]
    for name, expected in truth.items():
        single = np.concatenate([one[name] for one in singles])
        batched_error = np.linalg.norm(batched[name] - expected)
        single_error = np.linalg.norm(single - expected)
        assert single_error > 0, name
        assert_within(batched_error, 1.5 * single_error, name)


@each_shape
def test_positions_equal_a_search_over_the_token_ids(bench, shape):
    """Found again by brute force over the ids of the unpadded prompt and their text."""
    bench = bench(shape)
    tokenizer = bench.loaded.processor.tokenizer
    image_token = bench.loaded.model.config.image_token_id
    for sample, question in zip(bench.samples(), QUESTIONS, strict=True):
        ids = sample.input_ids.tolist()
        found = dict(zip(bench.layout.positions, sample.positions, strict=True))
        assert found["vision_token"] == max(i for i, one in enumerate(ids) if one == image_token)
        assert found["query_token"] == len(ids) - 1
        assert tokenizer.decode(ids).endswith("assistant\n"), "the generation prompt is last"
        # The question's own tokens end where decoding so far ends with the question's text.
        end = next(
            i for i in range(len(ids)) if tokenizer.decode(ids[: i + 1]).endswith(question.text)
        )
        assert found["question_token"] == end
        patches = int(sample.image.grid_thw.prod())
        assert found["halp_reference"] == min(patches, len(ids) // 2)


@each_shape
def test_answers_equal_generate_without_hooks(bench, shape):
    """Hooks only look: the answer is what plain greedy `generate` gives."""
    bench = bench(shape)
    samples = bench.samples()
    features = bench.extract(samples).features
    inputs = bench.plain_inputs(samples)
    with torch.inference_mode():
        output = bench.plain.generate(
            **inputs, do_sample=False, max_new_tokens=bench.loaded.generation.max_new_tokens
        )
    expected = bench.loaded.processor.tokenizer.batch_decode(
        output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert list(features.text["answer"]) == expected
    assert all(answer.strip() for answer in expected), "the oracle must say something"


def test_an_answer_ends_before_the_stop_token_and_says_so(bench):
    """A batch in which some answers stop and others run into the limit: each is cut for itself."""
    bench = bench()
    samples, loaded = bench.samples(), bench.loaded
    inputs = bench.plain_inputs(samples)
    with torch.inference_mode():
        output = bench.plain.generate(**inputs, generation_config=bench.plain.generation_config)
    generated = output[:, inputs["input_ids"].shape[1] :].tolist()
    # A token that some of the answers hold and others do not stands in for the stop token.
    stop = next(
        token
        for answer in generated
        for token in answer
        if 0 < sum(token in other for other in generated) < len(generated)
    )
    generation = dataclasses.replace(loaded.generation, stop_tokens=(stop,))
    extractor = Extractor(dataclasses.replace(loaded, generation=generation), bench.layout)
    keys = tuple(row_key(sample.job) for sample in samples)
    features = extractor.extract(Batch(keys, tuple(samples))).features
    for row, answer in enumerate(generated):
        length = answer.index(stop) if stop in answer else len(answer)
        assert features.integers["answer_tokens"][row] == length
        expected = loaded.processor.tokenizer.decode(answer[:length], skip_special_tokens=True)
        assert features.text["answer"][row] == expected
        assert features.text["finish_reason"][row] == ("stop" if stop in answer else "length")


@each_shape
def test_inputs_equal_the_processors_own(bench, shape):
    """Text and image are prepared apart, an image once for all its questions: the tensors are those
    of the processor, and the positions those of the model."""
    bench = bench(shape)
    for sample in bench.samples():
        expected = bench.plain_inputs([sample])
        assert torch.equal(sample.input_ids, expected["input_ids"][0])
        assert torch.equal(sample.image.pixel_values, expected["pixel_values"])
        assert torch.equal(sample.image.grid_thw, expected["image_grid_thw"])
        del expected["pixel_values"]
        positions, deltas = bench.plain.model.get_rope_index(**expected)
        assert torch.equal(sample.position_ids, positions[:, 0])
        assert sample.next_position == sample.prompt_tokens + int(deltas)


def test_two_batches_in_a_row_do_not_disturb_each_other(bench):
    """Nothing is left of one batch in the next: it gives the same rows again."""
    bench = bench()
    first, *others = bench.samples()
    before = bench.extract([first]).features
    bench.extract(others)
    after = bench.extract([first]).features
    for name, expected in before.vectors.items():
        assert np.array_equal(after.vectors[name], expected), name
    assert before.text["answer"] == after.text["answer"]
