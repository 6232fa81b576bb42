"""The training: what is packed is what stands alone, and the same seed gives the same weights."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tolerance import apart, assert_within, relative, rounding

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint's files, without weights."""
    from halp_worker.demo.training.network import write_files

    folder = tmp_path_factory.mktemp("shapes")
    write_files(folder)
    return folder


@pytest.fixture
def fresh(files):
    """(model, processor) before any training."""
    from halp_worker.demo.training.network import build_network

    model, processor = build_network(files, seed=0)
    return model.eval(), processor


def pack(model, processor, seed=3, difficulty_limit=1.0):
    from halp_worker.demo.training.packing import Packer, pose

    posed = pose(np.random.default_rng(seed), 3, difficulty_limit)
    return posed, Packer(processor, model).pack(posed)


def test_a_packed_question_is_computed_as_if_it_stood_alone(fresh):
    """Its scores equal a normal forward of the chat that the processor makes of it."""
    import torch
    from PIL import Image

    from halp_worker.demo.training.loop import answer_scores, image_tokens, residual_stream
    from halp_worker.demo.world.scene import draw

    model, processor = fresh
    posed, batch = pack(model, processor)
    text, vision = model.config.get_text_config(), model.config.vision_config
    layers = text.num_hidden_layers + vision.depth + 3
    bound = rounding(layers, max(text.intermediate_size, 4 * vision.hidden_size))
    with torch.no_grad():
        states = residual_stream(model, batch, image_tokens(model, batch))
        packed = iter(answer_scores(model, states[-1], batch)[:, 0])
        for one in posed:
            picture = Image.fromarray(draw(one.scene))
            for question in one.questions:
                content = [{"type": "image"}, {"type": "text", "text": question.text}]
                chat = processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True
                )
                inputs = processor(text=[chat], images=[picture], return_tensors="pt")
                alone = model(**inputs).logits[0, -1]
                assert_within(relative(next(packed), alone), bound)
    assert next(packed, None) is None


def test_both_frames_in_one_matrix_equal_the_librarys_convolution(fresh):
    """For still pictures, where both frames are the same."""
    import torch

    from halp_worker.demo.training.network import SingleFrameEmbedding

    model, processor = fresh
    _, batch = pack(model, processor)
    library = model.model.visual.patch_embed
    with torch.no_grad():
        folded = SingleFrameEmbedding(library)(batch.pixel_values)
        expected = library(batch.pixel_values)
    weight = library.proj.weight.detach().flatten(1)
    # The products may cancel: what they err by follows their own size.
    size = batch.pixel_values.norm(dim=1).max() * weight.norm(dim=1).max()
    assert_within(apart(folded, expected) / float(size), rounding(2, weight.shape[1]))


def test_a_head_first_looks_most_at_the_patch_next_door(fresh):
    """The biases alone, in the tower's own attention: the largest score is one step away."""
    import torch

    from halp_worker.demo.training.sight import _NEXT_DOOR

    visual = fresh[0].model.visual
    attention = visual.blocks[0].attn
    query, key, _ = attention.qkv.bias.detach().view(3, attention.num_heads, -1)
    rotations = visual.rotary_pos_emb.inv_freq
    for head, (up, left) in enumerate(_NEXT_DOOR):
        scores = {}
        for row in range(-3, 4):
            for column in range(-3, 4):
                turns = torch.cat((rotations * row, rotations * column)).repeat(2)
                half = attention.head_dim // 2
                crossed = torch.cat((-key[head, half:], key[head, :half]))
                turned = key[head] * turns.cos() + crossed * turns.sin()
                scores[row, column] = float(query[head] @ turned)
        assert max(scores, key=scores.get) == (-up, -left)


def test_what_a_token_is_taught_to_see_is_in_its_cell(fresh):
    """One centre for each shape, and nothing where no shape is near."""
    model, processor = fresh
    posed, batch = pack(model, processor)
    assert batch.cell_centres.sum() == sum(len(one.scene.shapes) for one in posed)
    empty = batch.cell_kinds < 0
    assert (empty == (batch.cell_colours < 0)).all()
    assert (empty == batch.cell_spots[:, 0].isnan()).all()
    assert 0 < empty.sum() < len(empty)


@pytest.fixture(scope="module")
def trained(files):
    """The same short training twice, and what it reported."""
    from halp_worker.demo.training.loop import Schedule, train

    schedule = Schedule(seeing_steps=10, steps=30, pictures=4)
    reports = ([], [])
    return [train(files, schedule, lines.append) for lines in reports], reports


def test_the_same_seed_gives_the_same_weights(trained):
    """Bit for bit, on one machine."""
    import torch

    (one, other), (first, second) = trained
    assert first == second
    again = dict(other.named_parameters())
    assert all(torch.equal(values, again[name]) for name, values in one.named_parameters())


def test_a_short_training_lowers_the_loss(trained, fresh):
    """Of the answers to questions on easy pictures that it never saw."""
    import torch
    from torch.nn.functional import cross_entropy

    from halp_worker.demo.training.loop import answer_scores, image_tokens, residual_stream

    def loss(model):
        _, batch = pack(model, fresh[1], seed=99, difficulty_limit=0.1)
        with torch.no_grad():
            states = residual_stream(model, batch, image_tokens(model, batch))
            scores = answer_scores(model, states[-1], batch)
            return cross_entropy(scores.flatten(0, 1), batch.answers.flatten()).item()

    assert loss(trained[0][0]) < 0.5 * loss(fresh[0])


def test_the_record_tells_the_machine_but_not_its_name_or_folders(tmp_path):
    """What is needed to judge the figures, nothing of who made them."""
    import socket

    from halp_worker.demo.training.loop import Schedule
    from halp_worker.demo.training.record import write_record

    path = write_record(tmp_path, Schedule(seed=4), 12.3, {"fresh": {}})
    text = path.read_text()
    record = json.loads(text)
    assert (record["schedule"]["seed"], record["seconds"]) == (4, 12)
    assert {"processor", "cores", "torch", "transformers"} <= set(record["machine"])
    assert socket.gethostname() not in text
    assert str(tmp_path) not in text


def test_the_command_explains_itself():
    """`python -m halp_worker.demo.training --help`."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "halp_worker.demo.training", "--help"]
    assert "--seed" in subprocess.check_output(command, text=True)
