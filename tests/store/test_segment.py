"""A segment is ordinary Zarr v3: others open it without us."""

import json
import warnings

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from halp_store.features import FeatureBatch
from halp_store.layout import COUNT_COLUMNS, SCORE_COLUMNS, TEXT_COLUMNS, Layout
from halp_store.reader import open_store
from halp_store.root import Root
from halp_store.segment import build_segment

NASTY = ("", "a\0b", "\0", "🦓 e\u0301 ‮", "x" * 100_000, "a\nb\r\n", "\ufeff", "trailing\0\0")


def _in_memory(features):
    stamp = Root(features.layout, 3, "id").stamp
    segment = build_segment(
        features, name="w-1", stamp=stamp, provenance={"torch": "2"}, created="2026-01-01"
    )
    buffer = default_buffer_prototype().buffer
    values = {key: buffer.from_bytes(value) for key, value in segment.staged.items()}
    return MemoryStore({**values, "zarr.json": buffer.from_bytes(segment.metadata)})


def _assert_equal(got, features):
    for name, values in features.text.items():
        assert tuple(got[name][...].tolist()) == values, name
    for name, values in features.numbers.items():
        assert got[name].dtype == values.dtype, name
        np.testing.assert_array_equal(got[name][...], values, err_msg=name)


@pytest.mark.parametrize("consolidated", [True, False])
def test_a_segment_opens_with_plain_zarr(open_writer, make_rows, tmp_path, consolidated):
    """zarr reads every column as it was written, with and without consolidated metadata."""
    features = make_rows(["b", "a", "c"])
    writer = open_writer(tmp_path)
    writer.append(features)
    path = tmp_path / "segments" / writer.flush().segment
    group = zarr.open_group(path, mode="r", use_consolidated=consolidated)
    _assert_equal(group, features)
    assert group["layer"][...].tolist() == [0, 3]
    assert set(group.array_keys()) == {"layer", *features.text, *features.numbers}


@pytest.mark.parametrize("consolidated", [None, True, False])
def test_a_segment_opens_with_plain_xarray(open_writer, make_rows, tmp_path, consolidated):
    """xarray finds dims question, layer, hidden, coordinates question_id, layer, equal values."""
    features = make_rows(["b", "a", "c"])
    writer = open_writer(tmp_path)
    writer.append(features)
    path = tmp_path / "segments" / writer.flush().segment
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xarray.open_zarr(path, consolidated=consolidated, chunks=None).load()
    sizes = {"question": 3, "layer": 2, "hidden": 8, "vision_hidden": 6, "thw": 3}
    assert dict(dataset.sizes) == sizes
    assert set(dataset.coords) == {"question_id", "layer"}
    assert list(dataset.indexes) == ["layer"]
    assert dataset["query_token"].dims == ("question", "layer", "hidden")
    assert dataset["image_grid_thw"].dims == ("question", "thw")
    one = dataset["query_token"].sel(layer=3)
    np.testing.assert_array_equal(one, features.vectors["query_token"][:, 1])
    _assert_equal({name: dataset[name].values for name in dataset.variables}, features)


def test_attributes_tell_where_a_segment_came_from(make_rows):
    """ids, content hashes, nonce, time and provenance are in the group's attributes."""
    features = make_rows(["a", "b"])
    attributes = zarr.open_group(_in_memory(features), mode="r").attrs.asdict()
    assert attributes["layout_version"] == 3
    assert attributes["store_id"] == "id"
    assert attributes["fingerprint_digest"].startswith("sha256:")
    assert attributes["question_ids"] == ["a", "b"]
    assert attributes["content_hashes"] == ["a-a", "a-b"]
    assert attributes["provenance"] == {"torch": "2"}
    assert attributes["created"] == "2026-01-01"
    assert len(attributes["nonce"]) == 32


def test_a_segment_without_scores_has_no_column_for_them(make_rows, plain):
    """As imported stores have none, and those of version 1."""
    features = make_rows(["a"], of=plain)
    group = zarr.open_group(_in_memory(features), mode="r")
    assert set(group.array_keys()) == {
        "layer", *features.text, *features.integers, *features.vectors
    }  # fmt: skip


def test_chunks_of_one_layer_stand_alone(make_rows):
    """Token arrays have one chunk per layer, compressed and checksummed; others have one."""
    group = zarr.open_group(_in_memory(make_rows(["a", "b"])), mode="r")
    assert group["query_token"].chunks == (2, 1, 8)
    assert group["vision_only"].chunks == (2, 8)
    for _, array in group.arrays():
        codecs = [codec["name"] for codec in array.metadata.to_dict()["codecs"]]
        assert codecs[-2:] == ["blosc", "crc32c"], array.path
    blosc = group["query_token"].metadata.to_dict()["codecs"][-2]["configuration"]
    assert (blosc["cname"], blosc["clevel"], blosc["shuffle"]) == ("zstd", 1, "shuffle")


def test_all_chunks_are_written_even_of_fill_values(make_rows):
    """A chunk that equals the fill value exists, so that a missing one always means damage."""
    features = make_rows(["a"])
    for values in features.integers.values():
        values[...] = -1
    empty = dict.fromkeys(TEXT_COLUMNS, ("",))
    blank = FeatureBatch(
        features.layout, empty, features.integers, features.vectors, features.scores
    )
    segment = build_segment(blank, name="w-1", stamp={}, provenance={}, created="")
    keys = segment.staged.keys()
    for key in keys:
        if key.endswith("/zarr.json"):
            assert any(other.startswith(key.replace("zarr.json", "c.")) for other in keys), key


@st.composite
def _batches(draw):
    length = st.integers(1, 4)
    layers = draw(st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True))
    positions = draw(st.lists(st.sampled_from("pqrs"), max_size=2, unique=True))
    chosen = draw(st.sets(st.sampled_from(SCORE_COLUMNS)))
    scored = tuple(name for name in SCORE_COLUMNS if name in chosen)
    layout = Layout(
        tuple(sorted(layers)), tuple(positions), draw(length), draw(length), "float32", {}, scored
    )
    rows = draw(length)
    text = st.text(st.characters(exclude_categories=("Cs",))) | st.sampled_from(NASTY)
    ids = draw(st.lists(text, min_size=rows, max_size=rows, unique=True))
    texts = {name: tuple(draw(text) for _ in ids) for name in TEXT_COLUMNS}
    texts |= {"question_id": tuple(ids), "metadata": ('{"é": [1, null]}',) * rows}
    seeded = np.random.default_rng(draw(st.integers(0, 2**32)))
    extremes = np.iinfo(np.int64)
    integers = {
        name: seeded.integers(extremes.min, extremes.max, (rows, *shape), endpoint=True)
        for name, (_, shape) in layout.integer_columns().items()
    }
    bits = st.floats(width=32, allow_nan=False, allow_infinity=False)
    vectors = {
        name: np.full((rows, *shape), draw(bits), np.float32) * seeded.choice([0, 1, -1], shape)
        for name, (_, shape) in layout.vector_columns().items()
    }
    floats = {name: values.astype(np.float32) for name, values in vectors.items()}
    score = bits | st.just(float("nan"))
    scores = {name: np.array([draw(score) for _ in ids], np.float32) for name in scored}
    return FeatureBatch(layout, texts, integers, floats, scores)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(features=_batches())
def test_any_batch_comes_back_as_it_was(features, tmp_path_factory, open_writer):
    """What any valid batch holds is what the reader returns, bit for bit, by row and by column."""
    path = tmp_path_factory.mktemp("any")
    writer = open_writer(path, features.layout)
    writer.append(features)
    assert set(writer.flush().receipt.rows) == set(features.keys)
    store = open_store(path)
    assert list(store) == sorted(features.text["question_id"])
    order = [features.text["question_id"].index(one) for one in store.ids]
    expected = features.take(order)
    for name in TEXT_COLUMNS:
        assert store.text(name) == expected.text[name]
    for name, values in expected.integers.items():
        np.testing.assert_array_equal(store.integers(name), values)
    for name, values in expected.vectors.items():
        found = store.array(name)[1]
        assert found.tobytes() == values.tobytes(), name
    for name, values in expected.scores.items():
        assert store.scores(name).tobytes() == values.tobytes(), name
    row = len(order) - 1
    record = store[store.ids[row]]
    assert record.answer == expected.text["answer"][row]
    assert record.metadata == json.loads(expected.text["metadata"][row])
    np.testing.assert_equal(
        dict(record.scores), {name: float(values[row]) for name, values in expected.scores.items()}
    )
    for name in COUNT_COLUMNS:
        assert getattr(record, name) == expected.integers[name][row]
    for name, values in expected.vectors.items():
        assert record.arrays[name].tobytes() == values[row].tobytes()
