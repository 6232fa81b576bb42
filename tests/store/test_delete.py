"""Deleted rows: hidden at once from everybody, gone with a prune, and free to be stored again."""

import itertools
import json
import os
import pickle
import signal
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from halp_store import cli_delete
from halp_store import delete as module
from halp_store.cli import app
from halp_store.compaction import compact
from halp_store.delete import deletable, delete_rows
from halp_store.errors import (
    DamagedDeletion,
    DeletedQuestion,
    ForeignSegment,
    NothingDeleted,
    StoreUnavailable,
)
from halp_store.features import RowKey
from halp_store.index import SegmentIndex
from halp_store.local import LocalStorage
from halp_store.pruning import prune
from halp_store.reader import open_store
from halp_store.root import Root, read_root, root_document
from halp_store.verify import verify_store

from .conftest import assert_columns
from .dying import DyingStorage

IDS = [f"q{number}" for number in range(12)]
GONE = ["q1", "q7"]
LEFT = [one for one in IDS if one not in GONE]


@pytest.fixture
def path(tmp_path, fill):
    """Twelve rows in three segments."""
    fill(tmp_path / "s", IDS, rows=4)
    return tmp_path / "s"


@pytest.fixture(params=["segments", "compacted", "pruned", "both"])
def any_path(request, path, fill):
    """The same rows, wherever they may be."""
    disk = LocalStorage(path)
    if request.param != "segments":
        compact(disk)
    if request.param == "pruned":
        prune(disk, grace_seconds=0)
    if request.param == "both":
        fill(path, ["x"], worker="later")
    return path


def _cli(*arguments, **options):
    return CliRunner().invoke(app, [*map(str, arguments)], **options)


def _ids(path):
    return [one for one in open_store(path) if one != "x"]


def _stored_again(path, fill, make_rows, ids, content):
    """With these values, beside the others; and nothing is wrong."""
    fill(path, ids, worker="again", content=content)
    store = open_store(path)
    assert_columns(store[sorted(ids)].read(), make_rows(sorted(ids), content))
    assert [one for one in store if one != "x"] == sorted(IDS)
    assert store.contradictions == ()
    assert store[ids[0]].segment.startswith("again-")
    assert verify_store(path).problems == ()


def test_a_deleted_row_is_hidden_and_may_be_stored_again(any_path, fill, make_rows):
    """From reader, writer, xarray's view and verify; then with other content, as a new row."""
    done = delete_rows(LocalStorage(any_path), GONE)
    assert (done.deleted, done.before) == (tuple(GONE), ())
    store = open_store(any_path)
    assert _ids(any_path) == sorted(LEFT)
    assert store.rows_deleted == 2
    with pytest.raises(DeletedQuestion, match="'q1' was deleted"):
        store["q1"]
    found = verify_store(any_path)
    assert (found.problems, found.deleted) == ((), 2)
    _stored_again(any_path, fill, make_rows, GONE, "other")


def test_their_bytes_go_and_they_stay_deleted(any_path, fill, make_rows):
    """Compaction and pruning leave them out, also where all is compacted already; then they may
    come back, and be deleted and stored once more."""
    disk = LocalStorage(any_path)
    delete_rows(disk, GONE)
    done = compact(disk)
    assert done.deleted == 2
    assert done.dropped == 0
    assert compact(disk).deleted == 0
    prune(disk, grace_seconds=0)
    assert _ids(any_path) == sorted(LEFT)
    assert open_store(any_path).rows_deleted == 0
    found = verify_store(any_path)
    assert (found.problems, found.deleted, found.rows) == ((), 0, found.counts.stored)
    _stored_again(any_path, fill, make_rows, GONE, "other")
    compact(disk)
    assert open_store(any_path)["q1"].segment.startswith("again-")
    delete_rows(disk, GONE)
    assert _ids(any_path) == sorted(LEFT)
    compact(disk)
    _stored_again(any_path, fill, make_rows, GONE, "third")


def test_every_row_of_an_id_is_deleted(path, publish, make_rows):
    """A job that was redelivered has left two; neither is shown, before and after compaction."""
    for content, worker in (("a", "aa"), ("b", "zz")):
        publish(path, make_rows(["q1", f"of-{worker}"], content), worker)
    disk = LocalStorage(path)
    delete_rows(disk, ["q1"])
    for _ in range(2):
        store = open_store(path)
        assert "q1" not in store
        assert store.contradictions == ()
        assert verify_store(path).problems == ()
        compact(disk)


@pytest.mark.parametrize("order", [*itertools.permutations(["delete", "store", "compact"])])
def test_whatever_comes_first_an_open_index_and_a_new_one_agree(path, fill, order):
    """Deletion, a new row and a generation are discovered one by one, or all at once."""
    disk = LocalStorage(path)
    root = read_root(disk)
    early = SegmentIndex(disk, root).refresh()
    steps = {
        "delete": lambda: delete_rows(disk, ["q1"]),
        "store": lambda: fill(path, ["q1", "new"], worker="again", content="b"),
        "compact": lambda: compact(disk),
    }
    writes_again = order.index("delete") < order.index("store")
    for step in order:
        steps[step]()
        early = early.refresh()
        late = SegmentIndex(disk, root).refresh()
        assert set(early) == set(late)
        assert {one: early.find(one)[:2] for one in early} == {
            one: late.find(one)[:2] for one in late
        }
        assert early.rows_deleted == late.rows_deleted
    assert ("q1" in early) == writes_again


def test_a_writer_that_knew_the_row_learns_that_it_may_come_again(path, open_writer, make_rows):
    """Also by a look at the deletions alone; and it gets its receipt for the new row."""
    writer, other = open_writer(path), open_writer(path)
    key = RowKey("q1", "b-q1")
    assert (writer.lookup(key), writer.lookup(RowKey("q1", "a-q1"))) == ("conflict", "stored")
    delete_rows(LocalStorage(path), ["q1"])
    other.refresh_deletions()
    assert other.lookup(key) == "new"
    writer.append(make_rows(["q1"], "b"))
    flush = writer.flush()
    assert (flush.receipt.rows, flush.conflicts) == ((key,), ())
    assert writer.lookup(key) == "stored"


def test_rows_that_are_deleted_while_they_are_committed_are_not_lost_silently(
    path, open_writer, make_rows, monkeypatch
):
    """Each row of the flush has its receipt, and the store has each of them."""
    writer = open_writer(path)
    publish = writer._publish

    def deletes(segment):
        answer = publish(segment)
        monkeypatch.setattr(writer, "_publish", publish)
        delete_rows(LocalStorage(path), ["y"])
        return answer

    monkeypatch.setattr(writer, "_publish", deletes)
    writer.append(make_rows(["x", "y"]))
    flush = writer.flush()
    assert {one.question_id for one in flush.receipt.rows} == {"x", "y"}
    assert {"x", "y"} <= set(open_store(path))


def test_an_older_view_reads_on_until_the_bytes_are_gone(path):
    """Records too, also in another process; then the error says that it was deleted."""
    disk, store = LocalStorage(path), open_store(path)
    view = store[["q1", "q2"]]
    copy = pickle.loads(pickle.dumps(view))  # noqa: S301 - our own bytes
    delete_rows(disk, ["q1"])
    store.refresh()
    assert "q1" not in store
    for one in (view, copy):
        assert one["q1"].question_id == "q1"
        assert len(one.read(["query_token"])["query_token"]) == 2
    compact(disk)
    prune(disk, grace_seconds=0)
    for one in (view, copy):
        with pytest.raises(DeletedQuestion, match="was deleted"):
            one.read(["query_token"])
    assert view[["q2"]]["q2"].question_id == "q2"


def test_a_reader_that_follows_gets_what_is_stored_again_as_new(path, fill):
    """Nothing for a deletion alone; the new row once; nobody's refresh in between hides it."""
    store = open_store(path)
    looks = store.follow(idle_seconds=0)
    assert list(looks) == []
    looks = store.follow(idle_seconds=1000, poll_seconds=0)
    fill(path, ["x"])
    assert list(next(looks)) == ["x"]
    delete_rows(LocalStorage(path), GONE)
    store.refresh()
    assert len(store) == len(LEFT) + 1
    fill(path, ["q1"], content="b")
    store.refresh()
    assert list(next(looks)) == ["q1"]
    fill(path, ["y"])
    assert list(next(looks)) == ["y"]


def test_as_many_deleted_as_added_is_seen(path, fill):
    """A store of the same length is not the same store."""
    store = open_store(path)
    delete_rows(LocalStorage(path), ["q1"])
    fill(path, ["new"])
    store.refresh()
    assert set(store) == {*IDS, "new"} - {"q1"}


def test_a_refresh_that_fails_leaves_the_index_as_it_was(path, fill, monkeypatch):
    """Not half of a deletion: the old rows, until it can be read whole."""
    disk = LocalStorage(path)
    index = SegmentIndex(disk, read_root(disk)).refresh()
    delete_rows(disk, ["q1"])
    fill(path, ["new"])
    with monkeypatch.context() as patch:
        patch.setattr(SegmentIndex, "_take_in", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            index.refresh()
    assert set(index) == set(IDS)
    assert index.deletions.names == []
    assert set(index.refresh()) == {*IDS, "new"} - {"q1"}


def test_two_deletions_at_once_both_count(path):
    """Of the same ids and of others."""
    disk = LocalStorage(path)
    assert deletable(disk, GONE).deleted == tuple(GONE)
    delete_rows(disk, GONE)
    assert delete_rows(disk, ["q1", "q2"]).before == ("q1",)
    assert _ids(path) == sorted({*LEFT} - {"q2"})
    assert len(list((path / "deleted").iterdir())) == 2


class _Failing(LocalStorage):
    """Its n-th change fails, or what comes after it."""

    def __init__(self, root, number, after):
        super().__init__(root)
        self.left, self._after = number, after

    def publish(self, key, value):
        if not self.left and not self._after:
            raise StoreUnavailable(self.where, "write", OSError(28, "full"), "free some space")
        answer = super().publish(key, value)
        if not self.left:
            raise StoreUnavailable(self.where, "write", OSError(5, "broken"), "look")
        self.left -= 1
        return answer


def test_killed_at_any_change_the_same_command_goes_on(tmp_path, fill, fork, monkeypatch):
    """Before or after each of them: each id is there or deleted, and the rest follows."""
    monkeypatch.setattr(module, "_IDS_A_FILE", 2)
    for point in range(6):
        path = tmp_path / str(point)
        fill(path, IDS, rows=4)
        child = fork(lambda path=path, point=point: delete_rows(DyingStorage(path, point), IDS[:4]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        left = 12 - 2 * min(2, (point + 1) // 2)
        assert len(open_store(path)) == left
        assert len(delete_rows(LocalStorage(path), IDS[:4]).before) == 12 - left
        assert _ids(path) == sorted(IDS[4:])


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(4))
def test_ended_at_any_change_the_same_command_goes_on(path, monkeypatch, number, after):
    """Each id is there whole or deleted whole; then all of them are deleted."""
    monkeypatch.setattr(module, "_IDS_A_FILE", 1)
    ids = IDS[:4]
    with pytest.raises(StoreUnavailable):
        delete_rows(_Failing(path, number, after), ids)
    assert len(open_store(path)) == len(IDS) - number - after
    assert verify_store(path).problems == ()
    done = delete_rows(LocalStorage(path), ids)
    assert len(done.before) == number + after
    assert _ids(path) == sorted(IDS[4:])


def test_a_plan_honours_the_deletions_that_it_names(path, monkeypatch):
    """What is deleted while a compaction is interrupted is for the next: two that go on with one
    plan write the same. A plan of an earlier release names none."""
    disk = LocalStorage(path)
    delete_rows(disk, ["q1"])
    with monkeypatch.context() as patch:
        patch.setattr("halp_store.compaction._write", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            compact(disk)
    (plan,) = (path / "compacted/.plans").iterdir()
    assert len(json.loads(plan.read_text())["deletions"]) == 1
    delete_rows(disk, ["q7"])
    done = compact(disk)
    assert (done.resumed, done.deleted, done.rows) == (True, 2, 10)
    assert len(list((path / "compacted").glob("0*"))) == 2
    delete_rows(disk, ["q2"])
    plan.with_name("000003.json").write_text('{"base": 2, "segments": []}')
    done = compact(disk)
    assert (done.generation, done.rows) == ("compacted/000004", 9)
    assert verify_store(path).problems == ()


def _interrupted(*_):
    raise KeyboardInterrupt


def test_a_plan_whose_deletion_was_removed_is_given_up(path, monkeypatch):
    """Its generation would not be what its plan says; the next plan is made of what is there."""
    disk = LocalStorage(path)
    delete_rows(disk, ["q1"])
    with monkeypatch.context() as patch:
        patch.setattr("halp_store.compaction._write", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            compact(disk)
    for one in (path / "deleted").iterdir():
        one.unlink()
    assert (compact(disk).generation, len(open_store(path))) == ("compacted/000002", 12)


def test_a_store_without_rows_is_not_compacted(path, fill):
    """Every row is deleted: it is an empty store, and rows may come again."""
    disk = LocalStorage(path)
    compact(disk)
    delete_rows(disk, IDS)
    assert len(open_store(path)) == 0
    assert compact(disk).deleted == 0
    assert verify_store(path).problems == ()
    fill(path, ["q3"], content="b")
    assert compact(disk).rows == 1
    assert prune(disk, grace_seconds=0).generations == 1
    assert _ids(path) == ["q3"]


def test_verify_misses_a_deleted_question_that_is_expected(path):
    """With what to do; one that is damaged or of another store is a problem, and no other."""
    delete_rows(LocalStorage(path), ["q1"])
    found = verify_store(path, expected=dict.fromkeys(IDS, ""))
    (problem,) = found.problems
    assert (problem.kind, problem.question_id) == ("missing", "q1")
    assert "was deleted; enqueue" in problem.sentence
    assert found.counts.stored == 11


DAMAGES = {
    "not json": "{",
    "no object": "[]",
    "no rows": "{}",
    "no pairs": '{"rows": [["q1"]]}',
    "numbers": '{"rows": [[1, 2]]}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_deletion_is_a_named_error(path, damage):
    """For reader, writer, compaction and pruning; verify goes on. Nothing is shown or removed by
    who cannot know what was deleted."""
    disk, store = LocalStorage(path), open_store(path)
    compact(disk)
    delete_rows(disk, ["q1"])
    (file,) = (path / "deleted").iterdir()
    file.write_text(DAMAGES[damage])
    for act in (
        store.refresh,
        lambda: open_store(path),
        lambda: compact(disk),
        lambda: prune(disk, grace_seconds=0),
        lambda: delete_rows(disk, ["q2"]),
    ):
        with pytest.raises(DamagedDeletion, match=f"deleted/{file.name} is damaged"):
            act()
    (problem,) = verify_store(path).problems
    assert (problem.kind, problem.segment) == ("damaged", f"deleted/{file.name}")


def test_a_deletion_of_another_store_is_refused(path, tmp_path, fill):
    """Copied there by hand: its ids are not deleted here."""
    fill(tmp_path / "other", ["q1"])
    delete_rows(LocalStorage(tmp_path / "other"), ["q1"])
    (file,) = (tmp_path / "other/deleted").iterdir()
    (path / "deleted").mkdir()
    (path / "deleted" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ForeignSegment, match=f"deletion deleted/{file.name} does not belong"):
        open_store(path)
    (problem,) = verify_store(path).problems
    assert problem.kind == "foreign"


@pytest.mark.parametrize("version", [1, 2])
def test_stores_of_earlier_versions_can_delete(
    tmp_path, version, layout, plain, open_writer, make_rows
):
    """They have no id; what is stored again is of that version, too."""
    disk, of = LocalStorage(tmp_path / "s"), plain if version == 1 else layout
    disk.create_root()
    disk.publish("zarr.json", root_document(Root(of, version, None)))
    writer = open_writer(tmp_path / "s", of)

    def store(content):
        writer.append(make_rows(["a"] if content == "b" else ["a", "b"], content, of))
        return writer.flush()

    store("a")
    delete_rows(disk, ["a"])
    assert list(open_store(tmp_path / "s")) == ["b"]
    assert store("b").receipt.rows == (RowKey("a", "b-a"),)
    assert verify_store(tmp_path / "s").problems == ()


def test_only_files_that_are_whole_and_ours_count(path):
    """One that is being written, and what a desktop leaves, delete nothing."""
    (path / "deleted").mkdir()
    (path / "deleted" / f"{0:032x}.json").touch()
    (path / "deleted/Thumbs.db").write_text("x")
    assert _ids(path) == sorted(IDS)
    assert verify_store(path).ok


# -- the command line ------------------------------------------------------------------------


def test_the_command_deletes_and_says_what_comes_next(path, tmp_path):
    """From arguments, from a file, as JSON."""
    shown = _cli("delete", path, *GONE, "--yes")
    assert shown.exit_code == 0, shown.output
    assert "2 rows deleted" in shown.stdout
    assert "halp-producer enqueue DATASET --run NAME" in shown.stdout
    assert f"halp-store compact {path} --prune" in shown.stdout
    file = tmp_path / "ids.txt"
    file.write_text("q1\nq2\n\n")
    found = json.loads(_cli("delete", path, "--ids", file, "--yes", "--json").stdout)
    assert found == {"store": str(path), "deleted": ["q2"], "before": ["q1"]}
    facts = json.loads(_cli("info", path, "--json").stdout)
    assert (facts["rows"], facts["rows_deleted"]) == (9, 3)
    assert "compact" in facts["hint"]
    assert "3 more were deleted" in _cli("ls", path).stderr
    assert "'q1' was deleted" in _cli("get", path, "q1").stderr
    assert "3 of them were deleted" in _cli("verify", path).stdout
    assert "3 rows left out: they were deleted" in _cli("compact", path).stdout


def test_an_unknown_id_refuses_the_whole_command(path):
    """It is named, and nothing is deleted."""
    refused = _cli("delete", path, "q1", "nobody", "--yes")
    assert refused.exit_code == 1
    assert "nothing was deleted: 1 of 2 ids are not in the store: 'nobody'" in refused.stderr
    assert len(open_store(path)) == 12
    with pytest.raises(NothingDeleted):
        delete_rows(LocalStorage(path), ["q1", "nobody"])


def test_nothing_is_deleted_unless_somebody_said_so(path, tmp_path):
    """Without a terminal it takes --yes; ids come from one place; a file must be text."""
    refused = _cli("delete", path, "q1")
    assert refused.exit_code == 2
    assert "--yes" in refused.stderr
    assert _cli("delete", path, "--yes").exit_code == 2
    file = tmp_path / "ids"
    file.write_bytes(b"\xff")
    assert _cli("delete", path, "q1", "--ids", file, "--yes").exit_code == 2
    for content in (b"\xff", b"\n"):
        file.write_bytes(content)
        assert _cli("delete", path, "--ids", file, "--yes").exit_code == 1
    assert _cli("delete", tmp_path / "nowhere", "q1", "--yes").exit_code == 1
    assert len(open_store(path)) == 12


@pytest.mark.parametrize(("answer", "left"), [("n", 12), ("y", 11)])
def test_at_a_terminal_it_asks(path, monkeypatch, answer, left):
    """With the number of rows; only yes is yes."""
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(cli_delete, "sys", terminal)
    asked = _cli("delete", path, "q1", input=f"{answer}\n")
    assert "delete 1 rows of" in asked.stderr
    assert (asked.exit_code, len(open_store(path))) == (0 if answer == "y" else 1, left)
