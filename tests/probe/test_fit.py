"""A probe for use: chosen inside, measured outside, saved whole or not at all."""

import dataclasses
import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from halp_probe.cli import app
from halp_probe.fit import How, Origin, all_of, fit, plan_of, thresholds_of
from halp_probe.judging.verdict import Kind, Label, Verdict
from halp_probe.labels import write_labels
from halp_probe.metrics import auroc_of
from halp_probe.probe import BadProbe, check_fits, load_probe
from halp_probe.representation import Representation, name_of, parse_representations
from halp_probe.rows import load_rows
from halp_probe.splits import CannotSplit
from halp_store.features import FeatureBatch
from halp_store.layout import TEXT_COLUMNS, Layout
from halp_store.reader import open_store
from halp_store.writer import StoreWriter

LAYOUT = Layout(
    layers=(0, 6),
    positions=("query_token",),
    hidden_size=6,
    vision_hidden_size=4,
    source_dtype="float32",
    fingerprint={"model": "small", "generation": {"max_new_tokens": 9}},
)
ORIGIN = Origin("run.zarr", "auto", 3)


def _written(path, layout=LAYOUT, count=240, images=80, seed=0, signal=2.0):
    """query_token@6 knows which answers are wrong, the others do not. Which are, in order of id."""
    draws = np.random.default_rng(seed)
    wrong = draws.random(count) < 0.4
    vectors = {
        name: draws.standard_normal((count, *shape)).astype(np.float32)
        for name, (_, shape) in layout.vector_columns().items()
    }
    vectors["query_token"][:, -1, 0] += signal * wrong
    ids = tuple(f"q{number:04}" for number in range(count))
    text = dict.fromkeys(TEXT_COLUMNS, ("",) * count)
    text |= {
        "question_id": ids,
        "image": tuple(f"{number % images}.png" for number in range(count)),
        "answer": ("yes",) * count,
        "ground_truth": tuple("no" if one else "yes" for one in wrong),
        "question_text": ("Is it?",) * count,
        "content_hash": ids,
        "metadata": ("{}",) * count,
    }
    integers = {
        name: np.full((count, *shape), 3, np.int64)
        for name, (_, shape) in layout.integer_columns().items()
    }
    writer = StoreWriter.open(path, layout, worker="test", provenance={})
    writer.append(FeatureBatch(layout, text, integers, vectors))
    writer.flush()
    return wrong


def _verdicts(wrong):
    return {
        f"q{number:04}": Verdict(Label.WRONG if one else Label.RIGHT, "rule", Kind.YES_NO)
        for number, one in enumerate(wrong)
    }


@pytest.fixture
def made(tmp_path):
    """A store, and its labelled rows."""
    wrong = _written(tmp_path / "run.zarr")
    store = open_store(tmp_path / "run.zarr")
    return store, load_rows(store, _verdicts(wrong))


def _how(store, **changes):
    how = How(all_of(store), "logistic", seed=0, folds=4, inner_folds=2, jobs=1)
    return dataclasses.replace(how, **changes)


def test_the_representation_that_knows_is_chosen(made):
    """By rows that were left out, in the probe itself and in each fold that measures it."""
    store, rows = made
    probe = fit(store, rows, _how(store), ORIGIN)
    assert probe.parts == (Representation("query_token", 6),)
    assert probe.about["picks"] == {"query_token@6": 4}
    assert set(probe.about["chosen_among"]) == {name_of(one) for one in all_of(store)}
    found = probe.about["auroc"]
    assert found["low"] < found["value"] < found["high"]
    known = auroc_of(store.array("query_token", 6)[1][:, 0], rows.wrong)
    assert known - 0.03 < found["value"] < known + 0.01


def test_what_is_said_of_it_is_said_of_its_rows(made):
    """Counts, labels, settings and versions; JSON without NaN."""
    store, rows = made
    about = fit(store, rows, _how(store, representations=all_of(store)[-1:]), ORIGIN).about
    expected = {
        "store": "run.zarr",
        "model": "small",
        "judge": "auto",
        "label_version": 3,
        "rows": 240,
        "wrong": int(rows.wrong.sum()),
        "images": 80,
        "classifier": "logistic",
        "online": True,
    }
    assert expected.items() <= about.items()
    assert "scikit-learn" in about["versions"]
    assert len(about["thresholds"]) == 10
    json.dumps(about, allow_nan=False)


def test_shuffled_labels_give_a_probe_that_says_it_knows_nothing(tmp_path):
    """Its own risks of the rows it learned from look good; what it says of itself does not."""
    wrong = _written(tmp_path / "run.zarr", count=300)
    store = open_store(tmp_path / "run.zarr")
    shuffled = np.random.default_rng(3).permutation(wrong)
    probe = fit(store, load_rows(store, _verdicts(shuffled)), _how(store), ORIGIN)
    assert probe.about["auroc"]["low"] < 0.5 + 0.03
    assert probe.about["auroc"]["value"] < 0.6


def test_the_figures_are_of_the_folds_and_not_of_the_rows_it_learned_from(made):
    """An MLP that knows its own rows by heart does not say so of itself."""
    store, rows = made
    noise = parse_representations(store.layout, "vision_only+query_token@0")
    how = _how(store, representations=(noise,), classifier="mlp")
    probe = fit(store, rows, how, ORIGIN)
    _, x = store.array("query_token", 0)
    _, vision = store.array("vision_only")
    learned = auroc_of(probe.network.risk(np.concatenate([vision, x], 1)), rows.wrong)
    assert learned > probe.about["auroc"]["value"] + 0.05
    assert abs(probe.about["auroc"]["value"] - 0.5) < 0.12
    assert probe.about["chosen"]["epochs"] >= 1


def test_thresholds_count_what_would_be_skipped():
    """By hand: shares of all answers, of the skipped, of the wrong, of the rest."""
    risk = np.array([0.1, 0.6, 0.7, 0.9, 0.5], np.float32)
    wrong = np.array([False, False, True, True, True])
    half, high, none = thresholds_of(risk, wrong, (0.5, 0.8, 0.95))
    assert (half.share, half.precision) == (0.6, pytest.approx(2 / 3))
    assert (half.caught, half.wrong_below) == (pytest.approx(2 / 3), 0.5)
    assert (high.share, high.precision, high.caught, high.wrong_below) == (
        pytest.approx(0.2),
        1.0,
        pytest.approx(1 / 3),
        0.5,
    )
    assert (none.share, none.caught) == (0.0, 0.0)
    assert math.isnan(none.precision)


def test_no_image_is_on_both_sides(made):
    """Neither in the folds that measure nor, so, in what is said of the probe."""
    store, rows = made
    for train, test in plan_of(rows, _how(store)).splits[0]:
        assert not set(rows.groups[train]) & set(rows.groups[test])


def test_a_seed_gives_one_probe(made):
    """Everything but the time; another seed splits otherwise."""
    store, rows = made
    how = _how(store, representations=all_of(store)[-1:])
    one, two = (fit(store, rows, how, ORIGIN) for _ in range(2))
    timeless = [
        dataclasses.replace(probe, about={**probe.about, "created": ""}).digest
        for probe in (one, two)
    ]
    assert timeless[0] == timeless[1]
    other = fit(store, rows, dataclasses.replace(how, seed=1), ORIGIN)
    assert other.about["auroc"] != one.about["auroc"]


def test_too_few_images_are_a_sentence(made):
    """How many there are, and what to do."""
    store, rows = made
    with pytest.raises(CannotSplit, match="folds by image"):
        fit(store, rows, _how(store, folds=200), ORIGIN)


def test_the_probe_is_for_this_layout_alone(made):
    """A store with other layers is refused, by name."""
    store, rows = made
    probe = fit(store, rows, _how(store, representations=all_of(store)[-1:]), ORIGIN)
    check_fits(probe, store.layout, "x")
    with pytest.raises(BadProbe, match="layers"):
        check_fits(probe, dataclasses.replace(LAYOUT, layers=(0, 7)), "x")


@pytest.fixture
def labelled(tmp_path, monkeypatch):
    """A store with labels beside it; the working directory is its folder."""
    monkeypatch.chdir(tmp_path)
    wrong = _written(tmp_path / "run.zarr")
    write_labels(open_store("run.zarr"), "auto", _verdicts(wrong))
    return tmp_path


def _fit(*options):
    return CliRunner().invoke(
        app, ["fit", "run.zarr", "--save", "p.safetensors", "--jobs", "1", *options]
    )


def test_the_command_saves_a_probe_and_says_how_to_use_it(labelled):
    """What it is, how good, the thresholds, and the next command."""
    done = _fit("--representation", "query_token@6")
    assert done.exit_code == 0, done.output
    probe = load_probe(labelled / "p.safetensors")
    assert (probe.name, probe.about["judge"]) == ("query_token@6", "auto")
    assert "AUROC" in done.stdout
    assert "risk above" in done.stdout
    assert "halp-worker run" in done.stdout
    assert "--probe p.safetensors" in done.stdout
    shown = CliRunner().invoke(app, ["show", "p.safetensors"])
    assert shown.exit_code == 0
    assert "query_token@6" in shown.stdout
    read = json.loads(CliRunner().invoke(app, ["show", "p.safetensors", "--json"]).stdout)
    assert read["sha256"] == probe.digest
    assert read["about"] == json.loads(json.dumps(probe.about))


def test_the_command_writes_over_nothing_unless_told(labelled):
    """Before any work; --force replaces."""
    (labelled / "p.safetensors").write_bytes(b"mine")
    refused = _fit("--representation", "query_token@6")
    assert refused.exit_code == 1
    assert "exists" in refused.stderr
    assert (labelled / "p.safetensors").read_bytes() == b"mine"
    assert _fit("--representation", "query_token@6", "--force").exit_code == 0
    assert load_probe(labelled / "p.safetensors").name == "query_token@6"
    assert [one.name for one in labelled.iterdir() if "partial" in one.name] == []


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        (["--representation", "query_token@5"], "query_token@6", 1),
        (["--judge", "nobody"], "nobody", 1),
        (["--classifier", "forest"], "forest", 2),
        (["--folds", "1"], "folds", 2),
        (["--folds", "500"], "folds", 1),
    ],
)
def test_the_command_says_what_is_wrong(labelled, options, said, code):
    """One sentence, its exit code, and no file."""
    done = _fit(*options)
    assert done.exit_code == code, done.output
    assert said in done.stderr
    assert "Traceback" not in done.output
    assert not (labelled / "p.safetensors").exists()


def test_a_probe_of_an_imported_store_says_that_no_worker_can_use_it(tmp_path, monkeypatch):
    """It is saved, for stores of the same import."""
    monkeypatch.chdir(tmp_path)
    imported = {"imported": {"format": "halp-hdf5", "unknown": ["vision_encoder"]}}
    layout = dataclasses.replace(LAYOUT, fingerprint=imported, vision_hidden_size=0)
    wrong = _written(tmp_path / "run.zarr", layout)
    write_labels(open_store("run.zarr"), "auto", _verdicts(wrong))
    done = _fit("--representation", "query_token@6")
    assert done.exit_code == 0, done.output
    assert "no worker can use it" in done.stdout
    assert "halp-worker run" not in done.stdout
    assert load_probe(tmp_path / "p.safetensors").identity["imported"]["format"] == "halp-hdf5"
