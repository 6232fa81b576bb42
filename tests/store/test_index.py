"""Which segment a question id is read from."""

import itertools
import json

import pytest

from halp_store.features import RowKey
from halp_store.index import SegmentIndex
from halp_store.local import LocalStorage
from halp_store.root import Root


def _publish(disk, name, ids, content="a"):
    attributes = {
        "layout_version": 1,
        "nonce": name,
        "question_ids": ids,
        "content_hashes": [content] * len(ids),
    }
    document = json.dumps({"attributes": attributes}).encode()
    assert disk.publish(f"segments/{name}/zarr.json", document)


@pytest.fixture
def old_root(plain):
    """Of a store of version 1, whose segments say no more than that."""
    return Root(plain, 1, None)


@pytest.mark.parametrize("order", list(itertools.permutations(["w-1", "w-2", "w-3"])))
def test_the_lowest_segment_wins_in_any_order_of_discovery(tmp_path, old_root, order):
    """A reader that was there from the start and one that came late see the same."""
    disk = LocalStorage(tmp_path)
    early = SegmentIndex(disk, old_root)
    for name in order:
        _publish(disk, name, ["x", name, "y"] if name == "w-2" else ["y", "x", name])
        early.refresh()
    late = SegmentIndex(disk, old_root)
    late.refresh()
    for index in (early, late):
        assert [index.find(one)[:2] for one in ("x", "y", "w-2")] == [
            ("w-1", 1),
            ("w-1", 0),
            ("w-2", 1),
        ]
        assert len(index) == 5
        assert index.contradictions == ()


def test_each_zarr_json_is_read_once(tmp_path, old_root):
    """A refresh costs a listing and the new segments; staged ones and tombstones add no rows."""

    class Counting(LocalStorage):
        reads = 0

        def read(self, key):
            self.reads += key.startswith("segments/")
            return super().read(key)

    disk = Counting(tmp_path)
    index = SegmentIndex(disk, old_root)
    _publish(disk, "w-1", ["a"])
    disk.publish("segments/w-2/zarr.json", b'{"attributes": {"tombstone": true}}')
    index.refresh()
    assert disk.reads == 2
    index.refresh()
    assert disk.reads == 2
    disk.write("segments/w-3/answer/c.0", b"staged")
    index.refresh()
    assert len(index) == 1
    _publish(disk, "w-3", ["b"])
    index.refresh()
    assert sorted(index) == ["a", "b"]


def test_ids_stored_with_two_contents_are_listed(tmp_path, old_root):
    """The lowest segment is read, and the contradiction is there to be seen."""
    disk, index = LocalStorage(tmp_path), SegmentIndex(LocalStorage(tmp_path), old_root)
    _publish(disk, "w-2", ["a", "b"], "one")
    index.refresh()
    _publish(disk, "w-1", ["a"], "two")
    index.refresh()
    assert index.contradictions == ("a",)
    assert index.state(RowKey("a", "two")) == "stored"
    assert index.state(RowKey("a", "one")) == "conflict"
    assert index.state(RowKey("b", "one")) == "stored"
    assert index.state(RowKey("c", "one")) == "new"
