"""Stores that were written once and are never edited: every later version reads them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from halp_store.compaction import compact
from halp_store.errors import LayoutVersionError
from halp_store.layout import LAYOUT_VERSION, Layout
from halp_store.local import LocalStorage
from halp_store.reader import open_store
from halp_store.verify import verify_store

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
    for name, values in store.read().items():
        np.testing.assert_array_equal(values, np.array(columns[name], values.dtype), err_msg=name)
    for row, question_id in enumerate(store):
        assert store[question_id].answer == columns["answer"][row]
    return store


def test_a_golden_store_is_read_as_it_was_written(golden):
    """Every value of every column, the layout, and nothing for verify to say."""
    path, columns, layout = golden
    store = _check(path, columns)
    assert store.layout == Layout.from_json(layout)
    found = verify_store(path)
    assert {one.kind for one in found.problems} <= {"duplicate"}


def test_a_golden_store_is_compacted_by_this_version(golden):
    """What an old version wrote, a new one takes over."""
    path, columns, _ = golden
    compact(LocalStorage(path))
    store = _check(path, columns)
    assert store.segments == []
    assert verify_store(path).ok


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
