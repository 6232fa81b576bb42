"""What the operating system refuses: named with path, cause and remedy, and nothing half stays."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from halp_store.compaction import compact
from halp_store.errors import StoreUnavailable
from halp_store.fence import fence_segment, is_fenced
from halp_store.local import LocalStorage
from halp_store.reader import open_store
from halp_store.repair import Repair, repair
from halp_store.verify import verify_store

from .mounts import small_disk

ORPHANS = [f"dead-{number:032x}" for number in range(3)]

CANNOT_LINK = (
    "EPERM",
    "ENOTSUP",
    "EOPNOTSUPP",
    "ENOSYS",
    "EXDEV",
    "EINVAL",
    "EACCES",
    "EMLINK",
    "ENOTTY",
)

REMEDIES = {
    "ENOSPC": "free some space there .*B are free",
    "EDQUOT": "free some space there .*quota",
    "EROFS": "mount it read-write",
    "ESTALE": "mount it again",
    "ENOTCONN": "mount it again",
    "EIO": "look in dmesg",
    "ETIMEDOUT": "mount it again",
    "EHOSTDOWN": "mount it again",
    "ENODEV": "mount it again",
    "ENXIO": "mount it again",
    "EACCES": "give this user the right",
    "EPERM": "give this user the right",
    "EMFILE": "ulimit -n",
    "ENFILE": "ulimit -n",
    "ENAMETOOLONG": "names of 255 bytes",
    "ELOOP": "ELOOP",
}


def failing(monkeypatch, name, code):
    """`os.<name>` fails with this error, as some disks let it."""
    number = getattr(errno, code)

    def fail(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("code", CANNOT_LINK)
def test_a_store_is_made_where_files_cannot_be_linked(
    tmp_path, monkeypatch, code, open_writer, make_rows
):
    """Whatever link(2) answers there: it is made, written and read, and nothing half stays."""
    failing(monkeypatch, "link", code)
    writer = open_writer(tmp_path / "s")
    writer.append(make_rows(["a"]))
    assert writer.flush().receipt
    assert list(open_store(tmp_path / "s")) == ["a"]
    disk = LocalStorage(tmp_path / "s")
    assert not disk.publish("zarr.json", b"other")
    assert disk.half_written() == []


@pytest.mark.parametrize("code", REMEDIES)
def test_an_error_of_the_disk_has_path_cause_and_remedy(tmp_path, monkeypatch, code):
    """Of each kind; it is an OSError with the number, and nothing of the key stays."""
    disk = LocalStorage(tmp_path / "s")
    disk.create_root()
    with monkeypatch.context() as patch:
        failing(patch, "fsync", code)
        for write, doing in ((disk.write, "write"), (disk.publish, "create")):
            with pytest.raises(StoreUnavailable, match=REMEDIES[code]) as caught:
                write("segments/x/zarr.json", b"1")
            number = getattr(errno, code)
            assert caught.value.errno == number
            expected = f"{disk.root}: cannot {doing} segments/x/zarr.json: {os.strerror(number)}; "
            assert str(caught.value).startswith(expected)
    assert disk.list_keys("") == disk.half_written() == []
    disk.write("segments/x/zarr.json", b"1")


@pytest.mark.parametrize("code", ["EIO", "ESTALE", "EACCES", "EMFILE"])
def test_what_cannot_be_looked_at_is_not_absent(tmp_path, monkeypatch, code):
    """Reads and listings raise; after it the same storage goes on."""
    disk = LocalStorage(tmp_path / "s")
    disk.create_root()
    disk.write("a/b", b"1")
    for ask in (
        lambda: disk.read("a/b"),
        lambda: disk.list_names("a"),
        lambda: disk.list_keys(""),
        lambda: disk.links(),
        lambda: disk.delete("a/b"),
        lambda: disk.sync(["a"]),
        lambda: disk.age_seconds("a"),
    ):
        with monkeypatch.context() as patch:
            failing(patch, "open", code)
            with pytest.raises(StoreUnavailable):
                ask()
        assert disk.read("a/b") == b"1"


def test_a_folder_that_syncs_no_names_is_no_error(tmp_path, monkeypatch):
    """Some file systems answer EINVAL to a sync of a folder, never of a file."""
    sync = os.fsync

    def fsync(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    disk = LocalStorage(tmp_path / "s")
    disk.create_root()
    assert disk.publish("a/b", b"1")
    disk.sync(["a", ""])


@pytest.mark.parametrize("rival", ["partial", "folder", "target"])
def test_a_publish_whose_partial_file_is_cleaned_up_goes_on(tmp_path, monkeypatch, rival):
    """Its partial file or the whole folder goes, or another one was faster: the answer holds."""
    disk = LocalStorage(tmp_path / "s")
    disk.create_root()
    link, calls = os.link, []

    def late(source, target, **options):
        calls.append(source)
        if len(calls) == 1:
            if rival == "folder":
                LocalStorage(disk.root).delete("a")
            else:
                (disk.root / "a" / source).unlink()
            if rival == "target":
                (disk.root / "a" / target).write_bytes(b"theirs")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", late)
    assert disk.publish("a/b", b"ours") is (rival != "target")
    assert disk.read("a/b") == (b"theirs" if rival == "target" else b"ours")
    assert disk.half_written() == []


def test_half_written_files_are_no_keys(tmp_path, fill):
    """Neither strays nor files of a generation for `verify`; --repair takes old ones anywhere."""
    fill(tmp_path / "s", ["a"])
    disk = LocalStorage(tmp_path / "s")
    compact(LocalStorage(tmp_path / "s"))
    (segment,) = disk.list_names("segments")
    folders = ["", "compacted/000001", "compacted/.plans", f"segments/{segment}", ".partial"]
    for number, folder in enumerate(folders):
        (disk.root / folder / f".partial-{number}").write_bytes(b"{")
    found = verify_store(disk.root)
    assert found.ok
    assert "partial" not in str(found.notes)
    assert repair(disk, grace_seconds=600).partials_removed == 0
    for key in disk.half_written():
        os.utime(disk.root / key, (1, 1))
    assert repair(disk, grace_seconds=600) == Repair((), 0, 5, ())
    assert list(open_store(disk.root)) == ["a"]


def fill_up(disk):
    """To the last byte."""
    with (disk / "ballast").open("ab", buffering=0) as ballast:
        for size in (65536, 4096, 1):
            with suppress(OSError):
                while ballast.write(bytes(size)):
                    pass


def test_a_full_disk_takes_nothing_half_and_goes_on_with_room(tmp_path, open_writer, make_rows):
    """A real one: each flush fails with what to do, no key stays, and the rows stay buffered."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        writer = open_writer(disk / "s")
        writer.append(make_rows(["a"]))
        assert writer.flush().receipt
        fill_up(disk)
        writer.append(make_rows(["b"]))
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=r"No space left.*0\.0 MB are free"):
                writer.flush()
        assert len(list((disk / "s" / "segments").iterdir())) == 1
        assert list(open_store(disk / "s")) == ["a"]
        (disk / "ballast").unlink()
        assert [key.question_id for key in writer.flush().receipt.rows] == ["b"]
        assert verify_store(disk / "s").ok


def orphan(storage, name, size=40_960):
    for number in range(3):
        storage.write(f"segments/{name}/answer/c.{number}", bytes(size))


@pytest.mark.parametrize("leftover", ["orphans", "a fenced one", "a partial file"])
def test_repair_frees_a_full_disk(tmp_path, open_writer, make_rows, leftover):
    """Without room for a tombstone: what killed workers left goes, and can never be published."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        writer = open_writer(disk / "s")
        writer.append(make_rows(["a"]))
        writer.flush()
        storage = LocalStorage(disk / "s")
        for name in ORPHANS:
            orphan(storage, name)
        if leftover == "a fenced one":
            assert fence_segment(storage, ORPHANS[0])
        if leftover == "a partial file":
            storage.write(".partial/0123", bytes(8192))
        fill_up(disk)
        found = repair(storage, grace_seconds=0)
        assert found.no_room == ()
        assert set(found.fenced) == set(ORPHANS[leftover == "a fenced one" :])
        assert found.files_removed == 9
        assert found.partials_removed == (leftover == "a partial file")
        assert all(is_fenced(storage, name) for name in ORPHANS)
        assert storage.half_written() == []
        writer.append(make_rows(["b"]))
        assert writer.flush().receipt
        assert verify_store(disk / "s").ok


def test_what_cannot_even_be_fenced_is_reported(tmp_path, fill, monkeypatch):
    """A disk where not even an empty file can be made: repair does the rest, and names these."""
    fill(tmp_path / "s", ["a"])
    disk = LocalStorage(tmp_path / "s")
    for name in ORPHANS[:2]:
        orphan(disk, name)
    fence_segment(disk, ORPHANS[1])
    opened = os.open

    def full(path, flags, *arguments, **options):
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", full)
    assert repair(disk, grace_seconds=0) == Repair((), 3, 0, (), (ORPHANS[0],))
    assert len(disk.list_keys(f"segments/{ORPHANS[0]}")) == 3


def test_a_full_scratch_disk_is_said(tmp_path, fill):
    """With its path, and another way."""
    fill(tmp_path / "s", [f"q{number}" for number in range(40)])
    with small_disk(tmp_path / "disk", "8k") as disk:
        fill_up(disk)
        with pytest.raises(Exception, match="--scratch"):
            compact(LocalStorage(tmp_path / "s"), scratch=disk)
    assert compact(LocalStorage(tmp_path / "s")).rows == 40
