"""The disk: create-if-absent has one winner, and leftovers are not segments."""

import errno
import os
import threading
import time

import pytest

from halp_store.local import LocalStorage


def _no_hard_links(*_arguments, **_options):
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.fixture(params=[True, False], ids=["links", "no-links"])
def disk(request, tmp_path, monkeypatch):
    """A file system with hard links, and one without."""
    if not request.param:
        monkeypatch.setattr(os, "link", _no_hard_links)
    storage = LocalStorage(tmp_path / "s")
    storage.create_root()
    return storage


def test_of_many_publishers_one_wins(disk):
    """All threads publish one key at once: one True, and its value is the one that stays."""
    start, wins = threading.Barrier(8), []

    def publish(value):
        start.wait()
        if disk.publish("segments/x/zarr.json", value):
            wins.append(value)

    threads = [threading.Thread(target=publish, args=(b"%d" % one * 9999,)) for one in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert disk.read("segments/x/zarr.json") == wins[0]
    assert [path.name for path in disk.root.rglob("*")] == ["segments", "x", "zarr.json"]


def test_a_publish_never_replaces(disk):
    """The second one is told so, and changes nothing."""
    assert disk.publish("zarr.json", b"one")
    assert not disk.publish("zarr.json", b"two")
    assert disk.read("zarr.json") == b"one"


def test_a_write_never_replaces(disk):
    """Keys of a segment are written once."""
    disk.write("segments/x/a/c.0", b"one")
    with pytest.raises(FileExistsError):
        disk.write("segments/x/a/c.0", b"two")
    assert disk.read("segments/x/a/c.0") == b"one"


def test_an_error_other_than_missing_hard_links_is_not_hidden(tmp_path, monkeypatch):
    """A full disk at the publish is an error, not a second try by other means."""

    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    disk = LocalStorage(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        disk.publish("zarr.json", b"one")
    assert disk.read("zarr.json") is None


def test_leftovers_and_strays_are_not_segments(tmp_path, open_writer):
    """What a killed writer left in .partial, and files beside the segments, change nothing."""
    writer = open_writer(tmp_path)
    disk = LocalStorage(tmp_path)
    disk.write(".partial/0123", b'{"half')
    disk.write("segments/.DS_Store", b"x")
    disk.write("segments/notes.txt", b"x")
    writer.refresh()
    assert disk.list_names("segments") == ["notes.txt"]


def test_what_is_absent_reads_as_none(tmp_path):
    """No file, no folder, or a file where a folder should be."""
    disk = LocalStorage(tmp_path)
    disk.write("file", b"x")
    assert disk.read("nothing") is disk.read("no/thing") is disk.read("file/x") is None
    assert disk.list_names("segments") == []


def test_keys_are_listed_at_any_depth(tmp_path):
    """All files below a prefix, as keys; none where there is nothing."""
    disk = LocalStorage(tmp_path)
    for key in ("a/b/c/d", "a/b/e", "ab/x"):
        disk.write(key, b"x")
    assert sorted(disk.list_keys("a")) == ["a/b/c/d", "a/b/e"]
    assert disk.list_keys("nothing") == disk.list_keys("ab/x") == []


def test_an_age_is_that_of_the_newest_below(tmp_path):
    """Files and folders count, and what is absent has no age."""
    disk = LocalStorage(tmp_path)
    disk.write("a/b/old", b"x")
    for name in ("a/b/old", "a/b", "a"):
        os.utime(tmp_path / name, (1, 1))
    assert disk.age_seconds("a") == pytest.approx(time.time() - 1, abs=5)
    disk.write("a/b/new", b"x")
    assert disk.age_seconds("a/b/old") == pytest.approx(time.time() - 1, abs=5)
    assert disk.age_seconds("a") < 60
    assert disk.age_seconds("nothing") is None


def test_a_delete_removes_all_but_what_is_kept(tmp_path):
    """And the folders that become empty; a single key too; nothing is no error."""
    disk = LocalStorage(tmp_path)
    for key in ("a/b/c", "a/d", "a/keep", "x"):
        disk.write(key, b"x")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    (tmp_path / "a" / "outside").symlink_to(tmp_path)
    assert disk.delete("a", keep={"a/keep"}) == 3
    assert sorted(disk.list_keys("")) == ["a/keep", "link", "x"]
    assert not (tmp_path / "a" / "b").exists()
    assert disk.delete("x") == 1
    assert disk.delete("x") == disk.delete("nothing") == 0
    assert disk.delete("a/keep", keep={"a/keep"}) == 0
    assert disk.delete("a") == 1
    assert not (tmp_path / "a").exists()
