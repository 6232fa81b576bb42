"""What the fast path does not do: nothing twice, no padding, no waiting for the device. In counts,
which hold on every device. And what it must not change: a number.
"""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch

from halp_worker.batcher import Batch
from halp_worker.delivery import row_key
from halp_worker.launch import input_builder
from halp_worker.model import decode, extractor, memory
from halp_worker.model.extractor import Extractor
from halp_worker.model.vision import encode_images
from tolerance import apart, assert_within, relative

from .conftest import SHAPE_NAMES, Question

pytestmark = pytest.mark.slow

each_shape = pytest.mark.parametrize("shape", SHAPE_NAMES)

SHARED = (
    Question("coffee.png", "Is there a cup?"),
    Question("astronaut.png", "Who is it?"),
    Question("coffee.png", "What is in the cup, and what is it made of?"),
    Question("tall.png", "Where?"),
    Question("coffee.png", "Is it night?"),
    Question("astronaut.png", "How many flags are there?"),
)
"""Three images, of one, two and three questions, not in order."""


def assert_same(bench, got, row, expected):
    """Of a batch that row, of the other the only one."""
    for name, values in expected.vectors.items():
        assert_within(relative(got.vectors[name][row], values[0]), bench.bound(), name)
    for name, values in expected.integers.items():
        assert np.array_equal(got.integers[name][row], values[0]), name
    for name, values in expected.scores.items():
        assert_within(apart(got.scores[name][row], values[0]), bench.score_bound, name)
    assert got.text["answer"][row] == expected.text["answer"][0]


@contextmanager
def spied(module, note):
    """`note(arguments)` at each call of a torch module."""

    def hook(_, arguments, options):
        note({**dict(enumerate(arguments)), **options})

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


# -- one image, many questions -------------------------------------------------------------------


@each_shape
def test_questions_that_share_an_image_get_what_each_gets_alone(bench, shape):
    """Float32, but for rounding: states at every position and layer, means, answers."""
    bench = bench(shape)
    samples = bench.samples(SHARED)
    together = bench.extract(samples).features
    for row, sample in enumerate(samples):
        assert_same(bench, together, row, bench.extract([sample]).features)


def test_each_image_and_each_prefix_goes_through_once(bench):
    """Patches of distinct images, tokens of distinct prefixes, each question's own: no more."""
    bench = bench()
    samples = bench.samples(SHARED)
    model = bench.loaded.model.model
    patches, tokens = [], []
    with (
        spied(model.visual, lambda given: patches.append(len(given[0]))),
        spied(
            model.language_model.layers[0], lambda given: tokens.append(given[0].shape[:2].numel())
        ),
    ):
        bench.extract(samples)
    images = {sample.image.sha256: sample for sample in samples}.values()
    assert patches == [sum(len(one.image.pixel_values) for one in images)]
    prefixes, questions, *steps = tokens
    assert prefixes == sum(one.prefix_tokens for one in images)
    assert questions == sum(one.prompt_tokens - one.prefix_tokens for one in samples)
    assert all(step <= len(samples) for step in steps)


def test_an_image_is_read_and_prepared_once_for_all_its_questions(bench, photos, monkeypatch):
    """While one of its samples is at hand; then it is let go."""
    bench = bench()
    # Its own: other tests may hold samples of the bench's.
    inputs = input_builder(bench.loaded, bench.layout.positions, photos, allow_urls=False)
    bench = dataclasses.replace(bench, inputs=inputs)
    read = []
    original = bench.inputs._images.read
    monkeypatch.setattr(
        bench.inputs._images, "read", lambda name, data: read.append(name) or original(name, data)
    )
    samples = bench.samples(SHARED)
    assert sorted(read) == ["astronaut.png", "coffee.png", "tall.png"]
    assert samples[0].image is samples[2].image
    del samples
    bench.samples(SHARED[:1])
    assert len(read) == 4, "nothing is kept for questions that may never come"


@each_shape
def test_chunks_change_nothing(bench, shape, monkeypatch):
    """A batch that is prefilled group by group equals the one that is prefilled as a whole."""
    bench = bench(shape)
    samples = bench.samples(SHARED)
    whole = bench.extract(samples).features
    passes = []
    monkeypatch.setattr(extractor, "CHUNK_TOKENS", 1)
    with spied(bench.loaded.model.model.visual, lambda _: passes.append(1)):
        pieces = bench.extract(samples).features
    assert len(passes) == 3
    for row in range(len(samples)):
        for name, values in whole.vectors.items():
            assert_within(relative(pieces.vectors[name][row], values[row]), bench.bound(), name)
    assert pieces.text == whole.text


def test_without_an_answer_the_states_are_the_same_and_nothing_is_decoded(bench):
    """`--no-answer`: two passes, and the output layer once, for how sure the first token is."""
    bench = bench()
    samples = bench.samples(SHARED)
    answered = bench.extract(samples).features
    generation = dataclasses.replace(bench.loaded.generation, max_new_tokens=0)
    silent = dataclasses.replace(
        bench,
        extractor=Extractor(dataclasses.replace(bench.loaded, generation=generation), bench.layout),
    )
    passes, logits = [], []
    with (
        spied(bench.loaded.model.model.language_model, lambda _: passes.append(1)),
        spied(bench.loaded.model.lm_head, lambda _: logits.append(1)),
    ):
        features = silent.extract(samples).features
    assert (len(passes), len(logits)) == (2, 1)
    for name, values in answered.vectors.items():
        assert np.array_equal(features.vectors[name], values), name
    assert set(features.text["answer"]) == {""}
    assert set(features.text["finish_reason"]) == {"skipped"}
    assert not features.integers["answer_tokens"].any()
    entropy = features.scores["first_token_entropy"]
    assert np.array_equal(entropy, answered.scores["first_token_entropy"])
    assert np.isnan(features.scores["mean_logprob"]).all()


# -- vision attention ----------------------------------------------------------------------------


def test_windows_of_a_large_image_share_their_calls_of_attention(bench, monkeypatch):
    """An image of 1,296 tokens has 81 windows in each windowed layer. transformers calls attention
    once for each; here once for each size of window."""
    bench = bench()
    encoder = bench.loaded.model.model.visual
    side = 72  # patches
    pixels = torch.randn(side * side, bench.samples()[0].image.pixel_values.shape[1])
    image = dataclasses.replace(
        bench.samples()[0].image,
        pixel_values=pixels,
        grid_thw=torch.tensor([[1, side, side]]),
        tokens=side * side // 4,
    )
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention

    def counted(*arguments, **options):
        calls.append(1)
        return original(*arguments, **options)

    with torch.inference_mode():
        plain = bench.plain.model.visual(pixels, grid_thw=image.grid_thw)
        monkeypatch.setattr("halp_worker.model.segments.scaled_dot_product_attention", counted)
        encoded = encode_images(bench.loaded.model, [image])
    assert_within(relative(encoded.tokens, plain.pooler_output), bench.vision_bound)
    whole = len(encoder.fullatt_block_indexes)
    windowed = len(encoder.blocks) - whole
    assert len(calls) == whole + windowed, "81 windows of one size: one call a layer"


@each_shape
def test_encoded_images_equal_the_encoders_own(bench, shape):
    """Mixed sizes, whose windows at the edges are smaller."""
    bench = bench(shape)
    samples = bench.samples()
    with torch.inference_mode():
        encoded = encode_images(bench.loaded.model, [sample.image for sample in samples])
        plain = [
            bench.plain.model.visual(sample.image.pixel_values, grid_thw=sample.image.grid_thw)
            for sample in samples
        ]
    expected = torch.cat([one.pooler_output for one in plain])
    assert_within(relative(encoded.tokens, expected), bench.vision_bound)


# -- decoding ------------------------------------------------------------------------------------


def answers_with(bench, samples, stop_tokens, max_new_tokens):
    generation = dataclasses.replace(
        bench.loaded.generation, stop_tokens=stop_tokens, max_new_tokens=max_new_tokens
    )
    own = Extractor(dataclasses.replace(bench.loaded, generation=generation), bench.layout)
    keys = tuple(row_key(sample.job) for sample in samples)
    return own.extract(Batch(keys, tuple(samples))).features


@each_shape
def test_rows_that_have_ended_leave_and_the_others_go_on_unchanged(bench, shape):
    """With stop tokens that end answers at different steps: each is the start of the one that
    nothing ended, and fewer rows are decoded."""
    bench = bench(shape)
    samples = bench.samples(SHARED)
    steps = 16
    inputs = bench.plain_inputs(samples)
    with torch.inference_mode():
        plain = bench.plain.generate(**inputs, max_new_tokens=steps)
    plain = plain[:, inputs["input_ids"].shape[1] :].tolist()
    for stop in {token for answer in plain for token in answer}:
        rows = []
        with spied(
            bench.loaded.model.model.language_model.layers[0],
            lambda given, rows=rows: rows.append(len(given[0])),
        ):
            features = answers_with(bench, samples, (stop,), steps)
        lengths = [one.index(stop) if stop in one else len(one) for one in plain]
        assert features.integers["answer_tokens"].tolist() == lengths
        tokenizer = bench.loaded.processor.tokenizer
        expected = [
            tokenizer.decode(answer[:length], skip_special_tokens=True)
            for answer, length in zip(plain, lengths, strict=True)
        ]
        assert list(features.text["answer"]) == expected
        for step, decoded in enumerate(rows[2:], 1):
            live = sum(length >= step for length in lengths)
            assert decoded < 2 * max(1, live) or decoded == len(samples)
        assert len(rows) - 2 == min(max(lengths), steps - 1)


def test_the_host_waits_for_the_device_once_a_step_and_never_between_layers(bench, monkeypatch):
    """Reads of a tensor's values from the host, by where they happen."""
    bench = bench()
    samples = bench.samples(SHARED)
    reads, layers, inside = [], [], []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "nonzero"):
        original = getattr(torch.Tensor, name)

        def noted(self, *arguments, original=original, name=name):
            (inside if layers and layers[-1] else reads).append(name)
            return original(self, *arguments)

        monkeypatch.setattr(torch.Tensor, name, noted)
    handles = []
    for layer in bench.loaded.model.model.language_model.layers:
        handles.append(layer.register_forward_pre_hook(lambda *_: layers.append(True)))
        handles.append(layer.register_forward_hook(lambda *_: layers.append(False)))
    steps = []
    run = decode.EagerStep.run
    monkeypatch.setattr(decode.EagerStep, "run", lambda self: steps.append(len(reads)) or run(self))
    bench.extract(samples)
    for handle in handles:
        handle.remove()
    assert not inside
    assert len(steps) == bench.loaded.generation.max_new_tokens - 1
    assert {after - before for before, after in pairwise(steps)} == {1}


@pytest.fixture
def on_gpu(bench):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return bench("28-layers", "bfloat16", "cuda")


@pytest.mark.accelerator
def test_a_captured_step_gives_the_same_answers(on_gpu, monkeypatch):
    """On a GPU a step is one graph, captured again for fewer rows."""
    samples = on_gpu.samples(SHARED)
    captured = []
    original = decode.GraphStep.__init__

    def counted(self, *arguments):
        original(self, *arguments)
        captured.append(1)

    monkeypatch.setattr(decode.GraphStep, "__init__", counted)
    graphs = answers_with(on_gpu, samples, (-1,), 40)
    assert captured
    monkeypatch.setattr(decode, "GRAPH_STEPS", 1000)
    eager = answers_with(on_gpu, samples, (-1,), 40)
    pairs = zip(graphs.text["answer"], eager.text["answer"], strict=True)
    same = [one == other for one, other in pairs]
    assert sum(same) >= len(samples) - 1, "bfloat16 may tip one"
    scores = [one.scores["mean_logprob"][same] for one in (graphs, eager)]
    assert np.allclose(*scores, atol=0.02)


@pytest.mark.accelerator
def test_states_on_a_gpu_are_as_close_to_float32_as_bfloat16_is(on_gpu, bench):
    """With the variable-length kernel, where torch has it, in decoder and vision encoder."""
    samples = on_gpu.samples(SHARED)
    got = on_gpu.extract(samples).features
    truth = bench("28-layers", "float32").extract(samples).features
    single = bench("28-layers", "bfloat16").extract(samples).features
    for name, expected in truth.vectors.items():
        distance = np.linalg.norm(got.vectors[name] - expected)
        assert distance <= 1.5 * np.linalg.norm(single.vectors[name] - expected), name


# -- memory --------------------------------------------------------------------------------------


def test_the_budget_is_what_keys_and_values_take(bench, monkeypatch):
    """Measured: the bytes of a batch's buffers, by its tokens; and a large model has room too."""
    bench = bench()
    model = bench.loaded.model
    made = []
    original = extractor.KeyValueRows.layer

    def layer(self, index, like):
        made.append((self, buffers := original(self, index, like)))
        return buffers

    monkeypatch.setattr(extractor.KeyValueRows, "layer", layer)
    bench.extract(bench.samples(SHARED))
    rows = made[0][0]
    per_layer = sum(one.numel() * one.element_size() for one in made[0][1])
    layers = bench.loaded.n_layers
    assert per_layer == len(rows) * rows.width * memory.layer_token_bytes(model)
    assert memory.token_budget(model) == memory.HOST_BYTES // (
        layers * memory.layer_token_bytes(model)
    )
    published_7b = 28 * 2 * 4 * 128 * 2
    assert memory.HOST_BYTES // published_7b > 5 * 1600, "on a CPU, too"


# -- more than one device ------------------------------------------------------------------------


def test_a_model_that_moves_its_inputs_between_devices_gives_the_same(bench):
    """accelerate's hooks, which `--device-map auto` puts around the layers of a large model."""
    from accelerate import dispatch_model
    from accelerate.hooks import remove_hook_from_submodules

    bench = bench("5-layers-hidden-48-6-heads-3-kv")
    samples = bench.samples(SHARED)
    before = bench.extract(samples).features
    model = bench.loaded.model
    places = {"model.visual": "cpu", "model.language_model": "cpu", "lm_head": "cpu"}
    dispatch_model(model, places, main_device="cpu", force_hooks=True)
    try:
        after = bench.extract(samples).features
    finally:
        remove_hook_from_submodules(model)
    for name, values in before.vectors.items():
        assert np.array_equal(after.vectors[name], values), name
    assert after.text == before.text
