"""`LocalStorage`: a store in a directory of this machine, or of a mounted network disk.

Does not guarantee: anything on a disk that confirms an fsync it has not done.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from halp_store.storage import METADATA, PARTIAL

# What file systems without hard links answer to link(2): FAT and some FUSE and network mounts.
_NO_HARD_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}

# Syncs that run at once share a commit of the disk's journal: on a busy disk half the time.
_SYNC_THREADS: Final = 8
# A Zarr v2 group without arrays has nothing but dot files.
_ZARR_V2: Final = {".zgroup", ".zarray", ".zattrs", ".zmetadata"}

# Hides the latency of many small files, also on few cores.
_CONCURRENCY: Final = 4


class LocalStorage:
    """A directory. It is made by the first write, not by construction."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    @property
    def where(self) -> str:
        return str(self.root)

    @property
    def concurrency(self) -> int:
        return _CONCURRENCY

    def list_names(self, prefix: str) -> list[str]:
        try:
            with os.scandir(self.root / prefix) as entries:
                return [entry.name for entry in entries if not entry.name.startswith(".")]
        except FileNotFoundError:
            return []

    def read(self, key: str) -> bytes | None:
        try:
            return (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_range(self, key: str, start: int, length: int) -> bytes | None:
        try:
            with (self.root / key).open("rb") as file:
                whole = os.fstat(file.fileno()).st_size
                file.seek(start if start >= 0 else max(0, whole + start))
                return file.read(length)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, key: str, value: bytes) -> None:
        path = self.root / key
        try:
            _create(path, value)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            _create(path, value)

    def sync(self, prefixes: Iterable[str]) -> None:
        paths = [self.root / prefix for prefix in prefixes]
        if paths:
            with ThreadPoolExecutor(min(_SYNC_THREADS, len(paths))) as threads:
                for _ in threads.map(_sync_directory, paths):
                    pass

    def publish(self, key: str, value: bytes) -> bool:
        target = self.root / key
        _make_directory(target.parent)
        partial = self.root / PARTIAL / uuid.uuid4().hex
        try:
            self.write(f"{PARTIAL}/{partial.name}", value)
            won = _link(partial, target, value)
        finally:
            partial.unlink(missing_ok=True)
        _sync_directory(target.parent)
        return won

    def is_foreign(self) -> bool:
        try:
            names = {entry.name for entry in self.root.iterdir()}
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            return True
        # A mounted volume brings `lost+found`, a desktop its dot files, a fellow writer PARTIAL.
        ours = {name for name in names if name.startswith(".") or name == "lost+found"} - _ZARR_V2
        return METADATA not in names and names != ours

    def size(self) -> int:
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())

    def list_keys(self, prefix: str) -> list[str]:
        return [
            path.relative_to(self.root).as_posix()
            for path, is_folder in _walk(self.root / prefix)
            if not is_folder
        ]

    def age_seconds(self, prefix: str) -> float | None:
        top = self.root / prefix
        times = [_changed(path) for path in (top, *(path for path, _ in _walk(top)))]
        known = [one for one in times if one is not None]
        return time.time() - max(known) if known else None

    def delete(self, prefix: str, keep: Collection[str] = ()) -> int:
        top = self.root / prefix
        kept = {self.root / key for key in keep}
        if top.is_file():
            return 0 if top in kept else _unlink(top)
        removed = 0
        for path, is_folder in _walk(top):
            if is_folder:
                _remove_folder(path)
            elif path not in kept:
                removed += _unlink(path)
        _remove_folder(top)
        return removed


def _create(path: Path, value: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(value)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(partial: Path, target: Path, value: bytes) -> bool:
    try:
        os.link(partial, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # Without hard links there is no atomic create-if-absent of a whole file. Exclusive
        # creation keeps the fence (one winner); a reader may see the file while it is empty,
        # which the index takes for absent, and a kill in between leaves it so: never a receipt.
        try:
            _create(target, value)
        except FileExistsError:
            return False
    return True


def _make_directory(path: Path) -> None:
    """With its parents, each new name durable."""
    if not path.exists():
        _make_directory(path.parent)
        path.mkdir(exist_ok=True)
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(top: Path) -> Iterator[tuple[Path, bool]]:
    """(path, whether it is a folder) of all below `top`, what a folder holds before the folder.

    Links are not followed. What goes away meanwhile is passed over.
    """
    try:
        with os.scandir(top) as entries:
            found = [(Path(entry.path), entry.is_dir(follow_symlinks=False)) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return
    for path, is_folder in found:
        if is_folder:
            yield from _walk(path)
        yield path, is_folder


def _changed(path: Path) -> float | None:
    try:
        return path.lstat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None


def _unlink(path: Path) -> int:
    try:
        path.unlink()
    except FileNotFoundError:
        return 0
    return 1


def _remove_folder(path: Path) -> None:
    try:
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        # Something was kept in it, or somebody writes into it meanwhile.
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
