"""An `Evaluation` made of plain numbers, and a store with the pictures of its rows."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from halp_probe.judging.verdict import Kind, Label, Verdict
from halp_probe.metrics import auroc_of, figures_of
from halp_probe.results import (
    Counts,
    Entry,
    Evaluation,
    Group,
    Interval,
    Leak,
    Part,
    Transfer,
)
from halp_store.features import FeatureBatch
from halp_store.layout import TEXT_COLUMNS, Layout
from halp_store.writer import StoreWriter

LAYERS = (0, 6, 13, 20, 27)
KINDS = ("yes/no", "number", "short")
SOURCES = ("amber", "pope")
LAYOUT = Layout(
    layers=LAYERS,
    positions=("vision_token", "query_token"),
    hidden_size=4,
    vision_hidden_size=3,
    source_dtype="float32",
    fingerprint={"model": "small"},
)
NOTHING = Interval(math.nan, math.nan, math.nan)


def around(value: float, half: float) -> Interval:
    return Interval(value, max(value - half, 0), min(value + half, 1))


def make_evaluation(rows: int = 400, seeds: int = 3, draw: int = 0) -> Evaluation:
    """Risks that know something of the labels, the more the later the layer; real figures."""
    random = np.random.default_rng(draw)
    kinds = random.choice(KINDS, rows)
    sources = random.choice(SOURCES, rows)
    odds = np.select([kinds == "yes/no", kinds == "number"], [-1.6, 0.2], -0.6)
    wrong = random.random(rows) < 1 / (1 + np.exp(-odds))
    hidden = wrong + random.normal(0, 0.9, rows)

    def entry(name, group, classifier, skill, note=""):
        noise = random.normal(0, 0.5, (seeds, rows)) + random.normal(0, 1, rows) * (1 - skill)
        logit = 3.2 * skill * (hidden - 0.5) + noise - 0.8
        risk = (1 / (1 + np.exp(-logit))).astype(np.float32)
        return measured(name, group, classifier, risk, wrong, kinds, sources, note)

    names = ["vision_only", "vision_encoder"]
    names += [f"{position}@{layer}" for position in LAYOUT.positions for layer in LAYERS]
    skills = [0.25, 0.2, *np.linspace(0.2, 0.5, 5), *np.linspace(0.25, 0.9, 5)]
    entries = [
        entry(name, Group.REPRESENTATION, classifier, skill)
        for classifier in ("logistic", "mlp")
        for name, skill in zip(names, skills, strict=True)
    ]
    entries += [entry("chosen", Group.CHOSEN, one, 0.9, "by inner folds") for one in
                ("logistic", "mlp")]  # fmt: skip
    entries.append(entry("vision_only+query_token@20", Group.COMBINATION, "logistic", 0.85))
    entries.append(entry("question kind only", Group.BASELINE, "logistic", 0.4, "by the judge"))
    entries.append(entry("image only", Group.BASELINE, "logistic", 0.25))
    plain = entry("first-token entropy", Group.BASELINE, "none", 0.5, "as it is")
    entries.append(replace(plain, ece=NOTHING, risk=plain.risk * 5))
    shuffled = entry("shuffled labels", Group.CONTROL, "logistic", 0.0, "query_token@20")
    entries.append(replace(shuffled, auroc=around(0.497, 0.021)))
    labels = {"wrong": int(wrong.sum()), "right": int((~wrong).sum()), "abstained": 17,
              "unjudged": 3}  # fmt: skip
    return Evaluation(
        store="run1.zarr",
        model="Qwen/Qwen2.5-VL-7B-Instruct@cc59489",
        judge="auto 1",
        counts=Counts(
            stored=rows + 20,
            labels=labels,
            rows=rows,
            wrong=int(wrong.sum()),
            images=rows // 2,
            kinds=counted(kinds, wrong),
            sources=counted(sources, wrong),
        ),
        entries=tuple(entries),
        picks={
            "logistic": {"query_token@27": 9, "query_token@20": 6},
            "mlp": {"query_token@27": 15},
        },
        picked_on_test={"logistic": ("query_token@27", 0.8765), "mlp": ("query_token@27", 0.8888)},
        transfers=(
            Transfer("query_token@20", "logistic", "amber", "pope", 190, around(0.7321, 0.04)),
            Transfer("query_token@20", "logistic", "pope", "amber", 210, around(0.6432, 0.05)),
        ),
        leaks=(Leak("query_token@20", "logistic", around(0.8123, 0.03), around(0.8954, 0.02)),),
        settings={
            "seeds": seeds,
            "folds": 5,
            "C": [0.001, 0.1, 10.0],
            "combine": [],
            "kind_field": None,
            "seconds": 12.5,
            "versions": {"numpy": "2.0"},
        },
        ids=tuple(f"q{number:05d}" for number in range(rows)),
        wrong=wrong,
    )


def measured(name, group, classifier, risk, wrong, kinds, sources, note=""):
    found = [figures_of(one, wrong) for one in risk]
    figures = {
        key: around(float(np.mean([getattr(one, key) for one in found])), 0.031)
        for key in ("auroc", "auprc", "ece", "aurc")
    }
    return Entry(
        name=name,
        group=group,
        classifier=classifier,
        **figures,
        by_kind=parts(risk, wrong, kinds),
        by_source=parts(risk, wrong, sources),
        risk=risk,
        note=note,
    )


def parts(risk, wrong, names):
    return {
        str(name): Part(
            int((names == name).sum()),
            int(wrong[names == name].sum()),
            around(auroc_of(risk[0, names == name], wrong[names == name]), 0.052),
        )
        for name in sorted(set(names))
    }


def counted(names, wrong):
    return {
        str(name): (int((names == name).sum()), int(wrong[names == name].sum()))
        for name in sorted(set(names))
    }


def write_store(path: Path, evaluation: Evaluation, **texts: str) -> None:
    """A store of the evaluation's rows, and `images` beside it. texts: of each row, as given."""
    images = path.parent / "images"
    images.mkdir(exist_ok=True)
    hashes = []
    for number in range(8):
        picture = Image.new("RGB", (320, 200), (40 + 25 * number, 130, 200 - 20 * number))
        ImageDraw.Draw(picture).ellipse((60 + 10 * number, 40, 200, 160), fill="white")
        picture.save(images / f"{number}.png")
        hashes.append(hashlib.sha256((images / f"{number}.png").read_bytes()).hexdigest())
    rows = [
        dict.fromkeys(TEXT_COLUMNS, "")
        | {
            "question_id": one,
            "content_hash": f"hash {one}",
            "question_text": f"Is there a white disc left of the kettle, {number}?",
            "answer": "Yes, there is one.",
            "ground_truth": "no" if evaluation.wrong[number] else "yes",
            "image": f"{number % 8}.png",
            "image_sha256": hashes[number % 8],
            "finish_reason": "stop",
            "metadata": "{}",
        }
        | texts
        for number, one in enumerate(evaluation.ids)
    ]
    count = len(rows)
    batch = FeatureBatch(
        LAYOUT,
        {name: tuple(one[name] for one in rows) for name in TEXT_COLUMNS},
        {
            name: np.full((count, *shape), 7) + (100 if name == "prompt_tokens" else 0)
            for name, (_, shape) in LAYOUT.integer_columns().items()
        },
        {
            name: np.full((count, *shape), 0.5, np.float32)
            for name, (_, shape) in LAYOUT.vector_columns().items()
        },
    )
    writer = StoreWriter.open(path, LAYOUT, worker="worker", provenance={})
    writer.append(batch)
    writer.flush()


def make_verdicts(evaluation: Evaluation) -> dict[str, Verdict]:
    return {
        one: Verdict(Label.WRONG, "yes/no: yes where the truth is no", Kind.YES_NO)
        if bad
        else Verdict(Label.RIGHT, "yes/no: the same", Kind.YES_NO)
        for one, bad in zip(evaluation.ids, evaluation.wrong.tolist(), strict=True)
    }
