"""`copy_store`: consistent beside writers and prunes, resumed after any failure."""

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from halp_store.cli import app
from halp_store.compaction import compact
from halp_store.copying import copy_store
from halp_store.delete import delete_rows
from halp_store.errors import CopyRefused, NotAStore, StoreUnavailable
from halp_store.local import LocalStorage
from halp_store.pruning import prune
from halp_store.reader import open_store
from halp_store.root import read_root
from halp_store.verify import verify_store

IDS = [f"q{number}" for number in range(12)]
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def path(tmp_path, fill):
    """A generation, segments that it does not cover, and a deleted row."""
    fill(tmp_path / "s", IDS[:8], rows=4)
    compact(LocalStorage(tmp_path / "s"))
    fill(tmp_path / "s", IDS, rows=2, worker="later")
    delete_rows(LocalStorage(tmp_path / "s"), ["q1"])
    return tmp_path / "s"


def _copy(source, target):
    return copy_store(LocalStorage(source), LocalStorage(target))


def test_a_copy_is_the_store(path, tmp_path, holds):
    """Also its id; it brings over what is new, and nothing twice."""
    left = [one for one in IDS if one != "q1"]
    assert _copy(path, tmp_path / "c").rows == len(left)
    holds(tmp_path / "c", left)
    assert verify_store(tmp_path / "c").problems == ()
    assert read_root(LocalStorage(tmp_path / "c")) == read_root(LocalStorage(path))
    assert _copy(path, tmp_path / "c").keys == 0
    compact(LocalStorage(path))
    prune(LocalStorage(path), grace_seconds=0)
    delete_rows(LocalStorage(path), ["q2"])
    assert _copy(path, tmp_path / "c").groups == 1
    assert list(open_store(tmp_path / "c")) == sorted(one for one in left if one != "q2")
    assert list((tmp_path / "c/segments/.pruned").iterdir())
    assert verify_store(tmp_path / "c").problems == ()


class _Failing:
    """Fails for good from the n-th call on."""

    def __init__(self, path, calls):
        self._storage, self._calls = LocalStorage(path), calls

    def __getattr__(self, name):
        found = getattr(self._storage, name)
        if not callable(found):
            return found

        def call(*values, **named):
            self._calls -= 1
            if self._calls < 0:
                raise StoreUnavailable(self._storage.where, name, OSError(5, "EIO"), "wait")
            return found(*values, **named)

        return call


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["source", "target"])
def test_after_a_failure_at_any_operation_the_same_call_resumes(tmp_path, fill, holds, failing):
    """What was interrupted is no store; the resumed copy is whole."""
    fill(tmp_path / "s", IDS[:2])
    compact(LocalStorage(tmp_path / "s"))
    fill(tmp_path / "s", IDS[2:4])
    for calls in range(0, 1000, 4):
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        places = {
            name: LocalStorage(tmp_path / name[0].replace("t", "c"))
            for name in ("source", "target")
        }
        places[failing] = _Failing(places[failing].root, calls)
        try:
            copy_store(places["source"], places["target"])
            break
        except StoreUnavailable:
            if not (tmp_path / "c/zarr.json").exists():
                with pytest.raises(NotAStore):
                    open_store(tmp_path / "c")
        assert _copy(tmp_path / "s", tmp_path / "c").rows == 4
        assert verify_store(tmp_path / "c").problems == ()
    else:
        pytest.fail("never ended")
    holds(tmp_path / "c", IDS[:4])


@pytest.mark.slow
def test_a_copy_beside_writers_and_prunes_has_all_that_was_committed(tmp_path, fill, fork):
    """Whatever is compacted and pruned while it is read."""
    path = tmp_path / "s"
    fill(path, IDS, rows=3)

    def write():
        for number in range(40):
            fill(path, [f"n{number}"])

    def shrink():
        for _ in range(12):
            compact(LocalStorage(path))
            prune(LocalStorage(path), grace_seconds=0)

    children = [fork(write), fork(shrink)]
    for number in range(6):
        before = set(open_store(path))
        _copy(path, tmp_path / str(number))
        assert before <= set(open_store(tmp_path / str(number)))
        assert verify_store(tmp_path / str(number)).problems == ()
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_prune_in_the_middle_begins_the_copy_again(path, tmp_path, monkeypatch):
    """The segments of the first snapshot are gone: the newer generation has their rows."""
    source = LocalStorage(path)
    read, pruned = source.list_keys, []

    def list_keys(prefix):
        if not pruned:
            pruned.append(True)
            compact(LocalStorage(path))
            prune(LocalStorage(path), grace_seconds=0)
        return read(prefix)

    monkeypatch.setattr(source, "list_keys", list_keys)
    assert copy_store(source, LocalStorage(tmp_path / "c")).generation == "compacted/000002"
    assert verify_store(tmp_path / "c").problems == ()
    assert len(open_store(tmp_path / "c")) == 11


def test_another_store_or_foreign_files_are_refused(path, tmp_path, fill):
    """Also a copy that was written to, and one that another store's copy was begun in."""
    fill(tmp_path / "other", ["x"])
    (tmp_path / "files").mkdir()
    (tmp_path / "files/mine.txt").write_text("x")
    _copy(path, tmp_path / "written")
    fill(tmp_path / "written", ["x"])
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/.copying.json").write_text('{"copy_of": {}}')
    for name in ("other", "files", "written", "begun", "s", "s/inside"):
        with pytest.raises(CopyRefused, match="cannot become a copy"):
            _copy(path, tmp_path / name)
    assert list(open_store(tmp_path / "other")) == ["x"]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_stores_of_earlier_versions_are_copied(tmp_path, version):
    """As they are."""
    for kind in ("segments", "compacted"):
        shutil.unpack_archive(GOLDEN / f"layout-{version}-{kind}.zip", tmp_path / kind)
        _copy(tmp_path / kind, tmp_path / f"{kind}-copy")
        assert list(open_store(tmp_path / f"{kind}-copy")) == list(open_store(tmp_path / kind))


def test_the_command_copies_and_prints_rows(path, tmp_path):
    """As text and as JSON; a refusal is a sentence."""
    arguments = ["copy", str(path), str(tmp_path / "c")]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "11 rows" in shown.stdout
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["keys"] == 0
    (tmp_path / "c/zarr.json").write_text("{}")
    assert CliRunner().invoke(app, arguments).exit_code == 1
