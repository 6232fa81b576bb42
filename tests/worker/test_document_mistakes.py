"""The source document's mistakes, by name: none of them can come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from halp_worker.fates import FatalError
from halp_worker.model.capture import PrefillCapture
from halp_worker.model.inputs import collate

pytestmark = pytest.mark.slow


def capture_around(bench, samples, layers=None):
    collated = collate(samples, bench.loaded.generation.pad_token_id)
    return collated, PrefillCapture(
        bench.loaded.model,
        bench.layout.layers if layers is None else layers,
        columns=collated.columns,
        grid_thw=collated.grid_thw,
        padded_tokens=collated.padded_tokens,
        names=[sample.job.question_id for sample in samples],
    )


def test_mistake_patch_count_as_token_count(bench):
    """`grid.prod()` counts patches before the merge: four times the tokens, outside the prompt."""
    for sample in bench().samples():
        patches = int(sample.tensors["image_grid_thw"].prod())
        assert sample.image_tokens == patches // 4
        vision_token = sample.positions[0]
        assert vision_token not in (patches, patches - 1)
        assert patches > sample.prompt_tokens, "the document's index would store nothing"


def test_mistake_image_starts_at_position_zero(bench):
    """The image comes after the system turn: its last token is not its token count."""
    bench = bench()
    sample = bench.samples()[0]
    ids = sample.tensors["input_ids"][0].tolist()
    first = ids.index(bench.loaded.processor.image_token_id)
    assert first > 0
    assert sample.positions[0] == first + sample.image_tokens - 1


def test_mistake_decode_overwrites_the_prompt(bench):
    """A layer is called once more per new token; the rows are those of the prefill alone."""
    bench = bench()
    samples = bench.samples()
    collated, capture = capture_around(bench, samples)
    calls = []
    layer = bench.loaded.model.model.language_model.layers[0]
    counter = layer.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode(), capture:
        bench.loaded.model.generate(**collated.tensors, generation_config=bench.loaded.generation)
        after_generate = capture.to_host()
    counter.remove()
    assert len(calls) > 1, "decoding went on after the prefill"
    collated, capture = capture_around(bench, samples)
    with torch.inference_mode(), capture:
        bench.loaded.model(**collated.tensors)
        prefill_only = capture.to_host()
    assert np.array_equal(after_generate.tokens, prefill_only.tokens)


def test_mistake_dropped_batch_axis(bench):
    """`output[0]` of a Tensor is the first sample: rows of different samples must differ."""
    bench = bench()
    states = bench.extract(bench.samples()).features.vectors["query_token"]
    assert states.shape[0] == 4
    for row in range(1, 4):
        assert not np.allclose(states[0], states[row])


def test_mistake_tuple_output_of_older_layers(bench):
    """Layers returned a tuple up to 5.3: the hook takes its first element, batch and all."""
    bench = bench()
    samples = bench.samples()
    collated, capture = capture_around(bench, samples, layers=[0])
    states = torch.randn(len(samples), collated.padded_tokens, bench.loaded.hidden_size)
    hook = capture._layer_hook(0)
    hook(None, None, (states, None))
    (rows,) = capture._rows[0]
    assert torch.equal(rows, states[torch.arange(len(samples))[:, None], collated.columns])


def test_mistake_last_index_off_by_one(bench):
    """The query token is T - 1, the last token there is; T would be outside."""
    for sample in bench().samples():
        assert sample.positions[1] == sample.tensors["input_ids"].shape[1] - 1


def test_mistake_vision_token_sees_the_question(bench):
    """Attention is causal: two questions on one image share their vision_token rows."""
    from .conftest import Question

    bench = bench()
    samples = bench.samples(
        (Question("coffee.png", "What is it?"), Question("coffee.png", "Is it night, or noon?"))
    )
    rows = bench.extract(samples).features.vectors
    shared, asked = rows["vision_token"], rows["query_token"]
    assert np.allclose(shared[0], shared[1], rtol=0, atol=1e-5 * np.abs(shared).max())
    assert not np.allclose(asked[0], asked[1])


def test_mistake_vision_encoder_runs_more_than_once(bench):
    """One `generate` encodes the images once; a second pass would be an error, not a cost."""
    bench = bench()
    samples = bench.samples()
    passes = []
    visual = bench.loaded.model.model.visual
    counter = visual.register_forward_hook(lambda *_: passes.append(1))
    bench.extract(samples)
    counter.remove()
    assert len(passes) == 1
    collated, capture = capture_around(bench, samples)
    with torch.inference_mode(), capture:
        bench.loaded.model(**collated.tensors)
        bench.loaded.model.model.get_image_features(
            collated.tensors["pixel_values"], collated.grid_thw
        )
    with pytest.raises(FatalError, match="vision encoder: ran 2"):
        capture.to_host()


def test_a_hook_that_does_not_fire_is_an_error_that_names_layer_and_job(bench):
    """Silence of a layer is never an empty row."""
    bench = bench()
    samples = bench.samples()[:1]
    _, capture = capture_around(bench, samples)
    with capture, pytest.raises(FatalError, match=r"layer 0: its hook fired 0 times.*astronaut_0"):
        capture.to_host()


def test_a_prefill_of_another_length_is_an_error(bench):
    """A prompt that went through in pieces has its columns elsewhere: better none than wrong."""
    bench = bench()
    samples = bench.samples()[:1]
    collated, capture = capture_around(bench, samples)
    piece = torch.zeros(1, collated.padded_tokens - 3, bench.loaded.hidden_size)
    with pytest.raises(FatalError, match="layer 7: expected a prefill"):
        capture._layer_hook(7)(None, None, piece)


def test_hooks_leave_with_the_context(bench):
    """After the block, also after an error in it, the model has the hooks it had before."""
    bench = bench()
    layers = bench.loaded.model.model.language_model.layers
    modules = [*layers, bench.loaded.model.model.visual.merger]
    before = [list(module._forward_hooks) for module in modules]
    _, capture = capture_around(bench, bench.samples())
    with pytest.raises(RuntimeError), capture:
        raise RuntimeError
    assert [list(module._forward_hooks) for module in modules] == before


def test_a_value_that_is_not_finite_names_layer_and_spares_the_neighbours(bench):
    """One job's NaN is that job's rejection; the others are stored."""
    bench = bench()
    samples = bench.samples()
    layer = bench.layout.layers[2]

    def poison(module, inputs, output):
        states = output if isinstance(output, torch.Tensor) else output[0]
        if states.shape[1] > 1:
            states[1, -1] = float("nan")

    handle = bench.loaded.model.model.language_model.layers[layer].register_forward_hook(poison)
    try:
        extraction = bench.extract(samples)
    finally:
        handle.remove()
    ((key, rejection),) = extraction.fates
    assert key.question_id == "coffee_0"
    assert rejection.reason == "not_finite"
    assert f"query_token layer {layer}" in rejection.error
    assert len(extraction.features) == 3


def test_the_states_of_a_batch_come_to_the_host_in_one_copy(bench, monkeypatch):
    """However many layers, positions and images there are."""
    bench = bench()
    collated, capture = capture_around(bench, bench.samples())
    with torch.inference_mode(), capture:
        bench.loaded.model(**collated.tensors)
    copies = []
    to_cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copies.append(1) or to_cpu(self))
    states = capture.to_host()
    assert len(copies) == 1
    assert states.tokens.shape == (4, 4, 5, 64)
