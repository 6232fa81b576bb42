"""Risks of a whole store offline: the same numbers, in the store's order, or a refusal."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from halp_probe import score as scoring
from halp_probe.cli import app
from halp_probe.network import Network
from halp_probe.probe import BadProbe, Probe, identity_of, save_probe
from halp_probe.representation import Representation
from halp_probe.score import score
from halp_store.features import FeatureBatch
from halp_store.layout import TEXT_COLUMNS, Layout
from halp_store.reader import open_store
from halp_store.writer import StoreWriter
from tolerance import apart, assert_within, rounding

LAYOUT = Layout(
    layers=(0, 3, 6),
    positions=("vision_token", "query_token"),
    hidden_size=5,
    vision_hidden_size=4,
    source_dtype="float32",
    fingerprint={"model": "small"},
)
PARTS = (
    Representation("query_token", 6),
    Representation("vision_encoder"),
    Representation("vision_token", 0),
    Representation("query_token", 0),
)
COUNT = 37
BOUND = rounding(3, 5 + 4 + 5 + 5)
"""Standardised, one product, squeezed."""


def _probe(parts=PARTS, size=5 + 4 + 5 + 5):
    draws = np.random.default_rng(5)
    network = Network(
        draws.standard_normal(size).astype(np.float32),
        draws.uniform(0.5, 2, size).astype(np.float32),
        (draws.standard_normal((size, 1)).astype(np.float32),),
        (draws.standard_normal(1).astype(np.float32),),
    )
    return Probe(parts, network, identity_of(LAYOUT), {})


def _batch(layout, numbers, **scores):
    draws = np.random.default_rng(9)
    vectors = {
        name: draws.standard_normal((COUNT, *shape)).astype(np.float32)
        for name, (_, shape) in layout.vector_columns().items()
    }
    ids = tuple(f"q{number:04}" for number in range(COUNT))
    text = {**dict.fromkeys(TEXT_COLUMNS, ("",) * COUNT), "question_id": ids, "content_hash": ids}
    text["metadata"] = ("{}",) * COUNT
    integers = {
        name: np.full((COUNT, *shape), 3, np.int64)
        for name, (_, shape) in layout.integer_columns().items()
    }
    return FeatureBatch(layout, text, integers, vectors, scores).take(list(numbers))


def _written(path, layout=LAYOUT, **scores):
    """Two segments, neither of them in order of id."""
    writer = StoreWriter.open(path, layout, worker="test", provenance={})
    order = np.random.default_rng(2).permutation(COUNT)
    for some in (order[:20], order[20:]):
        writer.append(_batch(layout, some.tolist(), **scores))
        writer.flush()
    return open_store(path)


def _expected():
    """By hand, from the vectors that were written."""
    vectors = _batch(LAYOUT, range(COUNT)).vectors
    x = np.concatenate(
        [
            vectors["query_token"][:, 2],
            vectors["vision_encoder"],
            vectors["vision_token"][:, 0],
            vectors["query_token"][:, 0],
        ],
        axis=1,
    )
    return _probe().network.risk(x)


def test_each_row_has_the_risk_of_its_states(tmp_path, monkeypatch):
    """In order of id, whatever order they are stored in, and however few are read at a time."""
    store = _written(tmp_path / "s.zarr")
    found = score(store, _probe(), "p")
    assert found.ids == store.ids
    assert found.risk.dtype == np.float32
    assert_within(apart(found.risk, _expected()), BOUND)
    monkeypatch.setattr(scoring, "_BATCH_ROWS", 3)
    told = []
    again = score(store, _probe(), "p", told=lambda done, total: told.append((done, total)))
    assert_within(apart(again.risk, found.risk), BOUND)
    assert (told[0], told[-1]) == ((3, COUNT), (COUNT, COUNT))


def test_columns_without_layers_alone_can_be_scored(tmp_path):
    """No layer is read."""
    store = _written(tmp_path / "s.zarr")
    probe = _probe((Representation("vision_only"),), 5)
    _, x = store.array("vision_only")
    assert_within(apart(score(store, probe, "p").risk, probe.network.risk(x)), BOUND)


def test_an_empty_store_has_no_risks(tmp_path):
    """And is no error."""
    StoreWriter.open(tmp_path / "s.zarr", LAYOUT, worker="test", provenance={})
    found = score(open_store(tmp_path / "s.zarr"), _probe(), "p")
    assert (found.ids, len(found.risk)) == ((), 0)


def test_a_store_of_another_layout_is_refused(tmp_path):
    """Before anything is read, with the fields."""
    store = _written(tmp_path / "s.zarr", dataclasses.replace(LAYOUT, layers=(0, 3, 7)))
    with pytest.raises(BadProbe, match="layers"):
        score(store, _probe(), "p")


def _with_risk(digest, change=0.0):
    fingerprint = {**LAYOUT.fingerprint, "probe": {"sha256": digest, "abstain_above": None}}
    layout = dataclasses.replace(LAYOUT, fingerprint=fingerprint, scores=("risk",))
    risk = _expected()
    risk[4] += change
    risk[7] = np.nan
    return layout, risk


@pytest.mark.parametrize("change", [0.0, 0.25])
def test_the_largest_difference_from_a_workers_risks_is_told(tmp_path, change):
    """Of the rows that have one; and whether they are of the same probe."""
    layout, risk = _with_risk(_probe().digest, change)
    found = score(_written(tmp_path / "s.zarr", layout, risk=risk), _probe(), "p")
    assert (found.compared, found.same_probe) == (COUNT - 1, True)
    assert_within(abs(found.largest_difference - change), BOUND)


def test_risks_of_another_probe_are_said_to_be(tmp_path):
    """By the digest in the store's fingerprint."""
    layout, risk = _with_risk("0" * 64)
    found = score(_written(tmp_path / "s.zarr", layout, risk=risk), _probe(), "p")
    assert found.same_probe is False


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With a store and a probe for it."""
    monkeypatch.chdir(tmp_path)
    _written(tmp_path / "s.zarr")
    save_probe(_probe(), tmp_path / "p.safetensors")
    return tmp_path


def _score(*options):
    return CliRunner().invoke(app, ["score", "s.zarr", "p.safetensors", *options])


def test_the_command_writes_a_csv(folder):
    """To a file or to standard output: the same lines, risks to the last bit."""
    done = _score("--out", "risks.csv")
    assert done.exit_code == 0, done.output
    with (folder / "risks.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["question_id", "risk"]
    assert [one for one, _ in rows[1:]] == [f"q{number:04}" for number in range(COUNT)]
    risks = np.array([value for _, value in rows[1:]], np.float32)
    np.testing.assert_array_equal(risks, score(open_store("s.zarr"), _probe(), "p").risk)
    assert list(csv.reader(io.StringIO(_score().stdout))) == rows


def test_the_command_writes_over_nothing_unless_told(folder):
    """--force replaces."""
    (folder / "risks.csv").write_text("mine")
    refused = _score("--out", "risks.csv")
    assert (refused.exit_code, (folder / "risks.csv").read_text()) == (1, "mine")
    assert _score("--out", "risks.csv", "--force").exit_code == 0
    assert (folder / "risks.csv").read_text().startswith("question_id")


def test_the_command_speaks_json(folder):
    """Risks by id; without them where they go to a file."""
    found = json.loads(_score("--json").stdout)
    assert (found["rows"], found["largest_difference"]) == (COUNT, None)
    assert found["sha256"] == _probe().digest
    assert set(found["risks"]) == {f"q{number:04}" for number in range(COUNT)}
    assert "risks" not in json.loads(_score("--json", "--out", "risks.csv").stdout)


@pytest.mark.parametrize("command", ["score", "show"])
def test_what_is_no_probe_is_one_sentence(folder, command):
    """Exit code 1, the file's name, no traceback."""
    (folder / "p.safetensors").write_bytes(b"PK\3\4 a zip of something else")
    arguments = ["s.zarr", "p.safetensors"] if command == "score" else ["p.safetensors"]
    done = CliRunner().invoke(app, [command, *arguments])
    assert done.exit_code == 1
    assert "p.safetensors: is no probe" in done.stderr
    missing = CliRunner().invoke(app, [command, *arguments[:-1], "nothing.safetensors"])
    assert missing.exit_code == 1
    assert "nothing.safetensors" in missing.stderr


def test_a_probe_that_says_nothing_of_itself_is_shown(folder):
    """Whatever JSON another program put there."""
    for number, about in enumerate(
        [{}, {"thresholds": [1, {"above": "x"}], "auroc": [], "risk_quantiles": {"a": "b"}}]
    ):
        name = f"p{number}.safetensors"
        save_probe(dataclasses.replace(_probe(), about=about), folder / name)
        done = CliRunner().invoke(app, ["show", name])
        assert done.exit_code == 0, done.output
        assert "query_token@6+vision_encoder" in done.stdout
