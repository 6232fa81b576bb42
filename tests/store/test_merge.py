"""Stores of one configuration become one; what contradicts is named, and nothing is written."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from halp_store.cli import app
from halp_store.compaction import compact
from halp_store.delete import delete_rows
from halp_store.errors import MergeConflict, MergeRefused, StoreMismatch, StoreUnavailable
from halp_store.local import LocalStorage
from halp_store.merging import merge
from halp_store.pruning import prune
from halp_store.reader import open_store
from halp_store.root import read_root
from halp_store.verify import verify_store
from halp_store.writer import StoreWriter

from .conftest import assert_columns

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def stores(tmp_path, fill):
    """Two that overlap in q4: segments, and a generation whose segments were pruned."""
    fill(tmp_path / "a", [f"q{number}" for number in range(5)], rows=2)
    fill(tmp_path / "b", [f"q{number}" for number in range(4, 9)], rows=2, worker="other")
    compact(LocalStorage(tmp_path / "b"))
    prune(LocalStorage(tmp_path / "b"), grace_seconds=0)
    return [tmp_path / "a", tmp_path / "b"]


def test_all_rows_come_together_once(tmp_path, stores, make_rows):
    """With all columns, in a store of its own; the sources stay as they are."""
    merged = merge(tmp_path / "out", stores)
    assert (merged.rows, merged.added, merged.skipped) == (9, 9, 1)
    store = open_store(tmp_path / "out")
    assert_columns(store.read(), make_rows(store.ids))
    assert verify_store(tmp_path / "out").ok
    ids = {read_root(LocalStorage(path)).store_id for path in (*stores, tmp_path / "out")}
    assert len(ids) == 3
    assert [len(open_store(path)) for path in stores] == [5, 5]


def test_provenance_says_where_rows_come_from(tmp_path, stores):
    """What their worker recorded, and which store they were in."""
    merge(tmp_path / "out", stores)
    store = open_store(tmp_path / "out")
    for question_id, source, worker in (("q0", "a", "worker"), ("q8", "b", "other")):
        segment = store[question_id].segment
        recorded = store.provenances([segment])[segment]
        assert (recorded["worker"], recorded["test"]) == (worker, True)
        assert recorded["merged_from"]["store"] == str(tmp_path / source)


def test_the_same_call_goes_on(tmp_path, stores, make_rows, fill):
    """After an end in the middle, and with rows that came since."""

    class FullError(Exception):
        pass

    def stop(done, total):
        raise FullError

    with pytest.raises(FullError):
        merge(tmp_path / "out", stores, stop)
    assert 0 < len(open_store(tmp_path / "out")) < 9
    fill(tmp_path / "a", ["late"])
    merged = merge(tmp_path / "out", stores)
    assert merged.rows == 10
    assert merge(tmp_path / "out", stores).added == 0
    store = open_store(tmp_path / "out")
    assert_columns(store.read(), make_rows(store.ids))
    assert verify_store(tmp_path / "out").ok


def test_contradictions_are_named_and_nothing_is_written(tmp_path, stores, fill):
    """Between two sources, and with what is there; deleting one of both mends it."""
    fill(tmp_path / "c", ["q1", "q7", "new"], content="b")
    with pytest.raises(MergeConflict, match="2 questions have other content") as caught:
        merge(tmp_path / "out", [*stores, tmp_path / "c"])
    assert "'q1' in " in str(caught.value)
    assert "'q7' in " in str(caught.value)
    assert not (tmp_path / "out").exists()
    merge(tmp_path / "out", stores)
    with pytest.raises(MergeConflict, match="'q1' in"):
        merge(tmp_path / "out", [tmp_path / "c"])
    delete_rows(LocalStorage(tmp_path / "c"), ["q1", "q7"])
    assert merge(tmp_path / "out", [tmp_path / "c"]).rows == 10


def test_many_contradictions_are_counted(tmp_path, fill):
    """A message is not as long as a store."""
    ids = [f"q{number}" for number in range(30)]
    for name in ("a", "b"):
        fill(tmp_path / name, ids, content=name)
    with pytest.raises(MergeConflict, match="and 10 more") as caught:
        merge(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    assert len(caught.value.conflicts) == 30


def test_what_cannot_be_merged_is_refused(tmp_path, stores, layout, make_rows, open_writer):
    """Another configuration, with the fields; one store twice, or its copy; itself."""
    other = dataclasses.replace(layout, layers=(1, 3))
    writer = open_writer(tmp_path / "other", other)
    writer.append(make_rows(["x"], of=other))
    writer.flush()
    for out, sources in (
        (tmp_path / "out", [stores[0], tmp_path / "other"]),
        (tmp_path / "other", stores),
    ):
        with pytest.raises(StoreMismatch) as caught:
            merge(out, sources)
        assert set(caught.value.differences) == {"layers"}
    shutil.copytree(stores[0], tmp_path / "copy")
    for out, sources in (
        (tmp_path / "out", [stores[0], tmp_path / "copy"]),
        (stores[0], stores),
        (tmp_path / "out", []),
    ):
        with pytest.raises(MergeRefused):
            merge(out, sources)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("version", [1, 2])
def test_stores_of_older_versions_are_merged_into_a_new_one(tmp_path, version):
    """The merged store has an id."""
    shutil.unpack_archive(GOLDEN / f"layout-{version}-compacted.zip", tmp_path / "old")
    before = open_store(tmp_path / "old")
    assert merge(tmp_path / "out", [tmp_path / "old"]).rows == len(before)
    assert read_root(LocalStorage(tmp_path / "out")).version == 3
    after = open_store(tmp_path / "out").read()
    for name, values in before.read().items():
        assert after[name].tobytes() == values.tobytes() or list(after[name]) == list(values), name
    assert verify_store(tmp_path / "out").ok


def test_the_command_says_what_was_done(tmp_path, stores):
    """A sentence or JSON; a refusal is exit code 1."""
    arguments = ["merge", str(tmp_path / "out"), *map(str, stores)]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    assert "9 rows; 9 added, 1 were there already" in run.stdout
    said = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert (said["rows"], said["added"]) == (9, 0)
    assert CliRunner().invoke(app, ["merge", str(stores[0]), *map(str, stores)]).exit_code == 1


def test_a_full_disk_ends_it_and_the_same_call_goes_on(tmp_path, stores, monkeypatch):
    """Nothing is there twice."""
    flush = StoreWriter.flush

    def fails(writer, *arguments):
        monkeypatch.setattr(StoreWriter, "flush", flush)
        raise StoreUnavailable("out", "write", OSError(28, "No space left on device"), "free some")

    monkeypatch.setattr(StoreWriter, "flush", fails)
    with pytest.raises(StoreUnavailable):
        merge(tmp_path / "out", stores)
    assert merge(tmp_path / "out", stores).rows == 9
