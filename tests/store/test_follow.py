"""Following a store: every row that is committed comes once, compacted or not."""

import itertools
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from halp_store import reader
from halp_store.compaction import compact
from halp_store.errors import DamagedSegment
from halp_store.local import LocalStorage
from halp_store.reader import open_store
from processes import Process


@pytest.fixture
def commit(tmp_path, open_writer, make_rows):
    """Commit ids in a segment of their own."""
    writer = open_writer(tmp_path)

    def commit_ids(*ids):
        writer.append(make_rows(ids))
        writer.flush()

    return commit_ids


@pytest.fixture
def meanwhile(monkeypatch):
    """Instead of each pause, the next of these steps happens; then the clock runs on."""
    clock = [1000.0]
    steps = []
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        clock[0] += seconds
        if steps:
            steps.pop(0)()

    monkeypatch.setattr(reader.time, "sleep", sleep)
    monkeypatch.setattr(reader.time, "monotonic", lambda: clock[0])
    return lambda *wanted: steps.extend(wanted) or pauses


def prune(path):
    for segment in (path / "segments").iterdir():
        shutil.rmtree(segment)


def test_what_the_store_shows_does_not_come_again(tmp_path, commit):
    """The first view has what was committed since it was opened, in order of id."""
    commit("b", "d")
    store = open_store(tmp_path)
    assert list(store.follow(idle_seconds=0)) == []
    commit("z", "c")
    commit("a")
    (view,) = store.follow(idle_seconds=0)
    assert view.ids == ("a", "c", "z")
    assert store.ids == ("a", "b", "c", "d", "z")


def test_new_rows_come_as_they_are_committed(tmp_path, commit, meanwhile, make_rows):
    """One view for each time that there is something, with the right values, and no empty ones."""
    store = open_store(tmp_path)
    meanwhile(lambda: commit("a"), lambda: None, lambda: commit("c", "b"))
    views = list(store.follow(idle_seconds=3))
    assert [view.ids for view in views] == [("a",), ("b", "c")]
    assert views[1].text("answer") == make_rows(["b", "c"]).text["answer"]


@pytest.mark.parametrize("pruned", [False, True])
def test_compaction_brings_no_row_twice_and_loses_none(tmp_path, commit, meanwhile, pruned):
    """Rows move to a generation, some before they were seen in a segment; views stay readable."""

    def compacted():
        compact(LocalStorage(tmp_path))
        if pruned:
            prune(tmp_path)

    commit("a", "b")
    store = open_store(tmp_path)
    meanwhile(
        lambda: commit("c"),
        compacted,
        lambda: (commit("e", "d"), compacted()),
        lambda: commit("f"),
        lambda: (compacted(), commit("a0")),
    )
    views = list(itertools.chain([store[:]], store.follow(idle_seconds=5)))
    assert [view.ids for view in views] == [("a", "b"), ("c",), ("d", "e"), ("f",), ("a0",)]
    for view in views:
        assert view.text("question_id") == view.ids


def test_a_row_that_is_committed_again_is_no_news(tmp_path, commit, meanwhile, publish, make_rows):
    """A job that was delivered twice."""
    commit("a")
    store = open_store(tmp_path)
    meanwhile(lambda: publish(tmp_path, make_rows(["a"])), lambda: commit("b"))
    assert [view.ids for view in store.follow(idle_seconds=3)] == [("b",)]


def test_it_ends_after_so_long_without_news(tmp_path, commit, meanwhile):
    """Counted from the last new row, without what the caller did with it, in no more pauses."""
    store = open_store(tmp_path)
    pauses = meanwhile(lambda: None, lambda: commit("a"))
    views = store.follow(poll_seconds=1, idle_seconds=2.5)
    assert next(views).ids == ("a",)
    assert pauses == [1, 1]
    reader.time.sleep(100)
    pauses.clear()
    assert next(views, None) is None
    assert pauses == [1, 1, 0.5]


def test_a_refresh_in_between_hides_nothing(tmp_path, commit, meanwhile):
    """What counts is what came out of it, from the call on."""
    store = open_store(tmp_path)
    views = store.follow(idle_seconds=0)
    commit("a")
    store.refresh()
    assert next(views).ids == ("a",)
    commit("b")
    store.refresh()
    assert [view.ids for view in views] == [("b",)]


def test_two_may_follow(tmp_path, commit):
    """Each gets all."""
    store = open_store(tmp_path)
    first, second = store.follow(idle_seconds=0), store.follow(idle_seconds=0)
    commit("a")
    assert next(first).ids == next(second).ids == ("a",)


def test_damage_comes_out(tmp_path, commit):
    """A zarr.json that cannot be understood is not passed over."""
    commit("a")
    store = open_store(tmp_path)
    (tmp_path / "segments" / "foreign").mkdir()
    (tmp_path / "segments" / "foreign" / "zarr.json").write_text("[]")
    with pytest.raises(DamagedSegment, match="segment foreign"):
        next(store.follow())


WAITING = """
import sys
from halp_store import open_store
store = open_store(sys.argv[1])
try:
    print("waits", flush=True)
    next(store.follow(poll_seconds=60))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_it_can_be_interrupted(tmp_path, commit):
    """SIGINT ends a long pause at once; in a process whose signals nobody else takes."""
    commit("a")
    command = [sys.executable, "-c", WAITING, str(tmp_path)]
    with Process(command, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout.readline() == "waits\n"
        waiting.send_signal(signal.SIGINT)
        said, _ = waiting.communicate(timeout=30)
    assert said == "interrupted\n"


def test_a_writer_is_followed_while_it_writes(tmp_path, commit):
    """For real: every row once, whatever the moment of each look."""
    ids = [f"q{number:02}" for number in range(30)]
    store = open_store(tmp_path)

    def write():
        for start in range(0, 30, 3):
            commit(*ids[start : start + 3])
            if start == 15:
                compact(LocalStorage(tmp_path))

    thread = threading.Thread(target=write)
    thread.start()
    seen = []
    for view in store.follow(poll_seconds=0.002, idle_seconds=30):
        seen += view.text("question_id")
        if len(seen) >= 30:
            break
    thread.join()
    assert sorted(seen) == ids
