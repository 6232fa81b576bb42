"""Stores that were written once and are never edited: every later version reads them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from halp_store.compaction import compact
from halp_store.errors import LayoutVersionError
from halp_store.features import FeatureBatch
from halp_store.layout import LAYOUT_VERSION, SCORE_COLUMNS, TEXT_COLUMNS, Layout
from halp_store.local import LocalStorage
from halp_store.reader import open_store
from halp_store.root import Root, read_root
from halp_store.verify import verify_store
from halp_store.writer import StoreWriter

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(int(one.stem.partition("-")[2]) for one in GOLDEN.glob("layout-*.json"))


def test_there_is_a_golden_store_of_this_version():
    """An empty folder would prove nothing."""
    assert LAYOUT_VERSION in VERSIONS


@pytest.fixture(params=[(one, kind) for one in VERSIONS for kind in ("segments", "compacted")])
def golden(request, tmp_path):
    """(the unpacked store, what must be read from it, the root's attributes)"""
    version, kind = request.param
    shutil.unpack_archive(GOLDEN / f"layout-{version}-{kind}.zip", tmp_path)
    expected = json.loads((GOLDEN / f"layout-{version}.json").read_text())
    return tmp_path, expected["stores"][kind], expected["layout"]


def _check(path, columns):
    store = open_store(path)
    assert list(store.ids) == columns["question_id"]
    read = store.read()
    assert set(read) == set(columns)
    for name, values in read.items():
        # JSON has no NaN: null there, which numpy takes for one.
        np.testing.assert_array_equal(values, np.array(columns[name], values.dtype), err_msg=name)
    for row, question_id in enumerate(store):
        assert store[question_id].answer == columns["answer"][row]
    return store


def test_a_golden_store_is_read_as_it_was_written(golden):
    """Every value of every column, the layout, and nothing for verify to say."""
    path, columns, layout = golden
    store = _check(path, columns)
    assert store.layout == Layout.from_json(layout)
    assert read_root(LocalStorage(path)).version == layout["layout_version"]
    found = verify_store(path)
    assert {one.kind for one in found.problems} <= {"duplicate"}


def test_a_golden_store_is_compacted_by_this_version(golden):
    """What an old version wrote, a new one takes over."""
    path, columns, _ = golden
    compact(LocalStorage(path))
    store = _check(path, columns)
    assert store.segments == []
    assert verify_store(path).ok


def test_a_golden_store_is_written_on_by_this_version(golden, tmp_path):
    """Its layout is the one that is asked for; what is written has the same arrays and metadata."""
    path, columns, layout = golden
    published = [one for one in (path / "segments").glob("*-*") if (one / "answer").is_dir()]
    old = next(one for one in published if (one / "zarr.json").exists())
    names = list(json.loads((old / "zarr.json").read_bytes())["attributes"]["question_ids"])
    store = open_store(path)
    part = store[names].read()
    of = Layout.from_json(layout)
    rows = FeatureBatch(
        of,
        {name: tuple(part[name].tolist()) for name in TEXT_COLUMNS}
        | {"question_id": tuple(f"again {one}" for one in names)},
        *(
            {name: part[name] for name in kind}
            for kind in (of.integer_columns(), of.vector_columns(), of.score_columns())
        ),
    )
    root = (path / "zarr.json").read_bytes()
    writer = StoreWriter.open(path, of, worker="new", provenance={})
    writer.append(rows)
    new = path / "segments" / writer.flush().segment
    assert (path / "zarr.json").read_bytes() == root
    documents = [json.loads((one / "zarr.json").read_bytes()) for one in (old, new)]
    arrays = [one["consolidated_metadata"]["metadata"] for one in documents]
    assert arrays[0] == arrays[1]
    assert list(arrays[0]) == list(arrays[1])
    said = [one["attributes"] for one in documents]
    assert list(said[0]) == list(said[1])
    assert said[0]["layout_version"] == said[1]["layout_version"] == layout["layout_version"]
    assert verify_store(path).counts.stored == len(columns["question_id"]) + len(names)


def test_the_golden_stores_are_with_and_without_scores():
    """Version 2 and those after it have all of them, with a NaN among them; version 1 has none."""
    for version in VERSIONS:
        document = json.loads((GOLDEN / f"layout-{version}.json").read_text())
        columns = document["stores"]["segments"]
        there = tuple(name for name in columns if name in SCORE_COLUMNS)
        assert there == (SCORE_COLUMNS if version > 1 else ())
        assert version == 1 or None in columns["mean_logprob"]
        again = json.dumps(Root.from_json(document["layout"]).to_json())
        assert json.loads(again) == document["layout"]


@pytest.mark.parametrize("version", [0, LAYOUT_VERSION + 1, None, "1"])
def test_an_unknown_version_is_refused_by_name(golden, version):
    """The root's number is looked at before anything else is read."""
    path, _, layout = golden
    document = {"zarr_format": 3, "node_type": "group"}
    document["attributes"] = {**layout, "layout_version": version}
    (path / "zarr.json").write_text(json.dumps(document))
    for read in (open_store, verify_store, lambda path: compact(LocalStorage(path))):
        with pytest.raises(LayoutVersionError, match=f"got {version!r}"):
            read(path)
