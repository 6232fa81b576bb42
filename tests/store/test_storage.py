"""The disk: create-if-absent has one winner, and leftovers are not segments."""

import errno
import os
import threading

import pytest

from halp_store.storage import LocalStorage


def _no_hard_links(*_arguments, **_options):
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.fixture(params=[True, False], ids=["links", "no-links"])
def disk(request, tmp_path, monkeypatch):
    """A file system with hard links, and one without."""
    if not request.param:
        monkeypatch.setattr(os, "link", _no_hard_links)
    return LocalStorage(tmp_path / "s")


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
    assert list((disk.root / ".partial").iterdir()) == []


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

    def full(*_arguments):
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
    assert disk.list_segments() == ["notes.txt"]


def test_what_is_absent_reads_as_none(tmp_path):
    """No file, no folder, or a file where a folder should be."""
    disk = LocalStorage(tmp_path)
    disk.write("file", b"x")
    assert disk.read("nothing") is disk.read("no/thing") is disk.read("file/x") is None
    assert disk.list_segments() == []
