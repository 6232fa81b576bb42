"""A probe in the worker: the same risk as offline, before the first token, and what it spares."""

from __future__ import annotations

import dataclasses
import json
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from halp_probe.network import Network
from halp_probe.probe import load_probe, save_probe
from halp_probe.representation import Representation
from halp_worker.cli import app
from halp_worker.fates import FatalError
from halp_worker.model import extractor
from halp_worker.model.extractor import Extractor
from halp_worker.model.layers import layout_of
from halp_worker.model.risk import DeviceProbe, Foresight
from tolerance import apart, assert_within

from .conftest import SHAPE_NAMES, Question, probe_bound, random_probe

pytestmark = pytest.mark.slow

PUBLISHED = (512, 256, 128)
"""Hidden layers of the published network."""

EVERYWHERE = "vision_only+question_token@{last}+vision_encoder+query_token@0"


@pytest.fixture
def foreseeing(bench):
    """`foreseeing(names, ...)`: a bench whose extractor has a random probe of these."""

    def make(names, hidden=(), *, dtype="float32", shape="28-layers", abstain_above=None, seed=0):
        plain = bench(shape, dtype)
        probe = random_probe(plain.layout, names.format(last=plain.layout.layers[-1]), hidden, seed)
        foresight = Foresight(probe, "probe.safetensors", abstain_above)
        layout = layout_of(plain.loaded, plain.layout.layers, plain.layout.positions, foresight)
        own = Extractor(plain.loaded, layout, foresight)
        return dataclasses.replace(plain, layout=layout, extractor=own)

    return make


def offline(features, probe):
    """Of the states as they are stored, in numpy."""
    layers = list(features.layout.layers)
    columns = [
        features.vectors[part.column]
        if part.layer is None
        else features.vectors[part.column][:, layers.index(part.layer)]
        for part in probe.parts
    ]
    return probe.network.risk(np.concatenate(columns, axis=1))


def probe_of(bench):
    return bench.extractor._foresight.probe


# -- the same number -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPE_NAMES)
@pytest.mark.parametrize("names", ["query_token@0", "vision_only", "vision_encoder", EVERYWHERE])
@pytest.mark.parametrize("hidden", [(), PUBLISHED], ids=["logistic", "network"])
def test_the_risk_is_that_of_the_stored_states(foreseeing, shape, names, hidden):
    """For each row of a batch of mixed sizes: one part or several side by side."""
    bench = foreseeing(names, hidden, shape=shape)
    features = bench.extract(bench.samples()).features
    expected = offline(features, probe_of(bench))
    assert_within(apart(features.scores["risk"], expected), probe_bound(probe_of(bench)))
    assert 0 < expected.min() < expected.max() < 1, "the oracle must say something"


@pytest.mark.parametrize("hidden", [(), PUBLISHED], ids=["logistic", "network"])
def test_it_is_in_bfloat16_too_whatever_a_product_of_float32_may_round_to(foreseeing, hidden):
    """TF32, which a program may have switched on for its model, has no say in it."""
    bench = foreseeing(EVERYWHERE, hidden, dtype="bfloat16")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        features = bench.extract(bench.samples()).features
    finally:
        torch.set_float32_matmul_precision(before)
    probe = probe_of(bench)
    assert_within(apart(features.scores["risk"], offline(features, probe)), probe_bound(probe))


def test_a_batch_gives_the_risks_of_singles(foreseeing, monkeypatch):
    """Also where it is prefilled chunk by chunk."""
    bench = foreseeing(EVERYWHERE, PUBLISHED)
    samples = bench.samples()
    together = bench.extract(samples).features.scores["risk"]
    singles = [bench.extract([one]).features.scores["risk"][0] for one in samples]
    monkeypatch.setattr(extractor, "CHUNK_TOKENS", 1)
    pieces = bench.extract(samples).features.scores["risk"]
    bound = bench.bound() + probe_bound(probe_of(bench))
    assert_within(apart(together, singles), bound)
    assert_within(apart(together, pieces), bound)


def test_a_probe_changes_no_state_and_no_answer(foreseeing, bench):
    """It only looks."""
    plain, own = bench(), foreseeing(EVERYWHERE)
    samples = plain.samples()
    expected, found = plain.extract(samples).features, own.extract(samples).features
    for name, values in expected.numbers.items():
        assert np.array_equal(found.numbers[name], values), name
    assert found.text == expected.text


@pytest.mark.parametrize("values", [1e6, -1e6])
def test_a_probe_that_is_very_sure_gives_nought_or_one(foreseeing, values):
    """Finite weights, however large, overflow nowhere."""
    bench = foreseeing("query_token@0")
    width = bench.layout.hidden_size
    network = Network(
        mean=np.zeros(width, np.float32),
        scale=np.full(width, 1e-30, np.float32),
        weights=(np.zeros((width, 1), np.float32),),
        biases=(np.full(1, values, np.float32),),
    )
    probe = dataclasses.replace(probe_of(bench), network=network)
    own = Extractor(bench.loaded, bench.layout, Foresight(probe, "p"))
    features = dataclasses.replace(bench, extractor=own).extract(bench.samples()).features
    assert set(features.scores["risk"].tolist()) == {float(values > 0)}


# -- what it spares ------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch):
    """Rows of each call of `decode`."""
    calls = []
    original = extractor.decode

    def counted(model, rows, first, *arguments, **options):
        calls.append(len(first.tokens))
        assert len(rows) == len(first.tokens)
        return original(model, rows, first, *arguments, **options)

    monkeypatch.setattr(extractor, "decode", counted)
    return calls


def test_answers_above_the_threshold_are_not_generated_and_the_others_are_the_same(
    foreseeing, decoded
):
    """Whichever rows those are: with the threshold between any two risks."""
    whole = foreseeing("query_token@0+vision_only")
    samples = whole.samples()
    expected = whole.extract(samples).features
    risks = expected.scores["risk"]
    ascending = np.sort(risks)
    for kept, (low, high) in enumerate(pairwise(ascending), 1):
        decoded.clear()
        threshold = float(low + high) / 2
        bench = foreseeing("query_token@0+vision_only", abstain_above=threshold)
        found = bench.extract(samples).features
        assert decoded == [kept]
        for row, risk in enumerate(risks):
            answered = risk <= threshold
            wanted = expected.text["answer"][row] if answered else ""
            reason = expected.text["finish_reason"][row] if answered else "abstained"
            assert (found.text["answer"][row], found.text["finish_reason"][row]) == (wanted, reason)
            tokens = expected.integers["answer_tokens"][row] if answered else 0
            assert found.integers["answer_tokens"][row] == tokens
            if answered:
                distance = found.scores["mean_logprob"] - expected.scores["mean_logprob"]
                assert_within(abs(distance[row]), bench.score_bound)
            else:
                assert np.isnan(found.scores["mean_logprob"][row])
        for name in ("risk", "first_token_entropy"):
            assert np.array_equal(found.scores[name], expected.scores[name])
        for name, values in expected.vectors.items():
            assert np.array_equal(found.vectors[name], values), name


def test_without_a_row_to_answer_nothing_is_decoded(foreseeing, decoded):
    """All above the threshold: states and risks alone, and the decoder sees only prompts."""
    bench = foreseeing("query_token@0", abstain_above=0.0)
    passes = []
    decoder = bench.loaded.model.model.language_model
    handle = decoder.register_forward_hook(lambda *_: passes.append(1))
    features = bench.extract(bench.samples()).features
    handle.remove()
    assert (decoded, len(passes)) == ([], 2)
    assert set(features.text["finish_reason"]) == {"abstained"}
    assert not features.integers["answer_tokens"].any()


def test_a_threshold_of_one_answers_all(foreseeing, decoded):
    """No risk is above it."""
    bench = foreseeing("query_token@0", abstain_above=1.0)
    samples = bench.samples()
    assert set(bench.extract(samples).features.text["finish_reason"]) <= {"stop", "length"}
    assert decoded == [len(samples)]


def test_a_risk_that_is_not_finite_is_that_rows_rejection(foreseeing, monkeypatch):
    """With or without a threshold; the neighbours are stored."""
    original = DeviceProbe.risk

    def spoiled(self, parts):
        risk = original(self, parts)
        risk[2] = float("nan")
        return risk

    monkeypatch.setattr(DeviceProbe, "risk", spoiled)
    for threshold in (None, 0.5):
        bench = foreseeing("query_token@0", abstain_above=threshold)
        samples = bench.samples()
        extraction = bench.extract(samples)
        ((_, rejection),) = extraction.fates
        assert (rejection.reason, rejection.error) == (
            "not_finite",
            "values are not finite: risk",
        )
        assert len(extraction.features) == len(samples) - 1


# -- which store, which probe --------------------------------------------------------------------


def test_the_layout_names_the_probe_and_the_threshold(foreseeing, bench):
    """Rows of another probe, another threshold or none are another store's."""
    plain = bench().layout
    layouts = [
        foreseeing("query_token@0", seed=seed, abstain_above=above).layout
        for seed, above in [(0, None), (0, 0.5), (1, None)]
    ]
    assert [one.scores[-1] for one in layouts] == ["risk"] * 3
    assert "risk" not in plain.scores
    fingerprints = [json.dumps(one.fingerprint, sort_keys=True) for one in (plain, *layouts)]
    assert len(set(fingerprints)) == 4
    first = layouts[0].fingerprint["probe"]
    assert first == {
        "sha256": random_probe(plain, "query_token@0").digest,
        "abstain_above": None,
    }


def refused(bench, probe):
    loaded, layout = bench.loaded, bench.layout
    with pytest.raises(FatalError) as error:
        layout_of(loaded, layout.layers, layout.positions, Foresight(probe, "p.safetensors"))
    assert "p.safetensors" in str(error.value)
    return str(error.value)


def test_a_probe_of_something_else_is_refused_by_the_name_of_what_differs(bench):
    """Another revision, other layers or positions, another dtype; parts that its layout lacks."""
    bench = bench()
    good = random_probe(bench.layout, "query_token@0")

    def other(**changes):
        return dataclasses.replace(good, identity={**good.identity, **changes})

    assert 'revision: the probe has "abc"' in refused(bench, other(revision="abc"))
    assert "layers: the probe has [0, 1]" in refused(bench, other(layers=[0, 1]))
    assert "positions" in refused(bench, other(positions=["query_token"]))
    assert "source_dtype" in refused(bench, other(source_dtype="bfloat16"))
    lacking = dataclasses.replace(good, parts=(Representation("query_token", 3),))
    assert "reads query_token@3" in refused(bench, lacking)
    lacking = dataclasses.replace(good, parts=(Representation("nonsense"),))
    assert "reads nonsense" in refused(bench, lacking)
    narrow = dataclasses.replace(good, parts=(Representation("vision_encoder"),))
    assert "inputs" in refused(bench, narrow)


def test_a_probe_fits_whatever_the_length_of_answers(bench):
    """They come after the states."""
    bench = bench()
    probe = random_probe(bench.layout, "query_token@0")
    generation = dataclasses.replace(bench.loaded.generation, max_new_tokens=99)
    loaded = dataclasses.replace(bench.loaded, generation=generation)
    layout = layout_of(loaded, bench.layout.layers, bench.layout.positions, Foresight(probe, "p"))
    assert layout.fingerprint["generation"]["max_new_tokens"] == 99


# -- the commands --------------------------------------------------------------------------------


@pytest.fixture
def probe_file(bench, tmp_path):
    """`probe_file(names)`: a file that fits `halp-worker` on the small checkpoint in float32."""

    def write(names="query_token@7", **changes):
        from halp_worker.model.layers import choose_positions

        plain = bench()
        layout = layout_of(plain.loaded, plain.layout.layers, choose_positions(()))
        probe = random_probe(layout, names)
        probe = dataclasses.replace(probe, identity={**probe.identity, **changes})
        path = tmp_path / f"probe-{len(list(tmp_path.iterdir()))}.safetensors"
        save_probe(probe, path)
        return path

    return write


@pytest.fixture
def extract(checkpoint, photos):
    def command(*options):
        arguments = ["extract", str(photos / "coffee.png"), "What is it?"]
        model = ["--model", str(checkpoint), "--dtype", "float32", "--device", "cpu"]
        return CliRunner().invoke(
            app, [*arguments, *model, "--max-new-tokens", "6", *map(str, options)]
        )

    return command


def test_extract_prints_risk_and_scores(extract, probe_file, bench):
    """As numbers for people and machines; what there is none of is null."""
    path = probe_file()
    shown = extract("--probe", path, "--json")
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    bench = bench()
    features = bench.extract(bench.samples((Question("coffee.png", "What is it?"),))).features
    probe = load_probe(path)
    bound = bench.bound() + probe_bound(probe)
    assert_within(apart(found["risk"], offline(features, probe)), bound)
    for name, values in features.scores.items():
        assert_within(apart(found[name], values), bench.score_bound)
    abstained = json.loads(extract("--probe", path, "--abstain-above", "0", "--json").stdout)
    assert (abstained["answer"], abstained["finish_reason"]) == ("", "abstained")
    assert abstained["mean_logprob"] is None
    assert abstained["risk"] == found["risk"]
    plain = extract("--probe", path, "--abstain-above", "0").output
    assert f"{'risk':24} {found['risk']}" in plain
    assert f"{'mean_logprob':24} -" in plain


def test_a_file_that_is_no_probe_is_a_sentence(extract, tmp_path):
    """Garbage, a pickle, an empty file: exit 1, one sentence, before any model is loaded."""
    for data in (b"", b"nonsense" * 100, pickle.dumps({"coef": [1, 2, 3]})):
        path = tmp_path / "it.safetensors"
        path.write_bytes(data)
        shown = extract("--probe", path, "--model", "/nowhere")
        assert shown.exit_code == 1
        assert f"--probe {path}: is no probe: expected what `halp-probe fit --save` wrote" in (
            shown.output
        )
        assert "Traceback" not in shown.output


@pytest.mark.parametrize("command", [["extract", "a.png", "What?"], ["run", "--store", "s"]])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--abstain-above", "0.5"], "needs --probe"),
        (["--probe", "FILE", "--abstain-above", "1.5"], "from 0 to 1"),
        (["--probe", "FILE", "--abstain-above", "nan"], "from 0 to 1"),
        (["--probe", "FILE", "--abstain-above", "0.5", "--no-answer"], "--no-answer"),
        (["--probe", "nowhere.safetensors"], "does not exist"),
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(command, options, said, tmp_path):
    """Exit 2, before anything is loaded."""
    file = tmp_path / "probe.safetensors"
    file.write_bytes(b"")
    given = [str(file) if one == "FILE" else one for one in options]
    shown = CliRunner().invoke(app, [*command, *given], terminal_width=300)
    assert shown.exit_code == 2
    assert said in shown.output
