"""The source document's mistakes, by name: none of them can come back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from halp_worker.fates import FatalError
from halp_worker.model.capture import PassCapture
from halp_worker.model.extractor import Extractor
from tolerance import assert_within, relative

pytestmark = pytest.mark.slow


SLOTS = (3, 0, 5)
TOKENS = 6


def capture_around(bench, layers=(0,)):
    """Hooks for a pass of six packed tokens, three of which are wanted."""
    return PassCapture(
        bench.loaded.model, layers, slots=SLOTS, tokens=TOKENS, names=["astronaut_0"]
    )


@pytest.fixture
def counted(bench):
    """Counts the calls of a module while the test runs: `counted(module)` is a list that grows."""
    handles = []

    def count(module):
        calls = []
        handles.append(module.register_forward_hook(lambda *_: calls.append(1)))
        return calls

    yield count
    for handle in handles:
        handle.remove()


def test_mistake_patch_count_as_token_count(bench):
    """`grid.prod()` counts patches before the merge: four times the tokens, outside the prompt."""
    for sample in bench().samples():
        patches = int(sample.image.grid_thw.prod())
        assert sample.image.tokens == patches // 4
        vision_token = sample.positions[0]
        assert vision_token not in (patches, patches - 1)
        assert patches > sample.prompt_tokens, "the document's index would store nothing"


def test_mistake_image_starts_at_position_zero(bench):
    """The image comes after the system turn: its last token is not its token count."""
    bench = bench()
    sample = bench.samples()[0]
    ids = sample.input_ids.tolist()
    first = ids.index(bench.loaded.processor.image_token_id)
    assert first > 0
    assert sample.positions[0] == first + sample.image.tokens - 1


def test_mistake_decode_overwrites_the_prompt(bench, counted):
    """A layer is called once more per new token; the rows are those of the prompt alone."""
    bench = bench()
    samples = bench.samples()
    calls = counted(bench.loaded.model.model.language_model.layers[0])
    answered = bench.extract(samples).features
    assert len(calls) > 3, "decoding went on after the prefill"
    generation = dataclasses.replace(bench.loaded.generation, max_new_tokens=0)
    silent = Extractor(dataclasses.replace(bench.loaded, generation=generation), bench.layout)
    unanswered = dataclasses.replace(bench, extractor=silent).extract(samples).features
    for name, expected in unanswered.vectors.items():
        assert np.array_equal(answered.vectors[name], expected), name


def test_mistake_dropped_batch_axis(bench):
    """`output[0]` of a Tensor is the first sample: rows of different samples must differ."""
    bench = bench()
    states = bench.extract(bench.samples()).features.vectors["query_token"]
    assert states.shape[0] == 4
    for row in range(1, 4):
        assert relative(states[0], states[row]) > 1000 * bench.bound()


def test_mistake_tuple_output_of_older_layers(bench):
    """Layers returned a tuple up to 5.3: the hook takes its first element, all of it."""
    bench = bench()
    capture = capture_around(bench)
    states = torch.randn(1, TOKENS, bench.loaded.hidden_size)
    capture._hook(0)(None, None, (states, None))
    assert torch.equal(capture.states()[:, 0], states[0, list(SLOTS)])


def test_mistake_last_index_off_by_one(bench):
    """The query token is T - 1, the last token there is; T would be outside."""
    for sample in bench().samples():
        assert sample.positions[1] == len(sample.input_ids) - 1


def test_mistake_vision_token_sees_the_question(bench):
    """Attention is causal: two questions on one image share their vision_token rows."""
    from .conftest import Question

    bench = bench()
    samples = bench.samples(
        (Question("coffee.png", "What is it?"), Question("coffee.png", "Is it night, or noon?"))
    )
    rows = bench.extract(samples).features.vectors
    shared, asked = rows["vision_token"], rows["query_token"]
    assert_within(relative(shared[0], shared[1]), bench.bound())
    assert relative(asked[0], asked[1]) > 1000 * bench.bound()


def test_mistake_vision_encoder_runs_more_than_once(bench, counted):
    """One pass for a batch, whatever the answers; the document's script has three a sample."""
    bench = bench()
    passes = counted(bench.loaded.model.model.visual)
    bench.extract(bench.samples())
    assert len(passes) == 1


def test_a_hook_that_does_not_fire_is_an_error_that_names_layer_and_job(bench):
    """Silence of a layer is never an empty row."""
    capture = capture_around(bench())
    with capture, pytest.raises(FatalError, match=r"layer 0: its hook fired 0 times.*astronaut_0"):
        capture.states()


def test_a_pass_of_another_length_is_an_error(bench):
    """A prompt that went through in pieces has its slots elsewhere: better none than wrong."""
    bench = bench()
    capture = capture_around(bench)
    for shape in [(1, TOKENS - 1), (2, TOKENS)]:
        with pytest.raises(FatalError, match="layer 0: expected a pass"):
            capture._hook(0)(None, None, torch.zeros(*shape, bench.loaded.hidden_size))


def test_hooks_leave_with_the_context(bench):
    """After the block, also after an error in it, the model has the hooks it had before."""
    bench = bench()
    layers = bench.loaded.model.model.language_model.layers
    before = [list(module._forward_hooks) for module in layers]
    with pytest.raises(RuntimeError), capture_around(bench, range(len(layers))):
        raise RuntimeError
    assert [list(module._forward_hooks) for module in layers] == before


def test_a_value_that_is_not_finite_names_layer_and_spares_the_neighbours(bench):
    """One job's NaN is that job's rejection; the others are stored."""
    bench = bench()
    samples = bench.samples()
    layer = bench.layout.layers[2]
    own = sum(sample.prompt_tokens - sample.prefix_tokens for sample in samples)
    last = max(samples, key=lambda sample: sample.prefix_tokens)  # of the packed questions

    def poison(module, inputs, output):
        states = output if isinstance(output, torch.Tensor) else output[0]
        if states.shape[1] == own:
            states[0, -1] = float("nan")

    handle = bench.loaded.model.model.language_model.layers[layer].register_forward_hook(poison)
    try:
        extraction = bench.extract(samples)
    finally:
        handle.remove()
    ((key, rejection),) = extraction.fates
    assert key.question_id == last.job.question_id
    assert rejection.reason == "not_finite"
    assert f"query_token layer {layer}" in rejection.error
    assert len(extraction.features) == 3


def test_the_states_of_a_batch_come_to_the_host_in_one_copy(bench, monkeypatch):
    """However many layers, positions, images and questions there are; the answers are one more."""
    bench = bench()
    samples = bench.samples()
    copies = []
    for name in ("cpu", "tolist", "item", "numpy"):
        original = getattr(torch.Tensor, name)

        def counted(self, *arguments, original=original, name=name):
            copies.append(name)
            return original(self, *arguments)

        monkeypatch.setattr(torch.Tensor, name, counted)
    bench.extract(samples)
    assert copies.count("cpu") == 1
