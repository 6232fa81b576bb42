"""The commit under attack: killed at every write, raced, watched, fenced, too slow."""

import json
import os
import signal
import time
from multiprocessing import get_context

import numpy as np
import pytest

from halp_store.errors import DamagedSegment, PublishFailed, StagingTooSlow, StoreError
from halp_store.layout import Layout
from halp_store.local import LocalStorage
from halp_store.reader import open_store
from halp_store.root import read_root

from .dying import DyingStorage

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

TINY = Layout((0,), ("query_token",), 4, 3, "bfloat16", {})
# Writes of a commit of TINY: 17 columns and the layers, each with metadata and one chunk.
STAGED_FILES = 36


class DyingAnywhere(DyingStorage):
    """At reads and staged keys too."""

    def read(self, key):
        return self._die_or(super().read, key)

    def write(self, key, value):
        return self._die_or(super().write, key, value)


def _ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _rows_seen(path):
    return len(open_store(path)) if (path / "zarr.json").exists() else 0


def _assert_finished_by_another(path, features, open_writer):
    """A second writer is given the same jobs: each id is there once, with its values."""
    writer = open_writer(path, features.layout, worker="other")
    writer.append(features)
    assert set(writer.flush().receipt.rows) == set(features.keys)
    store = open_store(path)
    assert list(store) == sorted(features.text["question_id"])
    order = [features.text["question_id"].index(one) for one in store]
    for name in features.vectors:
        np.testing.assert_array_equal(store.array(name)[1], features.vectors[name][order])
    assert store.text("answer") == tuple(features.text["answer"][row] for row in order)


def test_a_kill_at_any_operation_leaves_all_rows_or_none(tmp_path, make_rows, open_writer, fork):
    """Before and after every storage operation of open and flush: none or all, then finished."""
    features = make_rows(["b", "a"], of=TINY)
    seen = []
    for point in range(1000):
        path = tmp_path / str(point)

        def commit(path=path, point=point):
            writer = open_writer(path, TINY, storage=DyingAnywhere(path, point))
            writer.append(features)
            writer.flush()

        status = _ended(fork(commit))
        assert status in (0, -signal.SIGKILL)
        seen.append(_rows_seen(path))
        assert seen[-1] in (0, 2), f"half a segment is visible at point {point}"
        _assert_finished_by_another(path, features, open_writer)
        if status == 0:
            break
    assert len(seen) > 2 * STAGED_FILES
    assert set(seen) == {0, 2}


@pytest.mark.parametrize("call", ["open", "write", "fsync", "link", "unlink", "mkdir"])
@pytest.mark.parametrize("publish", [0, 1], ids=["root", "segment"])
def test_a_kill_inside_a_publish_leaves_it_whole_or_absent(
    tmp_path, make_rows, open_writer, fork, call, publish
):
    """A publish is several system calls; before each of them a kill leaves no half of it."""
    features = make_rows(["b", "a"], of=TINY)

    class DyingInPublish(LocalStorage):
        def publish(self, key, value):
            if key.startswith("segments/") == bool(publish):
                setattr(os, call, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
            return super().publish(key, value)

    def commit():
        writer = open_writer(tmp_path / "s", TINY, storage=DyingInPublish(tmp_path / "s"))
        writer.append(features)
        writer.flush()

    status = _ended(fork(commit))
    # A segment's folders are there when it is published.
    assert status == (0 if (call, publish) == ("mkdir", 1) else -signal.SIGKILL)
    assert _rows_seen(tmp_path / "s") in (0, 2)
    _assert_finished_by_another(tmp_path / "s", features, open_writer)


def test_a_torn_chunk_of_a_killed_writer_is_never_read(tmp_path, make_rows, open_writer, fork):
    """A writer that dies in the middle of a file leaves an orphan that no reader looks into."""
    features = make_rows(["b", "a"], of=TINY)

    class Tearing(LocalStorage):
        def write(self, key, value):
            if "query_token/c" in key:
                super().write(key, value[:7])
                os.kill(os.getpid(), signal.SIGKILL)
            super().write(key, value)

    def commit():
        writer = open_writer(tmp_path / "s", TINY, storage=Tearing(tmp_path / "s"))
        writer.append(features)
        writer.flush()

    assert _ended(fork(commit)) == -signal.SIGKILL
    assert _rows_seen(tmp_path / "s") == 0
    _assert_finished_by_another(tmp_path / "s", features, open_writer)


class MeetingStorage(LocalStorage):
    """Publishes a segment when the other process is about to, and goes on when it has."""

    def __init__(self, root, barrier):
        super().__init__(root)
        self._barrier = barrier

    def publish(self, key, value):
        if not key.startswith("segments/"):
            return super().publish(key, value)
        self._barrier.wait(30)
        won = super().publish(key, value)
        self._barrier.wait(30)
        return won


def test_two_writers_with_the_same_jobs_store_each_id_once(tmp_path, make_rows, open_writer, fork):
    """Both publish in the same moment, both get receipts, and the lowest segment id is read."""
    barrier = get_context("fork").Barrier(2)

    def commit(worker, ids):
        storage = MeetingStorage(tmp_path, barrier)
        writer = open_writer(tmp_path, worker=worker, storage=storage)
        features = make_rows(ids)
        writer.append(features)
        assert set(writer.flush().receipt.rows) == set(features.keys)

    children = [
        fork(lambda: commit("zebra", ["a", "b", "c"])),
        fork(lambda: commit("aardvark", ["c", "b", "a"])),
    ]
    assert [_ended(child) for child in children] == [0, 0]
    store = open_store(tmp_path)
    assert len(store.segments) == 2
    assert list(store) == ["a", "b", "c"]
    assert {store[one].segment for one in store} == {store.segments[0]}
    assert store.segments[0].startswith("aardvark-")
    np.testing.assert_array_equal(
        store.array("query_token")[1], make_rows(["a", "b", "c"]).vectors["query_token"]
    )


def test_two_writers_with_other_content_for_one_id_make_one_conflict(
    tmp_path, make_rows, open_writer, fork
):
    """In the same moment too: the one that readers do not see reports a conflict, no receipt."""
    barrier = get_context("fork").Barrier(2)

    def commit(content, wins):
        storage = MeetingStorage(tmp_path, barrier)
        writer = open_writer(tmp_path, worker=content, storage=storage)
        features = make_rows(["a"], content)
        writer.append(features)
        flush = writer.flush()
        assert (flush.receipt is not None) == wins
        assert flush.conflicts == (() if wins else features.keys)

    children = [fork(lambda: commit("first", True)), fork(lambda: commit("second", False))]
    assert [_ended(child) for child in children] == [0, 0]
    store = open_store(tmp_path)
    assert store["a"].content_hash == "first-a"
    assert store.contradictions == ("a",)


def test_every_view_during_writes_is_whole(tmp_path, make_rows, open_writer, fork):
    """A reader that refreshes while a writer commits sees whole segments only, never an error."""
    open_writer(tmp_path)
    commits, rows = 20, 4

    def write():
        writer = open_writer(tmp_path)
        for commit in range(commits):
            writer.append(make_rows([f"{commit:02}-{row}" for row in range(rows)]))
            writer.flush()

    child = fork(write)
    store = open_store(tmp_path)
    sizes = []
    deadline = time.monotonic() + 60
    while len(store) < commits * rows:
        assert time.monotonic() < deadline
        store.refresh()
        ids, matrix = store.array("query_token", layer=3)
        assert len(ids) == len(store.text("answer")) == len(store)
        sizes.append(len(ids))
        whole = [f"{commit:02}-{row}" for commit in range(len(ids) // rows) for row in range(rows)]
        assert list(ids) == whole
        if ids:
            expected = make_rows(ids[-1:]).vectors["query_token"][0, 1]
            np.testing.assert_array_equal(matrix[-1], expected)
    assert _ended(child) == 0
    assert len(set(sizes)) > 2, "the reader saw no write happen"


def test_a_view_stays_until_it_is_refreshed(tmp_path, make_rows, open_writer):
    """What is committed after opening shows up with refresh(), not in between."""
    writer = open_writer(tmp_path)
    writer.append(make_rows(["b"]))
    writer.flush()
    store = open_store(tmp_path)
    writer.append(make_rows(["a"]))
    writer.flush()
    assert list(store) == ["b"]
    assert len(store.array("vision_only")[1]) == 1
    assert "a" not in store
    store.refresh()
    assert list(store) == ["a", "b"]
    assert len(store.array("vision_only")[1]) == 2


def test_a_segment_that_was_staged_too_slowly_is_given_up(tmp_path, make_rows, open_writer):
    """Past the staging deadline nothing is published, and the rows stay for the next flush."""
    times = iter([0.0, 0.0, 700.0, 700.0, 701.0])
    writer = open_writer(tmp_path, clock=lambda: next(times))
    features = make_rows(["a"])
    writer.append(features)
    with pytest.raises(StagingTooSlow, match=r"took 700\.0 s, expected at most 600 s"):
        writer.flush()
    assert len(open_store(tmp_path)) == 0
    assert writer.rows_buffered == 1
    assert writer.flush().receipt.rows == features.keys
    assert len(open_store(tmp_path)) == 1


TOMBSTONE = b'{"zarr_format": 3, "node_type": "group", "attributes": {"tombstone": true}}'
RIVAL = b"a segment of this store with another nonce"


def _rivals(storage):
    """A segment's zarr.json with another nonce."""
    attributes = {"nonce": "theirs", "question_ids": ["x"], "content_hashes": ["x"]}
    return json.dumps({"attributes": {**read_root(storage).stamp, **attributes}}).encode()


class FencedStorage(LocalStorage):
    """Something is published in a segment's place just before its writer does, `times` times."""

    def __init__(self, root, times, instead=TOMBSTONE):
        super().__init__(root)
        self.times, self.instead = times, instead

    def publish(self, key, value):
        if key.startswith("segments/") and self.times:
            self.times -= 1
            instead = _rivals(self) if self.instead is RIVAL else self.instead
            assert super().publish(key, instead)
        return super().publish(key, value)


@pytest.mark.parametrize("instead", [TOMBSTONE, RIVAL], ids=["tombstone", "other nonce"])
def test_a_segment_that_lost_its_name_is_written_under_a_new_one(
    tmp_path, make_rows, open_writer, instead
):
    """A publish lost to a clean-up's tombstone, or to anybody, costs a new name, not the rows."""
    writer = open_writer(tmp_path, storage=FencedStorage(tmp_path, 1, instead))
    features = make_rows(["a", "b"])
    writer.append(features)
    flush = writer.flush()
    assert flush.receipt.rows == features.keys
    assert len(LocalStorage(tmp_path).list_names("segments")) == 2
    store = open_store(tmp_path)
    assert flush.segment in store.segments
    assert {store["a"].segment, store["b"].segment} == {flush.segment}
    assert ("x" in store) == (instead is RIVAL)


def test_rubbish_in_place_of_a_segment_is_named(tmp_path, make_rows, open_writer):
    """Something that is not a segment under our name is damage, and the rows stay."""
    writer = open_writer(tmp_path, storage=FencedStorage(tmp_path, 1, b"rubbish"))
    writer.append(make_rows(["a"]))
    with pytest.raises(DamagedSegment, match=r"its zarr\.json"):
        writer.flush()
    assert writer.rows_buffered == 1


def test_endless_fencing_is_an_error_that_keeps_the_rows(tmp_path, make_rows, open_writer):
    """After a bounded number of lost names the writer says so and still has every row."""
    writer = open_writer(tmp_path, storage=FencedStorage(tmp_path, 99))
    writer.append(make_rows(["a", "b"]))
    with pytest.raises(PublishFailed, match="rows stay buffered"):
        writer.flush()
    assert issubclass(PublishFailed, StoreError)
    assert writer.rows_buffered == 2


def test_a_full_disk_loses_no_row(tmp_path, make_rows, open_writer):
    """An error from the disk leaves the buffer as it was, and the next flush commits it."""

    class FullDisk(LocalStorage):
        is_full = True

        def write(self, key, value):
            if self.is_full and "vision_only/c" in key:
                raise OSError(28, "No space left on device")
            super().write(key, value)

    disk = FullDisk(tmp_path)
    writer = open_writer(tmp_path, storage=disk)
    features = make_rows(["a", "b"])
    writer.append(features)
    with pytest.raises(OSError, match="No space left"):
        writer.flush()
    assert writer.rows_buffered == 2
    assert len(open_store(tmp_path)) == 0
    disk.is_full = False
    assert writer.flush().receipt.rows == features.keys


def test_a_lost_reply_to_the_publish_is_resolved_by_reading_back(tmp_path, make_rows, open_writer):
    """Refused although it is there, as after a retry on a network: the nonce decides."""

    class Denying(LocalStorage):
        def publish(self, key, value):
            super().publish(key, value)
            return False

    writer = open_writer(tmp_path, storage=Denying(tmp_path))
    features = make_rows(["a"])
    writer.append(features)
    assert writer.flush().receipt.rows == features.keys
    assert len(LocalStorage(tmp_path).list_names("segments")) == 1
