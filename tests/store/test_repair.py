"""`repair`: what no reader can see goes, after a fence; what a reader can see is never touched."""

import os
import signal
import time

import pytest

from halp_store.errors import NotAStore
from halp_store.fence import fence_segment, is_fenced
from halp_store.local import LocalStorage
from halp_store.reader import open_store
from halp_store.repair import Repair, repair
from halp_store.verify import verify_store

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

HEX = "0123456789abcdef" * 2
ORPHAN = f"dead-{HEX}"


@pytest.fixture
def disk(tmp_path, open_writer):
    open_writer(tmp_path / "s")
    return LocalStorage(tmp_path / "s")


def _age(path, seconds):
    """Make a file or folder, and all in it, as old as that."""
    then = time.time() - seconds
    for one in (path, *path.rglob("*")):
        os.utime(one, (then, then))


def _orphan(disk, age, name=ORPHAN):
    for key in ("answer/zarr.json", "answer/c.0", "layer/zarr.json"):
        disk.write(f"segments/{name}/{key}", b"x")
    _age(disk.root / "segments" / name, age)


def test_an_orphan_is_fenced_and_its_files_go(disk):
    """Its tombstone alone stays, and verifying says nothing more of it."""
    _orphan(disk, 700)
    assert repair(disk, grace_seconds=600) == Repair((ORPHAN,), 3, 0, ())
    assert is_fenced(disk, ORPHAN)
    assert disk.list_keys(f"segments/{ORPHAN}") == [f"segments/{ORPHAN}/zarr.json"]
    assert [one.name for one in (disk.root / "segments" / ORPHAN).iterdir()] == ["zarr.json"]
    assert verify_store(disk).notes == ()
    assert repair(disk, grace_seconds=0) == Repair((), 0, 0, ())


@pytest.mark.parametrize("newest", ["answer/c.0", "answer", "."])
def test_what_changed_within_the_grace_is_left_alone(disk, newest):
    """One young file or folder is enough: a worker may be writing it."""
    _orphan(disk, 700)
    os.utime(disk.root / "segments" / ORPHAN / newest)
    assert repair(disk, grace_seconds=600) == Repair((), 0, 0, (ORPHAN,))
    assert not is_fenced(disk, ORPHAN)
    assert len(disk.list_keys(f"segments/{ORPHAN}")) == 3


def test_what_is_left_of_a_fenced_segment_goes(disk):
    """After the grace: its writer may be writing still, not knowing of the fence."""
    _orphan(disk, 700)
    fence_segment(disk, ORPHAN)
    assert repair(disk, grace_seconds=600) == Repair((), 0, 0, ())
    _age(disk.root / "segments" / ORPHAN, 700)
    assert repair(disk, grace_seconds=600) == Repair((), 3, 0, ())
    assert is_fenced(disk, ORPHAN)


def test_half_written_files_go(disk):
    """Those of killed publishers; a young one may be a live publisher's."""
    disk.write(".partial/old", b"{")
    disk.write(".partial/young", b"{")
    _age(disk.root / ".partial" / "old", 700)
    assert repair(disk, grace_seconds=600) == Repair((), 0, 1, ())
    assert disk.list_keys(".partial") == [".partial/young"]


def test_what_is_published_is_never_touched(disk, publish, make_rows):
    """However old, and damaged too: every file stays as it is, and so do strays."""

    class ReadOnly(LocalStorage):
        def publish(self, key, value):
            pytest.fail(f"fenced: {key}")

    sound, damaged = (publish(disk.root, make_rows([one]), one) for one in "ab")
    (disk.root / "segments" / damaged / "zarr.json").write_bytes(b"rubbish")
    disk.write("segments/notes.txt", b"x")
    disk.write("segments/by-hand/notes.txt", b"x")
    _age(disk.root, 9999)
    before = {key: disk.read(key) for key in disk.list_keys("")}
    assert repair(ReadOnly(disk.root), grace_seconds=0) == Repair((), 0, 0, ())
    assert {key: disk.read(key) for key in disk.list_keys("")} == before
    assert sound in {key.split("/")[1] for key in before if "/" in key}


def test_a_segment_that_is_published_in_the_last_moment_stays(disk, publish, make_rows):
    """The fence loses, so nothing is deleted."""

    class Late(LocalStorage):
        def publish(self, key, value):
            (self.root / "segments" / ORPHAN).rename(self.root / "away")
            publish(self.root, make_rows(["a"]), ORPHAN)
            return super().publish(key, value)

    _orphan(disk, 700)
    assert repair(Late(disk.root), grace_seconds=600) == Repair((), 0, 0, ())
    assert list(open_store(disk.root)) == ["a"]
    assert verify_store(disk).ok


def test_a_worker_that_wakes_up_after_a_repair_publishes_nothing(
    disk, open_writer, make_rows, fork
):
    """Paused before its publish, its segment repaired away: it writes its rows anew, whole."""

    class Sleeping(LocalStorage):
        slept = False

        def publish(self, key, value):
            if key.startswith("segments/") and not self.slept:
                self.slept = True
                os.kill(os.getpid(), signal.SIGSTOP)
            return super().publish(key, value)

    def commit():
        writer = open_writer(disk.root, worker="zombie", storage=Sleeping(disk.root))
        writer.append(make_rows(["a"]))
        assert writer.flush().receipt

    child = fork(commit)
    assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
    (name,) = disk.list_names("segments")
    assert repair(disk, grace_seconds=0).fenced == (name,)
    os.kill(child, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store = open_store(disk.root)
    assert list(store) == ["a"]
    assert name not in store.segments
    assert verify_store(disk).ok


def test_only_a_store_is_repaired(tmp_path, disk):
    """Another folder is not looked into, and a negative grace is refused."""
    (tmp_path / "segments" / ORPHAN).mkdir(parents=True)
    with pytest.raises(NotAStore):
        repair(LocalStorage(tmp_path), grace_seconds=0)
    with pytest.raises(ValueError, match="grace_seconds: expected 0 or more"):
        repair(disk, grace_seconds=-1)
    assert list((tmp_path / "segments" / ORPHAN).iterdir()) == []
