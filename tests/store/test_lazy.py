"""xarray: a Dataset of everything that reads what is looked at, and nothing else."""

import copy
import pickle

import numpy as np
import pytest

from halp_store.compaction import compact
from halp_store.errors import DamagedSegment
from halp_store.local import LocalStorage
from halp_store.reader import open_store
from tolerance import assert_within, relative, rounding

IDS = sorted(f"q{number}" for number in range(12))


class Counting(LocalStorage):
    """Remembers the chunks that were read, without the segment's name."""

    def __init__(self, root):
        super().__init__(root)
        self.chunks = []

    def read(self, key):
        if "/c." in key:
            self.chunks.append(key.partition("/")[2].partition("/")[2])
        return super().read(key)


@pytest.fixture
def path(tmp_path, open_writer, make_rows):
    """Three segments of four rows."""
    writer = open_writer(tmp_path / "s")
    for start in range(3):
        writer.append(make_rows(IDS[start::3]))
        writer.flush()
    return tmp_path / "s"


@pytest.fixture(params=["segments", "generation"])
def either(request, path):
    if request.param == "generation":
        compact(LocalStorage(path))
    return path


def test_nothing_is_read_until_values_are_asked_for(path):
    """Not by opening, choosing or printing; then only the chunks of what was chosen."""
    disk = Counting(path)
    dataset = open_store(path, storage=disk).to_xarray()
    chosen = dataset.isel(question=[0, 3]).sel(layer=3)["query_token"]
    repr(dataset)
    repr(chosen)
    dataset._repr_html_()
    assert dataset["question_id"].values.tolist() == IDS
    assert disk.chunks == []
    assert chosen.shape == (2, 8)
    chosen.load()
    # Rows 0 and 3 are in one segment.
    assert disk.chunks == ["query_token/c.0.1.0"]
    disk.chunks.clear()
    dataset["answer"][-1].load()
    assert disk.chunks == ["answer/c.0"]


INDEXERS = {
    "all": {},
    "row": {"question": 5},
    "last": {"question": -1},
    "rows": {"question": [5, 1, 5]},
    "none": {"question": []},
    "slice": {"question": slice(2, 9, 3)},
    "reversed": {"question": slice(None, None, -1)},
    "mask": {"question": np.arange(12) % 2 == 0},
    "layer": {"layer": 1},
    "layers": {"layer": [1, 0, 1]},
    "hidden": {"hidden": slice(1, 8, 3)},
    "all three": {"question": [3, 2], "layer": 0, "hidden": [7, 0, 7]},
    "scalar": {"question": 3, "layer": 1, "hidden": 2},
}


@pytest.mark.parametrize("indexers", INDEXERS.values(), ids=INDEXERS)
def test_indexing_gives_what_numpy_gives(either, make_rows, indexers):
    """Of every column along the dims that it has; chosen at once, in steps, and in memory."""
    xarray = pytest.importorskip("xarray")
    expected = make_rows(IDS)
    lazy = open_store(either).to_xarray()
    plain = xarray.Dataset(
        {
            name: (lazy[name].dims, np.array(values, dtype=lazy[name].dtype))
            for name, values in {**expected.text, **expected.numbers}.items()
            if name != "question_id"
        },
        {"question_id": ("question", np.array(IDS, dtype=object)), "layer": [0, 3]},
    )
    one_by_one = lazy
    for dim, chosen in indexers.items():
        one_by_one = one_by_one.isel({dim: chosen})
    wanted = plain.isel(indexers)
    xarray.testing.assert_equal(lazy.isel(indexers).compute(), wanted)
    xarray.testing.assert_equal(one_by_one.compute(), wanted)
    xarray.testing.assert_equal(lazy.load().isel(indexers), wanted)


def test_points_are_picked_too(either, make_rows):
    """xarray's vectorized indexing: a layer of its own for each row."""
    xarray = pytest.importorskip("xarray")
    dataset, expected = open_store(either).to_xarray(), make_rows(IDS).vectors["query_token"]
    rows, layers = [4, 0, 9], [1, 0, 1]
    picked = dataset["query_token"].isel(
        question=xarray.DataArray(rows, dims="point"), layer=xarray.DataArray(layers, dims="point")
    )
    np.testing.assert_array_equal(picked, expected[rows, layers])


def test_rows_are_selected_by_id_and_by_condition(either, make_rows):
    """`set_xindex("question_id")`, and a mask of another column."""
    dataset, expected = open_store(either).to_xarray(), make_rows(IDS)
    by_id = dataset.set_xindex("question_id").sel(question_id=["q7", "q1"])
    np.testing.assert_array_equal(
        by_id["vision_only"], make_rows(["q7", "q1"]).vectors["vision_only"]
    )
    mask = expected.integers["prompt_tokens"] > 700
    chosen = dataset["vision_encoder"][(dataset["prompt_tokens"] > 700).compute()]
    np.testing.assert_array_equal(chosen, expected.vectors["vision_encoder"][mask])


def test_a_dataset_stays_what_it_is(path, open_writer, make_rows):
    """Rows that are committed later, and a refresh of the store, do not move its rows."""
    store = open_store(path)
    dataset = store.to_xarray(["answer"])
    writer = open_writer(path)
    writer.append(make_rows(["a"]))
    writer.flush()
    store.refresh()
    assert len(store) == 13
    assert dataset["answer"].values.tolist() == list(make_rows(IDS).text["answer"])


def test_a_dataset_carries_what_the_values_are(path, layout):
    """Attributes: the type they were computed in, and the fingerprint as JSON."""
    attributes = open_store(path).to_xarray([]).attrs
    assert attributes["source_dtype"] == "bfloat16"
    assert attributes["fingerprint"] == '{"model": {"id": "small", "revision": "abc"}, ' + (
        '"max_new_tokens": 200}'
    )


def test_a_column_is_copied_and_pickled_without_being_read(path, make_rows):
    """Which is how dask hands it to other processes."""
    disk = Counting(path)
    dataset = open_store(path, storage=disk).to_xarray(["query_token"])
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - our own bytes
    copies = [copy.deepcopy(dataset), dataset.copy(deep=True), again]
    assert disk.chunks == []
    for one in copies:
        np.testing.assert_array_equal(one["query_token"], make_rows(IDS).vectors["query_token"])


def test_chunks_are_computed_by_threads(either, make_rows):
    """`.chunk()` makes dask arrays; nothing is read by making them."""
    pytest.importorskip("dask")
    disk = Counting(either)
    store = open_store(either, storage=disk)
    disk.chunks.clear()
    dataset = store.to_xarray().chunk(question=5, layer=1)
    assert disk.chunks == []
    assert dataset["query_token"].chunks == ((5, 5, 2), (1, 1), (8,))
    mean = dataset["query_token"].sel(layer=3).mean("question").compute(scheduler="threads")
    expected = make_rows(IDS)
    by_hand = expected.vectors["query_token"][:, 1].mean(0)
    assert_within(relative(mean, by_hand), rounding(1, len(IDS)))
    assert dataset["answer"].compute().values.tolist() == list(expected.text["answer"])


@pytest.mark.slow
def test_chunks_are_computed_by_processes(either, make_rows):
    """The graph is pickled; each process opens the store again."""
    pytest.importorskip("dask")
    dataset = open_store(either).to_xarray().chunk(question=5, layer=1)
    computed = dataset[["query_token", "answer"]].compute(scheduler="processes", num_workers=1)
    expected = make_rows(IDS)
    np.testing.assert_array_equal(computed["query_token"], expected.vectors["query_token"])
    assert computed["answer"].values.tolist() == list(expected.text["answer"])


@pytest.mark.parametrize("chunked", [False, True])
def test_damage_is_named_when_it_is_read(path, chunked):
    """Segment and array; what does not touch it is read all the same."""
    store = open_store(path)
    harmed = store.segments[0]
    (path / "segments" / harmed / "query_token" / "c.0.1.0").unlink()
    dataset = store.to_xarray(["query_token"])
    if chunked:
        pytest.importorskip("dask")
        dataset = dataset.chunk(question=4, layer=1)
    dataset.sel(layer=0).compute()
    with pytest.raises(DamagedSegment, match=r"c\.0\.1\.0 is missing") as caught:
        dataset.sel(layer=3).compute()
    assert (caught.value.segment, caught.value.array) == (harmed, "query_token")
