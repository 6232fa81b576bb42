"""What is shipped: it loads as any checkpoint does, and is as good as its record says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from halp_probe.judging.normalise import tidied
from halp_worker.demo import HELD_OUT, SHAPES
from halp_worker.demo.world.questions import ANSWERS
from tolerance import assert_within, relative, rounding


@pytest.fixture(scope="module")
def record():
    """`training.json`."""
    return json.loads((SHAPES / "training.json").read_text())


def size_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_is_shipped_is_small():
    """Ten megabytes of weights would be a download; this is a part of the package."""
    weights = sum(path.stat().st_size for path in SHAPES.glob("*.safetensors"))
    assert 1_000_000 < weights < 10_000_000
    assert size_bytes(SHAPES) + size_bytes(HELD_OUT) < 7_000_000


def test_the_held_out_set_is_the_one_that_its_seed_makes(tmp_path):
    """Questions to the letter, pictures to the pixel."""
    from PIL import Image

    from halp_worker.demo.world.dataset import write_dataset

    write_dataset(tmp_path, len(list((HELD_OUT / "images").iterdir())), seed=1)
    assert (tmp_path / "dataset.jsonl").read_text() == (HELD_OUT / "dataset.jsonl").read_text()
    for path in sorted((HELD_OUT / "images").iterdir()):
        with Image.open(path) as shipped, Image.open(tmp_path / "images" / path.name) as made:
            assert (np.asarray(shipped) == np.asarray(made)).all()


def test_the_record_says_wrong_often_enough_to_study_and_right_far_above_chance(record):
    """10 to 30 % wrong over all; every kind above chance by half of what is left."""
    judged = record["accuracy"]["fresh"]
    assert judged["all"]["questions"] >= 2000
    assert 0.7 <= judged["all"]["right"] <= 0.9
    for kind, answers in ANSWERS.items():
        chance = 1 / len(answers)
        assert judged[kind]["right"] > chance + 0.5 * (1 - chance), kind


def test_the_page_says_what_the_record_says(record):
    """The table of docs/demo-model.md, kind by kind."""
    page = (Path(__file__).parents[2] / "docs" / "demo-model.md").read_text()
    cells = [[cell.strip() for cell in row.split("|")] for row in page.splitlines()]
    shown = {row[1]: row[3:5] for row in cells if len(row) == 6 and row[3].endswith("%")}
    sets = [record["accuracy"][name] for name in ("fresh", "held_out")]
    assert shown.keys() == sets[0].keys()
    for kind, rates in shown.items():
        assert rates == [f"{100 * one[kind]['right']:.1f} %" for one in sets], kind


@pytest.mark.slow
def test_the_shipped_model_is_as_good_as_its_record_says(record):
    """On the shipped questions, by the worker's extractor; arithmetic differs between machines."""
    from halp_worker.demo.training.score import accuracy, answers, read_jobs

    jobs = read_jobs(HELD_OUT / "dataset.jsonl")
    found = accuracy(jobs, answers(SHAPES, jobs, HELD_OUT / "images"))
    for kind, expected in record["accuracy"]["held_out"].items():
        assert found[kind]["questions"] == expected["questions"]
        # Two answers of a kind may fall to the other side of a tie.
        assert abs(found[kind]["right"] - expected["right"]) <= 2.5 / expected["questions"], kind


@pytest.mark.slow
def test_it_loads_with_plain_from_pretrained_and_its_states_are_what_the_extractor_gives():
    """No weight missing or left over; each stored layer equals the library's hidden state."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    from halp_worker.batcher import Batch
    from halp_worker.delivery import row_key
    from halp_worker.demo.training.score import read_jobs
    from halp_worker.launch import input_builder
    from halp_worker.model.extractor import Extractor
    from halp_worker.model.layers import choose_layers, layout_of
    from halp_worker.model.loading import load_model
    from halp_worker.settings import ModelSettings

    model, loading = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        SHAPES, dtype=torch.float32, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(SHAPES)
    jobs = read_jobs(HELD_OUT / "dataset.jsonl")[:40:5]

    loaded = load_model(ModelSettings(str(SHAPES), dtype="float32", device="cpu", max_new_tokens=4))
    layout = layout_of(loaded, choose_layers("0,1,2,3,4,5,6,7", loaded.n_layers), ("query_token",))
    inputs = input_builder(loaded, layout.positions, HELD_OUT / "images", allow_urls=False)
    batch = Batch(tuple(map(row_key, jobs)), tuple(map(inputs.prepare, jobs)))
    rows = Extractor(loaded, layout).extract(batch).features

    text, vision = model.config.get_text_config(), model.config.vision_config
    layers = text.num_hidden_layers + vision.depth + 3
    bound = rounding(layers, max(text.intermediate_size, 4 * vision.hidden_size))
    for number, job in enumerate(jobs):
        content = [{"type": "image"}, {"type": "text", "text": job.question}]
        chat = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        with Image.open(HELD_OUT / "images" / job.image) as picture, torch.no_grad():
            asked = processor(text=[chat], images=[picture], return_tensors="pt")
            seen = model(**asked, output_hidden_states=True)
            said = model.generate(**asked, max_new_tokens=4, do_sample=False)
        at = int(rows.integers["query_token_position"][number])
        # The last one is after the final norm, and the store has what is before it.
        for layer in layout.layers[:-1]:
            expected = seen.hidden_states[layer + 1][0, at].numpy()
            got = rows.vectors["query_token"][number][layout.layers.index(layer)]
            assert_within(relative(got, expected), bound, layer)
        answer = processor.decode(said[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        assert tidied(rows.text["answer"][number]) == tidied(answer)
