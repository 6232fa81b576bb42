"""Below the root nothing is opened, written or deleted through a link, or waits for a FIFO."""

import os
import shutil
import socket
from contextlib import nullcontext

import pytest

from halp_store.compaction import compact
from halp_store.errors import LinkInStore
from halp_store.local import LocalStorage
from halp_store.pruning import prune
from halp_store.reader import open_store
from halp_store.repair import repair

HEX = "0" * 32
SEGMENT = f"segments/worker-{HEX}"

USES = {
    "read": lambda disk, key: disk.read(key),
    "read_range": lambda disk, key: disk.read_range(key, 0, 4),
    "write": lambda disk, key: disk.write(key, b"x"),
    "publish": lambda disk, key: disk.publish(key, b"x"),
    "fill": lambda disk, key: disk.fill(key, b"x"),
    "sync": lambda disk, key: disk.sync([os.path.dirname(key)]),  # noqa: PTH120 - a key, no path
    "delete": lambda disk, key: disk.delete(key),
    "age": lambda disk, key: disk.age_seconds(key),
    "list_names": lambda disk, key: disk.list_names(os.path.dirname(key)),  # noqa: PTH120
    "list_keys": lambda disk, key: disk.list_keys(os.path.dirname(key)),  # noqa: PTH120
}


@pytest.fixture
def strange(tmp_path):
    """A folder of somebody else, that looks like what it may stand for."""
    folder = tmp_path / "strange"
    for name in ("c.0", "zarr.json", "a/c.0", f"worker-{HEX}/a/c.0", "000001/a/c.0"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"mine")
        os.utime(folder / name, (1, 1))
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("link", ["segments", SEGMENT, f"{SEGMENT}/a"])
def test_no_key_is_reached_through_a_link(tmp_path, strange, use, link):
    """Whichever folder on the way it is; the message has its path."""
    disk = LocalStorage(tmp_path / "s")
    disk.create_root()
    place = disk.root / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(strange)
    before = contents(strange)
    with pytest.raises(LinkInStore, match=f"{disk.root}: {link} is a symbolic link") as caught:
        use(disk, f"{SEGMENT}/a/c.0")
    assert caught.value.path == link
    assert contents(strange) == before
    assert disk.links() == [link]


@pytest.mark.parametrize("use", ["read", "read_range", "delete", "age"])
def test_a_key_is_no_link(tmp_path, strange, use):
    """The last part of a key, too; a publish finds it taken."""
    disk = LocalStorage(tmp_path / "s")
    disk.create_root()
    (disk.root / "c.0").symlink_to(strange / "c.0")
    with pytest.raises(LinkInStore, match=r"c\.0 is a symbolic link"):
        USES[use](disk, "c.0")
    assert not disk.publish("c.0", b"x")
    with pytest.raises(FileExistsError):
        disk.write("c.0", b"x")
    assert (strange / "c.0").read_bytes() == b"mine"


def test_no_key_leads_out_of_the_store(tmp_path):
    """What a damaged document names, for example."""
    disk = LocalStorage(tmp_path / "s")
    disk.create_root()
    (disk.root / "segments").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"mine")
    for use in (disk.read, disk.delete, lambda key: disk.write(key, b"x")):
        with pytest.raises(LinkInStore, match="a way out of the store"):
            use("segments/../../outside/file")
    with pytest.raises(LinkInStore, match="a way out of the store"):
        disk.delete("segments/..")
    assert (tmp_path / "outside" / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device"])
def test_what_is_no_file_is_no_wait(tmp_path, kind):
    """A FIFO as zarr.json would make an ordinary open wait for ever."""
    disk = LocalStorage(tmp_path / "s")
    disk.create_root()
    place = disk.root / "zarr.json"
    with socket.socket(socket.AF_UNIX) as bound:
        if kind == "a FIFO":
            os.mkfifo(place)
        elif kind == "a socket":
            bound.bind(str(place))
        else:
            try:
                os.mknod(place, 0o600 | 0o020000, os.makedev(1, 3))
            except PermissionError:
                pytest.skip("needs the right to make a device")
        for read in (disk.read, lambda key: disk.read_range(key, 0, 1), disk.delete):
            with pytest.raises(LinkInStore, match=kind):
                read("zarr.json")
        with pytest.raises(LinkInStore, match=kind):
            open_store(disk.root)
        assert disk.links() == ["zarr.json"]


def test_a_delete_removes_links_and_not_what_they_point_to(tmp_path, strange):
    """Files and folders; links have no age of their target's either."""
    disk = LocalStorage(tmp_path / "s")
    disk.create_root()
    disk.write(f"{SEGMENT}/a/c.0", b"x")
    (disk.root / SEGMENT / "b").symlink_to(strange)
    (disk.root / SEGMENT / "a" / "c.1").symlink_to(strange / "c.0")
    before = contents(strange)
    assert disk.age_seconds(SEGMENT) < 600
    assert disk.delete(SEGMENT) == 3
    assert contents(strange) == before
    assert disk.list_names("segments") == []


@pytest.fixture
def store(tmp_path, fill):
    fill(tmp_path / "s", ["a", "b", "c"], rows=1)
    return tmp_path / "s"


def old(path):
    for place in (*path.rglob("*"), path):
        os.utime(place, (1, 1), follow_symlinks=False)


@pytest.mark.parametrize("link", [".partial", SEGMENT, f"{SEGMENT}/a", "compacted"])
def test_repair_leaves_what_is_behind_links(tmp_path, store, strange, link):
    """It refuses, or removes the link itself."""
    place = store / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(strange)
    before = contents(strange)
    old(store)
    refuses = link in {SEGMENT, "compacted"}
    with pytest.raises(LinkInStore, match=f"{link} is") if refuses else nullcontext():
        repair(LocalStorage(store), grace_seconds=600)
    assert contents(strange) == before


@pytest.mark.parametrize(
    "link", ["segments", "compacted", "segments/first", "segments/first/answer", ".partial"]
)
def test_compact_and_prune_leave_what_is_behind_links(store, tmp_path, link):
    """Here what was moved elsewhere and linked is the store's own, and it stays, too."""
    disk = LocalStorage(store)
    if link != "compacted":
        (store / "compacted").mkdir()
    first = min(disk.list_names("segments"))
    compact(LocalStorage(store))
    link = link.replace("first", first)
    shutil.move(store / link, tmp_path / "elsewhere")
    (store / link).symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere")
    # A link in a segment goes with it; scratch files are nothing to prune.
    refuses = link != ".partial" and not link.endswith("/answer")
    with pytest.raises(LinkInStore, match=f"{link} is") if refuses else nullcontext():
        prune(disk, grace_seconds=0)
    assert contents(tmp_path / "elsewhere") == before


def test_scratch_files_are_not_made_through_a_link(store, tmp_path):
    """The folder for them is made by the store, and is no link."""
    (tmp_path / "elsewhere").mkdir()
    (store / ".partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LinkInStore, match=r"\.partial is a symbolic link"):
        compact(LocalStorage(store))
    (store / ".partial").unlink()
    assert compact(LocalStorage(store)).rows == 3


@pytest.mark.parametrize("link", ["zarr.json", "answer", "answer/zarr.json", "vision_only/c.0.0"])
def test_a_reader_says_which_part_of_a_segment_is_a_link(store, tmp_path, link):
    """Or what is one beside what it reads."""
    segment = min(LocalStorage(store).list_names("segments"))
    place = store / "segments" / segment / link
    shutil.move(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    if link == "answer/zarr.json":  # only `verify` and other readers look at it
        assert LocalStorage(store).links() == [f"segments/{segment}/{link}"]
        return
    with pytest.raises(LinkInStore, match=f"segments/{segment}/{link} is a symbolic link"):
        compact(LocalStorage(store))
