"""`LocalStorage`: a store in a directory of this machine, or of a mounted network disk.

Does not guarantee: anything on a disk that confirms an fsync it has not done.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, TypeVar

from halp_store.disk_faults import remedy_for
from halp_store.errors import StoreError, StoreUnavailable
from halp_store.root_folder import ABSENT, RootFolder, sync_folder
from halp_store.storage import METADATA, PARTIAL

Result = TypeVar("Result")

# What link(2) answers where it cannot make a hard link: FAT, AFS, and many FUSE and network mounts.
_CANNOT_LINK: Final = {
    errno.EPERM,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EXDEV,
    errno.EINVAL,
    errno.EACCES,
    errno.EMLINK,
    errno.ENOTTY,
}
_ROOT: Final = "the folder"
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# Of a publish whose partial file a clean-up removed.
_PUBLISH_TRIES: Final = 3
# Syncs that run at once share a commit of the disk's journal: on a busy disk half the time.
_SYNC_THREADS: Final = 8
# A Zarr v2 group without arrays has nothing but dot files.
_ZARR_V2: Final = {".zgroup", ".zarray", ".zattrs", ".zmetadata"}

# Hides the latency of many small files, also on few cores.
_CONCURRENCY: Final = 4


class LocalStorage:
    """A directory. Only `create_root` makes it.

    May be pickled: a copy opens the same absolute path, whatever its process's folder is.
    Everything that the operating system refuses is raised as StoreUnavailable.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._folder = RootFolder(root, os.fspath(root))

    @property
    def root(self) -> Path:
        return self._folder.path

    @property
    def where(self) -> str:
        return self._folder.where

    @property
    def concurrency(self) -> int:
        return _CONCURRENCY

    def create_root(self) -> None:
        with self._attempt(f"make {_ROOT}"):
            self._folder.create()

    def list_names(self, prefix: str) -> list[str]:
        def names() -> list[str]:
            with self._folder.listing(prefix) as folder:
                return [name for name in _names(folder) if not name.startswith(".")]

        return self._if_there(f"list {prefix or _ROOT}", names) or []

    def read(self, key: str) -> bytes | None:
        def content() -> bytes:
            with self._folder.reading(key) as descriptor, _opened(descriptor) as file:
                return file.read()

        return self._if_there(f"read {key}", content)

    def read_range(self, key: str, start: int, length: int) -> bytes | None:
        def content() -> bytes:
            with self._folder.reading(key) as descriptor, _opened(descriptor) as file:
                whole = os.fstat(descriptor).st_size
                file.seek(start if start >= 0 else max(0, whole + start))
                return file.read(length)

        return self._if_there(f"read {key}", content)

    def write(self, key: str, value: bytes) -> None:
        folder = key.rpartition("/")[0]
        with self._attempt(f"write {key}"):
            try:
                with self._folder.passing(folder) as parent:
                    self._create(parent, key, value)
            except FileNotFoundError:
                with self._folder.making(folder, durable=False) as parent:
                    self._create(parent, key, value)

    def fill(self, key: str, value: bytes) -> None:
        folder, _, name = key.rpartition("/")
        with self._attempt(f"fill {key}"), self._folder.listing(folder) as parent:
            partial = f"{PARTIAL}-{uuid.uuid4().hex}"
            try:
                _create(parent, partial, value)
                os.replace(partial, name, src_dir_fd=parent, dst_dir_fd=parent)
            finally:
                with suppress(OSError):
                    os.unlink(partial, dir_fd=parent)
            sync_folder(parent)

    def sync(self, prefixes: Iterable[str]) -> None:
        def sync_one(prefix: str) -> None:
            with self._attempt(f"sync {prefix or _ROOT}"):
                try:
                    with self._folder.listing(prefix) as folder:
                        sync_folder(folder)
                except FileNotFoundError as error:
                    self._folder.check()
                    missing = f"{self.where}: {prefix} is not there any more; try again"
                    raise _MissingFolderError(missing) from error

        wanted = list(prefixes)
        if wanted:
            with ThreadPoolExecutor(min(_SYNC_THREADS, len(wanted))) as threads:
                for _ in threads.map(sync_one, wanted):
                    pass

    def publish(self, key: str, value: bytes) -> bool:
        folder, _, name = key.rpartition("/")
        tries = 0
        while True:
            tries += 1
            with self._attempt(f"create {key}"):
                try:
                    with self._folder.making(folder, durable=True) as parent:
                        won = _publish(parent, name, value)
                        sync_folder(parent)
                        return won
                except FileNotFoundError:
                    # A clean-up took the partial file, or the whole folder.
                    if tries == _PUBLISH_TRIES:
                        raise

    def is_foreign(self) -> bool:
        def names() -> set[str]:
            with self._folder.listing("") as folder:
                return set(_names(folder))

        found = self._if_there(f"list {_ROOT}", names)
        if found is None:
            return self._folder.is_blocked()
        # A mounted volume brings `lost+found`, a desktop its dot files, a fellow writer PARTIAL.
        ours = {name for name in found if name.startswith(".") or name == "lost+found"} - _ZARR_V2
        return METADATA not in found and found != ours

    def size(self) -> int:
        return sum(
            changed.st_size
            for entry in self._below("")
            if entry.is_file and (changed := _stat(entry.parent, entry.name))
        )

    def list_keys(self, prefix: str) -> list[str]:
        return [
            entry.key
            for entry in self._below(prefix)
            if not entry.is_folder and not _is_partial(entry.name)
        ]

    def links(self, prefix: str = "") -> list[str]:
        return [
            entry.key for entry in self._below(prefix) if not (entry.is_folder or entry.is_file)
        ]

    def half_written(self) -> list[str]:
        return [
            entry.key
            for entry in self._below("")
            if entry.is_file
            and (_is_partial(entry.name) or entry.key.rpartition("/")[0] == PARTIAL)
        ]

    def age_seconds(self, prefix: str) -> float | None:
        def itself() -> os.stat_result | None:
            folder, _, name = prefix.rpartition("/")
            with self._folder.passing(folder) as parent:
                self._folder.refuse_link(parent, name or ".", prefix)
                return _stat(parent, name or ".")

        top = self._if_there(f"look at {prefix or _ROOT}", itself)
        if top is None:
            return None
        times = [top.st_mtime]
        times += [
            found.st_mtime
            for entry in self._below(prefix)
            if (found := _stat(entry.parent, entry.name))
        ]
        return time.time() - max(times)

    def delete(self, prefix: str, keep: Collection[str] = ()) -> int:
        """A link below `prefix` is removed itself; one on the way there is refused."""

        def remove() -> int:
            folder, _, name = prefix.rpartition("/")
            with self._folder.passing(folder) as parent:
                self._folder.refuse_link(parent, name, prefix)
                try:
                    with self._folder.listing(prefix) as inner:
                        removed = self._empty(inner, prefix, keep)
                except NotADirectoryError:
                    return 0 if prefix in keep else _unlink(parent, name)
                _remove_folder(parent, name)
                return removed

        return self._if_there(f"delete {prefix}", remove) or 0

    def scratch_folder(self) -> Path:
        """The folder for files that are removed after use, on the store's disk. Made if missing."""
        with self._attempt(f"make {PARTIAL}"), self._folder.making(PARTIAL, durable=False):
            return self.root / PARTIAL

    def _create(self, parent: int, key: str, value: bytes) -> None:
        try:
            _create(parent, key.rpartition("/")[2], value)
        except FileExistsError as error:
            raise FileExistsError(error.errno, error.strerror, str(self.root / key)) from None

    def _empty(self, folder: int, path: str, keep: Collection[str]) -> int:
        removed = 0
        for name, is_folder, _ in _entries(folder):
            key = f"{path}/{name}" if path else name
            if not is_folder:
                removed += 0 if key in keep else _unlink(folder, name)
                continue
            with suppress(*ABSENT), self._folder.listing(key) as inner:
                removed += self._empty(inner, key, keep)
            _remove_folder(folder, name)
        return removed

    def _below(self, prefix: str) -> Iterator[_Entry]:
        """All below `prefix`, what a folder holds before the folder. What goes away meanwhile is
        passed over."""
        with self._attempt(f"list {prefix or _ROOT}"):
            try:
                with self._folder.listing(prefix) as folder:
                    for name, is_folder, is_file in _entries(folder):
                        key = f"{prefix}/{name}" if prefix else name
                        if is_folder:
                            yield from self._below(key)
                        yield _Entry(folder, name, key, is_folder, is_file)
            except ABSENT:
                self._folder.check()

    def _if_there(self, doing: str, read: Callable[[], Result]) -> Result | None:
        """What `read` returns; None if there is no such key or folder in the store."""
        with self._attempt(doing):
            try:
                return read()
            except ABSENT:
                self._folder.check()  # missing in the store, or the store itself?
                return None

    @contextmanager
    def _attempt(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (StoreError, FileExistsError, _MissingFolderError):
            raise
        except OSError as error:
            if isinstance(error, ABSENT):
                with suppress(OSError):
                    self._folder.check()
            self._folder.forget(error.errno)
            remedy = remedy_for(error, self._folder.path)
            raise StoreUnavailable(self.where, doing, error, remedy) from error


class _MissingFolderError(FileNotFoundError):
    """A folder that was to be synced is not there."""


class _Entry(NamedTuple):
    """parent: descriptor of its folder, valid until the next entry is asked for."""

    parent: int
    name: str
    key: str
    is_folder: bool
    is_file: bool


def _create(parent: int, name: str, value: bytes) -> None:
    """A new file, durable. Nothing of it stays if that fails."""
    descriptor = os.open(name, _CREATE, 0o666, dir_fd=parent)
    try:
        try:
            rest = memoryview(value)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        with suppress(OSError):
            os.unlink(name, dir_fd=parent)
        raise


def _publish(parent: int, name: str, value: bytes) -> bool:
    """Raises FileNotFoundError if the folder or the partial file goes away meanwhile."""
    partial = f"{PARTIAL}-{uuid.uuid4().hex}"
    try:
        _create(parent, partial, value)
        return _link(parent, partial, name, value)
    finally:
        with suppress(OSError):
            os.unlink(partial, dir_fd=parent)


def _link(parent: int, partial: str, name: str, value: bytes) -> bool:
    try:
        os.link(partial, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
    except FileExistsError:
        return False
    except FileNotFoundError:
        if _stat(parent, name):
            return False
        raise
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        # Without hard links there is no atomic create-if-absent of a whole file. Exclusive
        # creation keeps the fence (one winner); a reader may see the file while it is empty,
        # which the index takes for absent, and a kill in between leaves it so: never a receipt.
        try:
            _create(parent, name, value)
        except FileExistsError:
            return False
    return True


def _opened(descriptor: int) -> BinaryIO:
    return open(descriptor, "rb", closefd=False)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _entries(folder: int) -> list[tuple[str, bool, bool]]:
    """(name, whether it is a folder, whether it is a regular file) of all in an open folder."""
    with os.scandir(folder) as entries:
        return [
            (
                entry.name,
                entry.is_dir(follow_symlinks=False),
                entry.is_file(follow_symlinks=False),
            )
            for entry in entries
        ]


def _is_partial(name: str) -> bool:
    return name.startswith(f"{PARTIAL}-")


def _stat(parent: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except ABSENT:
        return None


def _unlink(parent: int, name: str) -> int:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return 0
    return 1


def _remove_folder(parent: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        # Something was kept in it, or somebody writes into it meanwhile.
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
