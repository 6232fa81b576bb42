"""`copy`: all rows, resumed after a failure at any operation, refused where something else is."""

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from halp_store.cli import app
from halp_store.compaction import compact
from halp_store.copying import copy
from halp_store.delete import delete_rows
from halp_store.errors import CopyRefused, GenerationMissing
from halp_store.local import LocalStorage
from halp_store.pruning import prune
from halp_store.reader import open_store
from halp_store.verify import verify_store

from .conftest import assert_columns

GOLDEN = Path(__file__).parent / "golden"


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


@pytest.mark.slow
def test_a_copy_is_whole_while_a_worker_writes_and_a_compaction_prunes(
    tmp_path, fill, fork, open_writer, make_rows
):
    """Every row that was committed before the copy began is in it, and it passes verify."""
    fill(tmp_path / "s", [f"first {number}" for number in range(20)], rows=3)
    stop = tmp_path / "stop"

    def write():
        writer = open_writer(tmp_path / "s", worker="live")
        number = 0
        while not stop.exists():
            writer.append(make_rows([f"live {number}"]))
            writer.flush()
            number += 1

    def tidy():
        while not stop.exists():
            compact(LocalStorage(tmp_path / "s"))
            prune(LocalStorage(tmp_path / "s"), grace_seconds=0)

    children = [fork(write), fork(tidy)]
    try:
        for number in range(6):
            before = set(open_store(tmp_path / "s"))
            target = tmp_path / f"copy{number}"
            copy(LocalStorage(tmp_path / "s"), LocalStorage(target))
            store = open_store(target)
            assert before <= set(store)
            assert_columns(store.read(), make_rows(store.ids))
            assert verify_store(target).ok
    finally:
        stop.touch()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_stores_of_all_versions_are_copied(tmp_path, version):
    """As they are: the copy has the same root."""
    shutil.unpack_archive(GOLDEN / f"layout-{version}-compacted.zip", tmp_path / "old")
    copy(LocalStorage(tmp_path / "old"), LocalStorage(tmp_path / "new"))
    before, after = open_store(tmp_path / "old"), open_store(tmp_path / "new")
    assert (tmp_path / "new/zarr.json").read_bytes() == (tmp_path / "old/zarr.json").read_bytes()
    assert before.ids == after.ids
    assert before.text("answer") == after.text("answer")


def test_deleted_rows_stay_deleted_in_a_copy(tmp_path, fill):
    """Their tombstones are copied too."""
    fill(tmp_path / "s", ["a", "b", "c"])
    delete_rows(LocalStorage(tmp_path / "s"), ["b"])
    copy(LocalStorage(tmp_path / "s"), LocalStorage(tmp_path / "t"))
    assert list(open_store(tmp_path / "t")) == ["a", "c"]


def test_the_command_says_what_was_copied(tmp_path, fill):
    """A sentence or JSON; a refusal is exit code 1."""
    fill(tmp_path / "s", ["a", "b"])
    run = CliRunner().invoke(app, ["copy", str(tmp_path / "s"), str(tmp_path / "t")])
    assert run.exit_code == 0, run.output
    assert "2 rows; 1 groups copied" in run.stdout
    again = CliRunner().invoke(app, ["copy", str(tmp_path / "s"), str(tmp_path / "t"), "--json"])
    assert json.loads(again.stdout)["groups"] == 0
    fill(tmp_path / "other", ["x"])
    refused = CliRunner().invoke(app, ["copy", str(tmp_path / "other"), str(tmp_path / "t")])
    assert refused.exit_code == 1
    assert "no place for a copy" in refused.stderr
