"""The fence: after it, what another worker staged is in the index or can never be published."""

import os
import signal
import threading
from multiprocessing import get_context

import pytest

from halp_store.features import RowKey
from halp_store.fence import fence_segment, is_fenced
from halp_store.layout import Layout
from halp_store.local import LocalStorage
from halp_store.reader import open_store
from halp_store.segment import parse_header

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

TINY = Layout((0,), ("query_token",), 4, 3, "bfloat16", {})
HEX = "0123456789abcdef" * 2


class StoppingStorage(LocalStorage):
    """Stops its own process at the n-th operation: 2k before the k-th, 2k + 1 after it."""

    def __init__(self, root):
        super().__init__(root)
        self.point, self._lock = -1, threading.Lock()

    def _stop_or(self, operation, *arguments):
        with self._lock:
            point, self.point = self.point, self.point - 2
        if point == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        answer = operation(*arguments)
        if point == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return answer

    def list_names(self, prefix):
        return self._stop_or(super().list_names, prefix)

    def read(self, key):
        return self._stop_or(super().read, key)

    def write(self, key, value):
        return self._stop_or(super().write, key, value)

    def sync(self, prefixes):
        return self._stop_or(super().sync, prefixes)

    def publish(self, key, value):
        return self._stop_or(super().publish, key, value)


def _copies(path):
    """How often each id is published."""
    disk, ids = LocalStorage(path), []
    for name in disk.list_names("segments"):
        header = parse_header(disk.read(f"segments/{name}/zarr.json") or b'{"attributes": {}}')
        ids += header.question_ids if header else ()
    return {one: ids.count(one) for one in ids}


def _take_over(path, features, heir):
    """What a worker does with jobs it takes from `zombie`: fence, look up, compute the rest."""
    heir.fence(["zombie"])
    states = {heir.lookup(key) for key in features.keys}
    assert states in ({"new"}, {"stored"})
    if states == {"new"}:
        heir.append(features)
        assert set(heir.flush(list).receipt.rows) == set(features.keys)
    return states == {"stored"}


def test_a_worker_paused_at_any_operation_of_its_flush_stores_no_second_row(
    tmp_path, make_rows, open_writer, fork
):
    """Paused before and after each operation, taken over, continued: each id is there once."""
    features = make_rows(["b", "a"], of=TINY)
    found_stored, points = [], 0
    for point in range(1000):
        path = tmp_path / str(point)
        heir = open_writer(path, TINY, worker="heir")
        taken = path / ".taken"  # the server: from then on the rows are the heir's

        def commit(path=path, point=point, taken=taken):
            disk = StoppingStorage(path)
            writer = open_writer(path, TINY, worker="zombie", storage=disk)
            writer.append(features)
            disk.point = point
            flush = writer.flush(lambda rows: () if taken.exists() else rows)
            assert bool(flush.receipt) != bool(flush.withheld)

        child = fork(commit)
        _, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
        taken.touch()
        found_stored.append(_take_over(path, features, heir))
        os.kill(child, signal.SIGCONT)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert _copies(path) == {"a": 1, "b": 1}, f"point {point}"
        points += 1
    assert points > 2 * 36
    assert set(found_stored) == {True, False}


def test_a_worker_killed_after_its_first_file_is_fenced(tmp_path, make_rows, open_writer, fork):
    """One file of a segment is enough to see it."""
    features = make_rows(["b", "a"], of=TINY)

    class Dying(LocalStorage):
        def write(self, key, value):
            if key.startswith("segments/"):
                with LOCK:
                    super().write(key, value)
                    os.kill(os.getpid(), signal.SIGKILL)
            super().write(key, value)

    heir = open_writer(tmp_path, TINY, worker="heir")

    def commit():
        writer = open_writer(tmp_path, TINY, worker="zombie", storage=Dying(tmp_path))
        writer.append(features)
        writer.flush()

    os.waitpid(fork(commit), 0)
    disk = LocalStorage(tmp_path)
    (name,) = disk.list_names("segments")
    assert len(disk.list_keys(f"segments/{name}")) == 1
    assert heir.fence(["zombie"]) == 1
    assert is_fenced(disk, name)


LOCK = threading.Lock()


def test_a_fence_and_a_publish_in_the_same_moment_have_one_winner(
    tmp_path, make_rows, open_writer, fork
):
    """Either the index has the rows after the fence, or their writer has no receipt for them."""
    barrier, outcomes = get_context("fork").Barrier(2), set()

    class Meeting(LocalStorage):
        def publish(self, key, value):
            if key.startswith("segments/"):
                barrier.wait(30)
            return super().publish(key, value)

    for number in range(30):
        path = tmp_path / str(number)
        heir = open_writer(path, TINY, worker="heir")
        features, asked = make_rows(["a"], of=TINY), []

        def ours_twice(rows, asked=asked):
            asked.append(rows)
            return rows if len(asked) < 3 else ()

        def commit(path=path, features=features, ours_twice=ours_twice):
            writer = open_writer(path, TINY, worker="zombie", storage=Meeting(path))
            writer.append(features)
            flush = writer.flush(ours_twice)
            (path / ("stored" if flush.receipt else "withheld")).touch()

        child = fork(commit)
        barrier.wait(30)
        heir.fence(["zombie"])
        state = heir.lookup(features.keys[0])
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (path / "stored").exists() == (state == "stored")
        assert (path / "withheld").exists() == (state == "new")
        outcomes.add(state)
    assert outcomes <= {"stored", "new"}


def _stage(path, name):
    LocalStorage(path).write(f"segments/{name}/answer/zarr.json", b"{}")
    return name


def test_only_the_workers_that_are_named_are_fenced(tmp_path, open_writer):
    """The whole name counts, not how it starts; what no worker staged is left alone."""
    writer = open_writer(tmp_path, worker="heir")
    theirs = _stage(tmp_path, f"a-b-{HEX}")
    slashed = _stage(tmp_path, f"c-d-{HEX}")
    others = [
        _stage(tmp_path, name)
        for name in (f"a-{HEX}", f"a-b-c-{HEX}", f"heir-{HEX}", f"a-b-{HEX[1:]}", "a-b", "a-b-x")
    ]
    assert writer.fence(["a-b", "c/d", "///"]) == 2
    disk = LocalStorage(tmp_path)
    assert is_fenced(disk, theirs)
    assert is_fenced(disk, slashed)
    assert not any(is_fenced(disk, name) for name in others)


def test_what_is_published_stays_and_what_is_fenced_is_fenced_once(
    tmp_path, open_writer, make_rows, publish
):
    """The count is of this call; a published segment is never touched."""
    writer = open_writer(tmp_path, worker="heir")
    published = publish(tmp_path, make_rows(["a"]), "zombie")
    before = LocalStorage(tmp_path).read(f"segments/{published}/zarr.json")
    _stage(tmp_path, f"zombie-{HEX}")
    assert [writer.fence(["zombie"]) for _ in range(2)] == [1, 0]
    assert open_writer(tmp_path, worker="third").fence(["zombie"]) == 0
    assert LocalStorage(tmp_path).read(f"segments/{published}/zarr.json") == before
    assert writer.lookup(RowKey("a", "a-a")) == "stored"


def test_a_segment_that_is_settled_costs_no_further_fence(
    tmp_path, open_writer, make_rows, publish
):
    """Nothing is written for what is published, nor again for what is fenced."""

    class Counting(LocalStorage):
        published = 0

        def publish(self, key, value):
            self.published += 1
            return super().publish(key, value)

    disk = Counting(tmp_path)
    writer = open_writer(tmp_path, worker="heir", storage=disk)
    publish(tmp_path, make_rows(["a"]), "zombie")
    _stage(tmp_path, f"zombie-{HEX}")
    disk.published = 0
    writer.fence(["zombie"])
    assert disk.published == 1
    writer.fence(["zombie"])
    assert disk.published == 1


def test_a_fence_takes_in_what_was_published(tmp_path, open_writer, make_rows, publish):
    """Also with nothing to fence, and also what is published while it is at work."""
    writer = open_writer(tmp_path)
    assert writer.fence([]) == 0  # a store without a segment yet
    publish(tmp_path, make_rows(["a"]))
    assert writer.fence([]) == 0
    assert writer.lookup(RowKey("a", "a-a")) == "stored"

    class Late(LocalStorage):
        def publish(self, key, value):
            if key == f"segments/zombie-{HEX}/zarr.json":
                (self.root / key).parent.rename(self.root / "away")
                publish(tmp_path, make_rows(["b"]), f"zombie-{HEX}")
            return super().publish(key, value)

    heir = open_writer(tmp_path, worker="heir", storage=Late(tmp_path))
    _stage(tmp_path, f"zombie-{HEX}")
    assert heir.fence(["zombie"]) == 0
    assert heir.lookup(RowKey("b", "a-b")) == "stored"


def test_a_fence_is_durable_before_it_returns(tmp_path, open_writer):
    """The tombstone's name and its folder's are synced, also where another one made them."""

    class Watching(LocalStorage):
        def __init__(self, root):
            super().__init__(root)
            self.synced = set()

        def sync(self, prefixes):
            self.synced |= set(prefixes)
            super().sync(self.synced)

    disk = Watching(tmp_path)
    writer = open_writer(tmp_path, storage=disk)
    ours, anothers = _stage(tmp_path, f"zombie-{HEX}"), _stage(tmp_path, f"zombie-{HEX[::-1]}")
    assert fence_segment(LocalStorage(tmp_path), anothers)
    disk.synced.clear()
    assert writer.fence(["zombie"]) == 1
    assert disk.synced == {f"segments/{ours}", f"segments/{anothers}", "segments", ""}


def test_a_fenced_segment_is_nothing_to_a_reader(tmp_path, open_writer, make_rows):
    """Its rows are not there, and it is no damage."""
    writer = open_writer(tmp_path)
    _stage(tmp_path, f"zombie-{HEX}")
    writer.fence(["zombie"])
    writer.append(make_rows(["a"]))
    writer.flush()
    assert list(open_store(tmp_path)) == ["a"]
