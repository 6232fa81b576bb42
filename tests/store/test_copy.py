"""`copy`: all rows, resumed after a failure at any operation, refused where something else is."""

import shutil

import pytest

from halp_store.compaction import compact
from halp_store.copying import copy
from halp_store.errors import CopyRefused, GenerationMissing
from halp_store.local import LocalStorage
from halp_store.pruning import prune
from halp_store.reader import open_store
from halp_store.verify import verify_store


class _Failing(LocalStorage):
    """Its n-th publish fails."""

    left = 0

    def publish(self, key, value):
        self.left -= 1
        if self.left < 0:
            raise OSError(5, "Input/output error")
        return super().publish(key, value)


def test_a_copy_resumes_after_each_failure(tmp_path, fill):
    """Until it is whole it is no store; each further call goes on; then it brings what is new."""
    source = tmp_path / "source"
    fill(source, ["a", "b"])
    for left in range(0, 10_000, 9):
        target = _Failing(tmp_path / "copy")
        target.left = left
        try:
            copied = copy(LocalStorage(source), target)
        except OSError:
            assert not (tmp_path / "copy/zarr.json").exists()
            continue
        break
    assert copied.rows == 2
    assert verify_store(tmp_path / "copy").ok
    fill(source, ["c"])
    assert copy(LocalStorage(source), LocalStorage(tmp_path / "copy")).groups == 1
    compact(LocalStorage(source))
    prune(LocalStorage(source), grace_seconds=0)
    assert copy(LocalStorage(source), LocalStorage(tmp_path / "copy")).rows == 3
    assert set(open_store(tmp_path / "copy").ids) == {"a", "b", "c"}


def test_another_store_or_files_are_refused(tmp_path, fill):
    """Nothing there is overwritten."""
    fill(tmp_path / "one", ["a"])
    fill(tmp_path / "two", ["a"])
    (tmp_path / "files").mkdir()
    (tmp_path / "files/notes.txt").write_text("mine")
    for place in ("two", "files"):
        with pytest.raises(CopyRefused):
            copy(LocalStorage(tmp_path / "one"), LocalStorage(tmp_path / place))


def test_a_plain_copy_without_its_generation_is_an_error(tmp_path, fill):
    """As `cp -r` leaves it when it overlaps `compact --prune`."""
    fill(tmp_path / "one", ["a"])
    compact(LocalStorage(tmp_path / "one"))
    prune(LocalStorage(tmp_path / "one"), grace_seconds=0)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(tmp_path / "two/compacted")
    with pytest.raises(GenerationMissing):
        open_store(tmp_path / "two")
    assert not verify_store(tmp_path / "two").ok
