"""How good a checkpoint is: its greedy answers to a data set, by the worker's extractor."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from halp_probe.judging.judges import judge_auto
from halp_probe.judging.verdict import Label, Question
from halp_producer.job import Job, parse
from halp_worker.batcher import Batch
from halp_worker.delivery import row_key
from halp_worker.fates import FatalError
from halp_worker.launch import input_builder
from halp_worker.model.extractor import Extractor
from halp_worker.model.layers import choose_layers, choose_positions, layout_of
from halp_worker.model.loading import load_model
from halp_worker.settings import ModelSettings

_BATCH_SIZE: Final = 32

MAX_NEW_TOKENS: Final = 8
"""Answers are one word; room for one that goes wrong to show that it does."""


def read_jobs(dataset: Path) -> list[Job]:
    """The data set's lines as jobs, in order."""
    return [parse(json.loads(line)) for line in dataset.read_text(encoding="utf-8").splitlines()]


def answers(checkpoint: Path, jobs: Sequence[Job], images: Path) -> list[str]:
    """The model's answers in bfloat16 on the CPU, in the order of the jobs. Raises FatalError."""
    settings = ModelSettings(str(checkpoint), device="cpu", max_new_tokens=MAX_NEW_TOKENS)
    loaded = load_model(settings)
    layout = layout_of(
        loaded, choose_layers("auto", loaded.n_layers), choose_positions(("query_token",))
    )
    inputs = input_builder(loaded, layout.positions, images, allow_urls=False)
    extractor = Extractor(loaded, layout)
    given: list[str] = []
    for start in range(0, len(jobs), _BATCH_SIZE):
        some = jobs[start : start + _BATCH_SIZE]
        batch = Batch(tuple(map(row_key, some)), tuple(map(inputs.prepare, some)))
        features = extractor.extract(batch).features
        if features is None or len(features) != len(some):
            raise FatalError(f"{checkpoint}: not every question of {images.parent} got an answer")
        given += features.text["answer"]
    return given


def accuracy(jobs: Sequence[Job], given: Sequence[str]) -> Mapping[str, Any]:
    """Questions asked and the share answered right, over all and by kind."""
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for job, answer in zip(jobs, given, strict=True):
        question = Question(job.question_id, job.question, job.ground_truth, answer)
        label = judge_auto(question).label
        for kind in ("all", str(job.metadata["kind"])):
            asked[kind] += 1
            right[kind] += label is Label.RIGHT
    return {
        kind: {"questions": asked[kind], "right": round(right[kind] / asked[kind], 4)}
        for kind in sorted(asked)
    }
