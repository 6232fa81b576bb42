"""A probe's file: the same bytes for the same probe, and a sentence for everything else."""

import dataclasses
import hashlib
import itertools
import json
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from halp_probe.network import Network
from halp_probe.probe import (
    BadProbe,
    Probe,
    _checksum,
    check_fits,
    identity_of,
    load_probe,
    parse_probe,
    save_probe,
)
from halp_probe.representation import Representation
from halp_store.layout import Layout

LAYOUT = Layout(
    layers=(0, 3),
    positions=("vision_token", "query_token"),
    hidden_size=4,
    vision_hidden_size=3,
    source_dtype="bfloat16",
    fingerprint={"model": {"id": "small", "revision": "abc"}, "generation": {"max_new_tokens": 9}},
    scores=("first_token_entropy", "mean_logprob"),
)
PARTS = (Representation("vision_encoder"), Representation("query_token", 3))


def _network(widths=(7, 5, 1), seed=0):
    draws = np.random.default_rng(seed)
    pairs = list(itertools.pairwise(widths))
    return Network(
        mean=draws.standard_normal(widths[0]).astype(np.float32),
        scale=draws.uniform(0.5, 2, widths[0]).astype(np.float32),
        weights=tuple(draws.standard_normal(pair).astype(np.float32) for pair in pairs),
        biases=tuple(draws.standard_normal(after).astype(np.float32) for _, after in pairs),
    )


def _probe(**changes):
    probe = Probe(PARTS, _network(), identity_of(LAYOUT), {"store": "läuft.zarr", "auroc": 0.8})
    return dataclasses.replace(probe, **changes)


DATA = _probe().to_bytes()


def _rewritten(change, tensors=None):
    """The file with its JSON changed and a new checksum: what another program might write."""
    arrays = load(DATA) if tensors is None else tensors
    length = int.from_bytes(DATA[:8], "little")
    described = json.loads(json.loads(DATA[8 : 8 + length])["__metadata__"]["halp_probe"])
    changed = change(described) or described
    if isinstance(changed, dict):
        rest = {name: value for name, value in changed.items() if name != "sha256"}
        changed = {**rest, "sha256": _checksum(rest, arrays)}
    return save(arrays, metadata={"halp_probe": json.dumps(changed)})


def test_a_probe_comes_back_as_it_was(tmp_path):
    """Parts, weights to the bit, identity and what it says of itself."""
    path = tmp_path / "probe.safetensors"
    save_probe(_probe(), path)
    found = load_probe(path)
    assert (found.parts, found.name) == (PARTS, "vision_encoder+query_token@3")
    assert found.identity == identity_of(LAYOUT)
    assert found.about == {"store": "läuft.zarr", "auroc": 0.8}
    x = np.random.default_rng(1).standard_normal((9, 7), dtype=np.float32)
    np.testing.assert_array_equal(found.network.risk(x), _network().risk(x))


def test_the_same_probe_has_the_same_bytes(tmp_path):
    """The digest is that of the file, and of a probe that was read; another weight is another."""
    path = tmp_path / "probe.safetensors"
    save_probe(_probe(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    other = dataclasses.replace(_network(), biases=_network(seed=1).biases)
    assert _probe().digest == digest == load_probe(path).digest
    assert _probe(about={"auroc": 0.8, "store": "läuft.zarr"}).digest == digest
    assert _probe(network=other).digest != digest
    assert _probe(about={}).digest != digest


def test_a_view_of_an_array_is_written_as_its_values():
    """Transposed and strided arrays are no different from their copies."""
    network = _network()
    strided = tuple(np.asfortranarray(one) for one in network.weights)
    assert _probe(network=dataclasses.replace(network, weights=strided)).to_bytes() == DATA


def test_nothing_is_written_over(tmp_path):
    """A probe that is there stays."""
    path = tmp_path / "probe.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        save_probe(_probe(), path)
    assert path.read_bytes() == b"mine"


def test_a_path_that_is_no_text_can_be_saved():
    """A file name may have bytes that are no UTF-8: they are kept."""
    found = parse_probe(_probe(about={"store": "run\udcff.zarr"}).to_bytes(), "x")
    assert found.about == {"store": "run\udcff.zarr"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0" * 8,
        b"\xff" * 64,
        (1 << 40).to_bytes(8, "little") + b"{}",
        (1 << 63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        pickle.dumps({"weights": [1.0]}),
        b"PK\x05\x06" + b"\0" * 18,
        b"not a probe, but a letter to somebody about one",
        save({"mean": np.zeros(3, np.float32)}),
        save({"mean": np.zeros(3, np.float32)}, metadata={"halp_probe": "{"}),
        save({"mean": np.zeros(3, np.float32)}, metadata={"halp_probe": "[]"}),
        save({"mean": np.zeros(3, np.float32)}, metadata={"halp_probe": "[" * 100_000}),
        save({"mean": np.zeros(3, np.float32)}, metadata={"halp_probe": '{"format_version": 1}'}),
    ],
    ids=lambda data: f"{len(data)}:{data[:6].hex()}",
)
def test_what_is_no_probe_is_refused(data, tmp_path):
    """Garbage, pickles, zips and huge headers: one sentence with the file, and nothing is run."""
    path = tmp_path / "probe.safetensors"
    path.write_bytes(data)
    with pytest.raises(BadProbe, match=r"probe\.safetensors: is no probe"):
        load_probe(path)


def test_a_zip_with_weights_is_refused(tmp_path):
    """What torch.save writes is a zip: it has code in it, and is never opened."""
    path = tmp_path / "probe.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.pkl", pickle.dumps([1]))
    with pytest.raises(BadProbe, match="is no probe"):
        load_probe(path)


def test_a_file_of_terabytes_is_not_read(tmp_path):
    """Its size is enough to refuse it."""
    path = tmp_path / "probe.safetensors"
    with path.open("wb") as file:
        file.truncate(1 << 41)
    with pytest.raises(BadProbe, match="2,199,023,255,552 bytes"):
        load_probe(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_damage_is_noticed(data):
    """Cut anywhere, or any bit turned: BadProbe, never another risk and never another error."""
    if data.draw(st.booleans()):
        harmed = DATA[: data.draw(st.integers(0, len(DATA) - 1))]
    else:
        at, bit = data.draw(st.integers(0, len(DATA) - 1)), data.draw(st.integers(0, 7))
        harmed = bytearray(DATA)
        harmed[at] ^= 1 << bit
        harmed = bytes(harmed)
    with pytest.raises(BadProbe):
        parse_probe(harmed, "x")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data):
    """No bytes make another error than BadProbe."""
    with pytest.raises(BadProbe):
        parse_probe(data, "x")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["parts", "identity", "about", "format_version"]), JSON)
def test_any_json_in_a_field_is_a_probe_or_refused(field, value):
    """With a right checksum: a hostile file gives a probe of the right form, or BadProbe."""
    try:
        found = parse_probe(_rewritten(lambda one: {**one, field: value}), "x")
        check_fits(found, LAYOUT, "x")
    except BadProbe:
        return
    assert found.network.risk(np.zeros((1, 7), np.float32)).shape == (1,)


def test_another_version_is_named():
    """Not misread: what was expected and what was found."""
    data = _rewritten(lambda one: {**one, "format_version": 2})
    with pytest.raises(BadProbe, match="expected probe format 1, got 2"):
        parse_probe(data, "x")


def _zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("mean", _zeros(6), "scale: expected float32"),
        ("mean", _zeros(), "mean: expected float32"),
        ("mean", _zeros(7, 1), "mean: expected float32"),
        ("mean", _zeros(7, dtype=np.float64), "got float64"),
        ("scale", _zeros(7), "scales of 0"),
        ("scale", -np.ones(7, np.float32), "scales of 0"),
        ("weight.0", _zeros(7), "weight.0: expected"),
        ("weight.0", _zeros(6, 5), "weight.0: expected"),
        ("weight.0", _zeros(7, 4), "bias.0: expected"),
        ("weight.1", _zeros(5, 2), "bias.1: expected"),
        ("bias.0", _zeros(4), "bias.0: expected"),
        ("bias.1", _zeros(1, dtype=np.int64), "got int64"),
        ("weight.0", np.full((7, 5), np.nan, np.float32), "not finite"),
        ("bias.1", np.full(1, np.inf, np.float32), "not finite"),
        ("mean", np.full(7, -np.inf, np.float32), "not finite"),
        ("weight.7", _zeros(1, 1), "is no probe"),
        ("bias.2", _zeros(1), "expected tensors"),
        ("extra", _zeros(1), "expected tensors"),
    ],
)
def test_shapes_that_do_not_chain_are_refused(name, values, said):
    """Each layer takes what the one before it gives, in float32, finite; nothing is left over."""
    with pytest.raises(BadProbe, match=said):
        parse_probe(_rewritten(lambda one: None, {**load(DATA), name: values}), "x")


@pytest.mark.parametrize("lacking", ["mean", "scale", "weight.0", "weight.1", "bias.0", "bias.1"])
def test_a_lacking_tensor_is_refused(lacking):
    """Nothing is filled in."""
    tensors = {name: values for name, values in load(DATA).items() if name != lacking}
    with pytest.raises(BadProbe):
        parse_probe(_rewritten(lambda one: None, tensors), "x")


def test_two_outputs_are_refused():
    """A risk is one number."""
    probe = _probe(network=_network((7, 2)))
    with pytest.raises(BadProbe, match="one output, got 2"):
        parse_probe(probe.to_bytes(), "x")


def test_no_layers_are_refused():
    """Even where one input would be one output."""
    network = Network(np.zeros(1, np.float32), np.ones(1, np.float32), (), ())
    with pytest.raises(BadProbe, match="linear layers"):
        parse_probe(_probe(network=network).to_bytes(), "x")


def test_a_probe_fits_its_own_layout():
    """Also where generation is set differently, another probe runs, or no scores are stored."""
    check_fits(_probe(), LAYOUT, "x")
    later = {**LAYOUT.fingerprint, "generation": {"max_new_tokens": 200}, "probe": {"sha256": "a"}}
    check_fits(_probe(), dataclasses.replace(LAYOUT, fingerprint=later), "x")
    check_fits(_probe(), dataclasses.replace(LAYOUT, scores=()), "x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": (0, 4)}, "layers: the probe has [0, 3], here is [0, 4]"),
        ({"positions": ("query_token",)}, "positions: the probe has"),
        ({"hidden_size": 8}, "hidden_size: the probe has 4, here is 8"),
        ({"vision_hidden_size": 8}, "vision_hidden_size: the probe has 3, here is 8"),
        ({"source_dtype": "float32"}, 'source_dtype: the probe has "bfloat16", here is "float32"'),
        ({"fingerprint": {"model": {"id": "large"}}}, "model: the probe has"),
        ({"fingerprint": {}}, "here is nothing"),
    ],
)
def test_a_probe_of_another_configuration_names_what_differs(change, said):
    """Each field with what the probe has and what is here, and what to do."""
    with pytest.raises(BadProbe) as error:
        check_fits(_probe(), dataclasses.replace(LAYOUT, **change), "p.safetensors")
    assert said in str(error.value)
    assert str(error.value).startswith("p.safetensors: ")
    assert "halp-probe fit" in str(error.value)


def test_all_that_differs_is_named_at_once():
    """Not one after the other."""
    other = dataclasses.replace(LAYOUT, layers=(1,), hidden_size=9)
    with pytest.raises(BadProbe) as error:
        check_fits(_probe(), other, "x")
    assert "  layers:" in str(error.value)
    assert "  hidden_size:" in str(error.value)


def test_a_representation_that_is_not_there_is_named():
    """A file of the right identity may still ask for what no store of it has."""
    probe = _probe(parts=(Representation("query_token", 7),))
    with pytest.raises(BadProbe, match=r"reads query_token@7; here are vision_only"):
        check_fits(probe, LAYOUT, "x")


def test_inputs_of_another_size_are_refused():
    """As many numbers as its parts have together."""
    probe = _probe(network=_network((8, 1)))
    with pytest.raises(BadProbe, match=r"expected 7 inputs for vision_encoder\+query_token@3"):
        check_fits(probe, LAYOUT, "x")
