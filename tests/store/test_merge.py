"""`merge_stores`: overlap, conflicts, other layouts, earlier versions, and going on."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from halp_store.cli import app
from halp_store.compaction import compact
from halp_store.delete import delete_rows
from halp_store.errors import MergeConflict, StoreMismatch, StoreUnavailable
from halp_store.local import LocalStorage
from halp_store.merging import merge_stores
from halp_store.pruning import prune
from halp_store.reader import open_store
from halp_store.root import read_root
from halp_store.verify import verify_store
from halp_store.writer import StoreWriter

GOLDEN = Path(__file__).parent / "golden"


def _merge(out, *paths):
    return merge_stores(LocalStorage(out), [LocalStorage(one) for one in paths])


def test_rows_of_both_are_there_once_with_their_provenance(tmp_path, fill, holds):
    """Also of a store that was compacted and pruned; a second call adds nothing."""
    fill(tmp_path / "a", ["q1", "q2", "q3"], rows=2, worker="one")
    compact(LocalStorage(tmp_path / "a"))
    prune(LocalStorage(tmp_path / "a"), grace_seconds=0)
    fill(tmp_path / "b", ["q3", "q4"], worker="two")
    done = _merge(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    assert (done.rows, done.added, done.skipped) == (4, 4, 1)
    holds(tmp_path / "out", ["q1", "q2", "q3", "q4"])
    assert verify_store(tmp_path / "out").problems == ()
    recorded = {}
    for one in (tmp_path / "out/segments").iterdir():
        attributes = json.loads((one / "zarr.json").read_text())["attributes"]
        recorded[tuple(attributes["question_ids"])] = attributes["provenance"]
    origin = {"store_id": read_root(LocalStorage(tmp_path / "b")).store_id}
    origin["path"] = str(tmp_path / "b")
    assert recorded["q4",] == {"worker": "two", "test": True, "merged_from": origin}
    assert recorded["q1", "q2", "q3"]["worker"] == "one"
    assert _merge(tmp_path / "out", tmp_path / "a", tmp_path / "b").added == 0


def test_other_content_is_refused_before_anything_is_written(tmp_path, fill):
    """All are named, twenty at most; with one of both deleted it goes on."""
    ids = [f"q{number:02}" for number in range(25)]
    fill(tmp_path / "a", [*ids, "x"])
    fill(tmp_path / "b", ids, content="b")
    with pytest.raises(MergeConflict, match="halp-store delete") as refused:
        _merge(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    assert refused.value.ids == tuple(ids)
    assert "and 5 more" in str(refused.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(MergeConflict):
        _merge(tmp_path / "a", tmp_path / "b")
    delete_rows(LocalStorage(tmp_path / "b"), ids)
    assert _merge(tmp_path / "out", tmp_path / "a", tmp_path / "b").rows == 26


def test_another_layout_is_refused_with_its_fields(tmp_path, fill, layout, open_writer):
    """Of an input, and of OUT."""
    fill(tmp_path / "a", ["q1"])
    open_writer(tmp_path / "b", dataclasses.replace(layout, layers=(0, 4)))
    for out, *paths in (("out", "a", "b"), ("b", "a")):
        with pytest.raises(StoreMismatch) as refused:
            _merge(tmp_path / out, *(tmp_path / one for one in paths))
        assert set(refused.value.differences) == {"layers"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("version", [1, 2])
def test_a_store_of_an_earlier_version_is_merged(tmp_path, version):
    """Into a new one of this version."""
    for kind in ("segments", "compacted"):
        shutil.unpack_archive(GOLDEN / f"layout-{version}-{kind}.zip", tmp_path / kind)
        _merge(tmp_path / f"{kind}-out", tmp_path / kind)
        assert list(open_store(tmp_path / f"{kind}-out")) == list(open_store(tmp_path / kind))
        assert verify_store(tmp_path / f"{kind}-out").problems == ()


def test_the_same_call_goes_on_after_a_failure(tmp_path, fill, holds, monkeypatch):
    """What was merged is skipped."""
    monkeypatch.setattr("halp_store.merging._WINDOW_ROWS", 2)
    fill(tmp_path / "a", ["q1", "q2", "q3", "q4", "q5"])
    flush, calls = StoreWriter.flush, []

    def failing(self):
        calls.append(self)
        if len(calls) == 2:
            raise StoreUnavailable("out", "write", OSError(5, "EIO"), "wait")
        return flush(self)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "flush", failing)
        with pytest.raises(StoreUnavailable):
            _merge(tmp_path / "out", tmp_path / "a")
    done = _merge(tmp_path / "out", tmp_path / "a")
    assert (done.added, done.skipped) == (3, 2)
    holds(tmp_path / "out", ["q1", "q2", "q3", "q4", "q5"])


def test_the_command_merges(tmp_path, fill):
    """As text, and as JSON; a conflict is exit code 1."""
    fill(tmp_path / "a", ["q1"])
    arguments = ["merge", str(tmp_path / "out"), str(tmp_path / "a")]
    shown = CliRunner().invoke(app, arguments)
    assert (shown.exit_code, "1 rows; 1 added" in shown.stdout) == (0, True)
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["skipped"] == 1
    fill(tmp_path / "b", ["q1"], content="b")
    assert CliRunner().invoke(app, [*arguments, str(tmp_path / "b")]).exit_code == 1
