"""The store that was opened: its folder goes away, comes back, is another one."""

import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from halp_store.address import storage_at
from halp_store.errors import StoreGone
from halp_store.local import LocalStorage
from halp_store.reader import open_store
from halp_store.repair import repair
from halp_store.root import claim_root

from .mounts import small_disk, unmount

OPERATIONS = {
    "read": lambda disk: disk.read("segments/x/c.0"),
    "read nothing": lambda disk: disk.read("segments/nothing"),
    "read_range": lambda disk: disk.read_range("segments/x/c.0", 0, 1),
    "list_names": lambda disk: disk.list_names("segments"),
    "list_keys": lambda disk: disk.list_keys(""),
    "links": lambda disk: disk.links(),
    "half_written": lambda disk: disk.half_written(),
    "size": lambda disk: disk.size(),
    "age": lambda disk: disk.age_seconds("segments"),
    "is_foreign": lambda disk: disk.is_foreign(),
    "write": lambda disk: disk.write("segments/y/c.0", b"1"),
    "publish": lambda disk: disk.publish("segments/y/zarr.json", b"1"),
    "fill": lambda disk: disk.fill("segments/x/c.0", b"1"),
    "sync": lambda disk: disk.sync(["segments"]),
    "delete": lambda disk: disk.delete("segments"),
    "create_root": lambda disk: disk.create_root(),
    "scratch_folder": lambda disk: disk.scratch_folder(),
}


def move(path):
    path.rename(path.with_name("moved"))


def exchange(path):
    move(path)
    path.mkdir()
    (path / "segments").mkdir()


HARMS = {"moved": move, "deleted": shutil.rmtree, "exchanged": exchange}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_root_that_is_gone_is_said_and_never_made_anew(tmp_path, harm, operation):
    """By every operation; what is at the path then stays as it is."""
    path = tmp_path / "s"
    disk = LocalStorage(path)
    disk.create_root()
    disk.write("segments/x/c.0", b"1")
    harm(path)
    before = sorted(tmp_path.rglob("*"))
    what = "another folder is at" if path.exists() else "nothing is at"
    with pytest.raises(StoreGone, match=f"{path}: .* {what} {path}"):
        operation(disk)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("operation", ["write", "publish"])
def test_a_root_that_was_never_made_is_not_made_by_a_write(tmp_path, operation):
    """Only `create_root` makes it; what is read is absent until then."""
    disk = LocalStorage(tmp_path / "s")
    assert disk.read("zarr.json") is disk.age_seconds("x") is None
    assert disk.list_names("") == disk.list_keys("") == []
    with pytest.raises(StoreGone, match="nothing is at"):
        OPERATIONS[operation](disk)
    assert list(tmp_path.iterdir()) == []
    disk.create_root()
    OPERATIONS[operation](disk)


def test_a_root_that_comes_back_goes_on(tmp_path):
    """Moved away and back: it is the very one that was opened."""
    disk = LocalStorage(tmp_path / "s")
    disk.create_root()
    (tmp_path / "s").rename(tmp_path / "away")
    with pytest.raises(StoreGone):
        disk.write("a", b"1")
    (tmp_path / "away").rename(tmp_path / "s")
    disk.write("a", b"1")
    assert disk.read("a") == b"1"


@pytest.mark.parametrize("name", ["run.zarr", ""], ids=["below the mount", "the mount itself"])
def test_a_store_that_is_unmounted_takes_no_row(tmp_path, open_writer, make_rows, name):
    """A real mount, taken away lazily: the folder below it stays empty, and no receipt is made."""
    with small_disk(tmp_path / "disk", "4m") as disk:
        path = disk / name
        writer = open_writer(path)
        writer.append(make_rows(["a"]))
        assert writer.flush().receipt
        view = open_store(path)
        unmount(disk)
        writer.append(make_rows(["b"]))
        for use in (writer.flush, view.refresh, view.read):
            with pytest.raises(StoreGone) as caught:
                use()
            assert "delete segments" not in str(caught.value)
        assert writer.rows_buffered == 1
        assert list(disk.iterdir()) == []


def test_a_relative_path_is_that_of_the_moment(tmp_path, monkeypatch, fill):
    """Also for a view that another process, in another folder, unpickles."""
    fill(tmp_path / "s", ["a", "b"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = open_store("s")
    view = pickle.dumps(store[:])
    monkeypatch.chdir("elsewhere")
    assert store["a"].answer == "answer of a, a"
    store.refresh()
    read = "import pickle, sys; print(pickle.load(sys.stdin.buffer)['b'].answer)"
    run = [sys.executable, "-c", read]
    assert subprocess.check_output(run, input=view).strip() == b"answer of b, a"
    (tmp_path / "s").rename(tmp_path / "moved")
    ended = subprocess.run(run, input=view, capture_output=True, check=False)
    assert b"StoreGone" in ended.stderr
    assert b"delete segments" not in ended.stderr


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_reader_is_told_that_the_store_is_gone(tmp_path, fill, harm):
    """And not to delete segments: its rows, a refresh, and a follower."""
    fill(tmp_path / "s", ["a", "b"])
    store = open_store(tmp_path / "s")
    followed = store.follow(poll_seconds=0.01)
    harm(tmp_path / "s")
    for read in (lambda: store["a"].vision_only, store.refresh, lambda: list(followed)):
        with pytest.raises(StoreGone) as caught:
            read()
        assert "delete segments" not in str(caught.value)


def test_two_claims_at_once_make_one_store(tmp_path, layout):
    """Both are told that it is theirs."""
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: claim_root(LocalStorage(tmp_path / "a" / "s"), layout), [0] * 8))
    assert [path.name for path in (tmp_path / "a" / "s").iterdir()] == ["zarr.json"]


def test_the_root_itself_may_be_a_link(tmp_path, fill):
    """Users link their stores to where there is room; a link to another store is another store."""
    for name in ("real", "other"):
        fill(tmp_path / name, ["a"])
    (tmp_path / "s").symlink_to("real")
    fill(tmp_path / "s", ["b"])
    store = open_store(tmp_path / "s")
    assert list(open_store(tmp_path / "real")) == ["a", "b"]
    (tmp_path / "s").unlink()
    (tmp_path / "s").symlink_to("other")
    with pytest.raises(StoreGone, match="another folder"):
        store.refresh()


def test_a_link_to_nothing_is_no_place_for_a_store(tmp_path, layout):
    """Nothing is made where it points to."""
    (tmp_path / "s").symlink_to("nothing")
    with pytest.raises(OSError, match="cannot make the folder: Not a directory"):
        claim_root(LocalStorage(tmp_path / "s"), layout)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_no_descriptor_is_left_open(tmp_path, fill):
    """Neither by what succeeds, nor by storages that are done."""
    fill(tmp_path / "s", ["a", "b"])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        disk = storage_at(tmp_path / "s")
        repair(disk, grace_seconds=0)
        disk.size(), disk.read("nothing"), disk.list_keys("nothing")
    del disk
    assert len(list(Path("/proc/self/fd").iterdir())) == before
