"""Reading: rows by id, columns by name, one layer without the others."""

import shutil
import sys

import numpy as np
import pytest

from halp_store.errors import DamagedSegment, UnknownQuestion
from halp_store.layout import TEXT_COLUMNS
from halp_store.local import LocalStorage
from halp_store.reader import open_store

IDS = ["question_comb_2", "question_comb_10", "z", "a"]


@pytest.fixture
def path(tmp_path, open_writer, make_rows):
    """Four rows in two segments, not in order."""
    writer = open_writer(tmp_path)
    for ids in (IDS[:3], IDS[3:]):
        writer.append(make_rows(ids))
        writer.flush()
    return tmp_path


def test_iteration_is_in_order_of_question_id(path):
    """Whatever the order of writing; len, in, ids and columns agree with it."""
    store = open_store(path)
    assert list(store) == list(store.ids) == sorted(IDS)
    assert len(store) == 4
    assert "z" in store
    assert "y" not in store


def test_a_row_is_a_record_of_all_its_columns(path, make_rows, layout):
    """Every text, count, position and array of a question, under its own name."""
    features = make_rows(["z"])
    record = open_store(path)["z"]
    for name in TEXT_COLUMNS:
        if name != "metadata":
            assert getattr(record, name) == features.text[name][0]
    assert record.metadata == {"difficulty": 3}
    assert record.prompt_tokens == features.integers["prompt_tokens"][0]
    assert record.image_grid_thw == tuple(features.integers["image_grid_thw"][0])
    assert record.positions == {
        name: features.integers[f"{name}_position"][0] for name in layout.positions
    }
    assert record.layers == layout.layers
    for name, values in features.vectors.items():
        np.testing.assert_array_equal(record.arrays[name], values[0])
    assert record.segment in open_store(path).segments


def test_an_unknown_id_is_a_key_error_with_a_hint(path):
    """The message says how many rows there are and which ids are similar."""
    with pytest.raises(KeyError) as caught:
        open_store(path)["question_comb_1"]
    assert isinstance(caught.value, UnknownQuestion)
    assert "no row for question id 'question_comb_1' among 4 rows" in str(caught.value)
    assert "question_comb_10" in str(caught.value)


def test_columns_are_in_order_of_the_ids(path, make_rows, layout):
    """Arrays (whole or one layer), texts and integers line up with `ids`."""
    store, expected = open_store(path), make_rows(sorted(IDS))
    for position, layer in ((0, 0), (1, 3)):
        ids, matrix = store.array("query_token", layer=layer)
        assert ids == store.ids
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(matrix, expected.vectors["query_token"][:, position])
    for name in layout.vector_columns():
        np.testing.assert_array_equal(store.array(name)[1], expected.vectors[name])
    for name in layout.integer_columns():
        np.testing.assert_array_equal(store.integers(name), expected.integers[name])
    assert store.text("answer") == expected.text["answer"]


def test_one_layer_is_read_without_the_rest(path):
    """Only that layer's chunk of each segment is read; the other layer's may even be gone."""

    class Counting(LocalStorage):
        def __init__(self, root):
            super().__init__(root)
            self.chunks = []

        def read(self, key):
            if "/c." in key:
                self.chunks.append(key.partition("/")[2].partition("/")[2])
            return super().read(key)

    disk = Counting(path)
    store = open_store(path, storage=disk)
    whole = store.array("query_token")[1]
    disk.chunks.clear()
    np.testing.assert_array_equal(store.array("query_token", layer=3)[1], whole[:, 1])
    assert disk.chunks == ["query_token/c.0.1.0"] * 2
    for segment in store.segments:
        (path / "segments" / segment / "query_token" / "c.0.0.0").unlink()
    np.testing.assert_array_equal(store.array("query_token", layer=3)[1], whole[:, 1])
    with pytest.raises(DamagedSegment):
        store.array("query_token", layer=0)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda store: store.array("nope"), "vision_only, vision_encoder, vision_token, query_to"),
        (lambda store: store.array("answer"), "no vector column 'answer'"),
        (lambda store: store.array("query_token", layer=1), r"the layers are \(0, 3\)"),
        (lambda store: store.array("vision_only", layer=0), "vision_only has no layers"),
        (lambda store: store.text("prompt_tokens"), "no text column .* there are question_id"),
        (lambda store: store.integers("answer"), "there are prompt_tokens"),
        (lambda store: store.scores("answer"), "there are first_token_entropy"),
        (lambda store: store.to_xarray(["nope"]), "no stored column 'nope'"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(path, read, message):
    """Names and layers that are not there: a ValueError that lists what is."""
    with pytest.raises(ValueError, match=message):
        read(open_store(path))


def test_to_xarray_is_one_dataset(path, make_rows):
    """Dims question, layer, hidden; coordinates question_id, layer; values of all segments."""
    dataset, expected = open_store(path).to_xarray(), make_rows(sorted(IDS))
    assert set(dataset.coords) == {"question_id", "layer"}
    assert dataset["question_id"].values.tolist() == sorted(IDS)
    assert dataset["query_token"].dims == ("question", "layer", "hidden")
    assert dataset["vision_encoder"].dims == ("question", "vision_hidden")
    one = dataset["query_token"].sel(layer=3)
    np.testing.assert_array_equal(one, expected.vectors["query_token"][:, 1])
    assert dataset["answer"].values.tolist() == list(expected.text["answer"])
    assert {*dataset.data_vars, "question_id"} == {
        *expected.text,
        *expected.numbers,
    }
    picked = dataset.set_xindex("question_id").sel(question_id="z")
    np.testing.assert_array_equal(picked["vision_only"], make_rows(["z"]).vectors["vision_only"][0])


def test_to_xarray_takes_only_what_is_asked_for(path):
    """Other columns are not read."""
    for segment in open_store(path).segments:
        shutil.rmtree(path / "segments" / segment / "vision_token")
    dataset = open_store(path).to_xarray(["answer", "vision_only"])
    assert set(dataset.data_vars) == {"answer", "vision_only"}


def test_to_xarray_without_xarray_names_the_extra(path, monkeypatch):
    """One sentence with the command that installs it."""
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"pip install 'halp-stream\[store\]'"):
        open_store(path).to_xarray()


def test_an_empty_store_reads_as_empty(tmp_path, open_writer):
    """No segment yet: no rows, columns of the right shape, no error."""
    open_writer(tmp_path)
    store = open_store(tmp_path)
    assert len(store) == 0
    assert store.array("query_token", layer=0)[1].shape == (0, 8)
    assert store.text("answer") == ()
    assert store.to_xarray().sizes["question"] == 0
