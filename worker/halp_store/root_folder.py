"""`RootFolder`: the folder of a store, opened once. Nothing below it is reached through a link.

The folder at the path is compared with the one that was opened before each use, so what is done
lands in the store that was opened, or raises StoreGone. The root itself may be a link.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any, Final

from halp_store.errors import LinkInStore, StoreGone
from halp_store.storage import SEGMENTS

ABSENT: Final = (FileNotFoundError, NotADirectoryError)

_FOLDER: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Passing through a folder needs less than listing it, in rights and on network mounts.
_PASS: Final = _FOLDER | getattr(os, "O_PATH", os.O_RDONLY)
_LIST: Final = _FOLDER | os.O_RDONLY
# A FIFO or a device would make an open wait.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# The handle of a mount that went away; a new mount at the same place may be the same folder.
_STALE: Final = {errno.ESTALE, errno.ENOTCONN}


class RootFolder:
    """The root of a local store.

    Copies in other processes open the folder for themselves. Used from several threads.

    path: made absolute at once. where: the root as the user wrote it, for messages.
    """

    def __init__(self, path: str | os.PathLike[str], where: str) -> None:
        self.path, self.where = Path(path).absolute(), where
        self._was_opened = False
        self._identity: tuple[int, int] | None = None
        self._held: _Descriptor | None = None
        self._segments: tuple[int, int] | None = None
        self._opening = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "where": self.where, "was_opened": self._was_opened}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["where"])  # type: ignore[misc]
        self._was_opened = state["was_opened"]

    def check(self) -> bool:
        """Whether the root is there. Raises StoreGone if it was opened before and is not."""
        try:
            self._hold()
        except ABSENT:
            return False
        return True

    def create(self) -> None:
        """Make the root and its parents, durably, unless it is there or was opened before."""
        if not self.check():
            _make_folders(self.path)
            if not self.path.is_dir():  # a link to nothing, or a file on the way
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.path))

    def is_blocked(self) -> bool:
        """Whether something that is no folder is in the way of making it."""
        try:
            return not stat.S_ISDIR(self.path.stat().st_mode)
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            return True

    def forget(self, number: int | None) -> None:
        """After an error with this errno: open the folder anew if its handle cannot recover."""
        if number in _STALE:
            self._held = None

    @contextmanager
    def passing(self, path: str) -> Iterator[int]:
        """A descriptor of a folder, good for naming what is in it.

        Raises FileNotFoundError or NotADirectoryError if it is not there, LinkInStore, StoreGone.
        """
        with self._walk(path, _PASS, make=False, durable=False) as descriptor:
            yield descriptor

    @contextmanager
    def listing(self, path: str) -> Iterator[int]:
        """As `passing`; the descriptor may be listed and synced."""
        with self._walk(path, _LIST, make=False, durable=False) as descriptor:
            yield descriptor

    @contextmanager
    def making(self, path: str, *, durable: bool) -> Iterator[int]:
        """As `listing`, but folders below the root that are missing are made; never the root.

        durable: sync each new name.
        """
        if not self.check():
            raise StoreGone(self.where, f"nothing is at {self.path}")
        with self._walk(path, _LIST, make=True, durable=durable) as descriptor:
            yield descriptor

    @contextmanager
    def reading(self, key: str) -> Iterator[int]:
        """A descriptor of a regular file, for reading. Raises as `passing`."""
        folder, _, name = key.rpartition("/")
        with self.passing(folder) as parent:
            try:
                descriptor = os.open(name, _READ, dir_fd=parent)
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    self.refuse_link(parent, name, key)
                raise
            try:
                mode = os.fstat(descriptor).st_mode
                if stat.S_ISDIR(mode):
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), key)
                if not stat.S_ISREG(mode):
                    raise LinkInStore(self.where, key, _kind(mode) or "no regular file")
                yield descriptor
            finally:
                os.close(descriptor)

    def refuse_link(self, parent: int, name: str, path: str) -> None:
        """Raises LinkInStore if `name` is neither a regular file nor a folder."""
        try:
            mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        except OSError:
            return
        if kind := _kind(mode):
            raise LinkInStore(self.where, path, kind)

    @contextmanager
    def _walk(self, path: str, flags: int, *, make: bool, durable: bool) -> Iterator[int]:
        root = self._hold()
        # Threads that list one open folder would share their place in it.
        current = root.number if path else os.open(".", _LIST, dir_fd=root.number)
        try:
            reached: list[str] = []
            for name in filter(None, path.split("/")):
                reached.append(name)
                may_make = make and not (reached == [SEGMENTS] and self._segments)
                try:
                    inner = self._enter(current, name, "/".join(reached), flags, may_make, durable)
                except FileNotFoundError:
                    if make and not may_make:
                        raise self._segments_exchanged("nothing") from None
                    raise
                _close(current, root)
                current = inner
                if reached == [SEGMENTS]:
                    self._compare_segments(inner)
            yield current
        finally:
            _close(current, root)

    def _enter(
        self, parent: int, name: str, path: str, flags: int, make: bool, durable: bool
    ) -> int:
        if name in {".", ".."}:
            raise LinkInStore(self.where, path, "a way out of the store")
        try:
            return os.open(name, flags, dir_fd=parent)
        except FileNotFoundError:
            if not make:
                raise
        except OSError:
            self.refuse_link(parent, name, path)
            raise
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
        if durable:
            sync_folder(parent)
        return self._enter(parent, name, path, flags, False, durable)

    def _hold(self) -> _Descriptor:
        """The root, compared with the folder at its path. Raises one of ABSENT, or StoreGone."""
        try:
            at_path = self.path.stat()
        except ABSENT:
            if self._was_opened:
                raise StoreGone(
                    self.where,
                    f"nothing is at {self.path}, so it was unmounted, moved or deleted",
                ) from None
            raise
        if self._held is None:
            with self._opening:
                self._open()
        held = self._held
        if held is None:  # another thread found its handle stale
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self.path))
        if self._identity != (at_path.st_dev, at_path.st_ino):
            raise self._exchanged()
        return held

    def _open(self) -> None:
        if self._held is not None:
            return
        held = _Descriptor(self.path)
        if self._identity not in {None, held.identity}:
            raise self._exchanged()
        self._held, self._identity, self._was_opened = held, held.identity, True

    def _compare_segments(self, descriptor: int) -> None:
        """A mount over this folder, or another in its place, would take rows along when it goes."""
        status = os.fstat(descriptor)
        identity = (status.st_dev, status.st_ino)
        self._segments = self._segments or identity
        if self._segments != identity:
            raise self._segments_exchanged("another folder")

    def _segments_exchanged(self, what: str) -> StoreGone:
        return StoreGone(
            self.where,
            f"{what} is at {self.path / SEGMENTS}, so its segments were unmounted, moved or "
            "deleted",
        )

    def _exchanged(self) -> StoreGone:
        return StoreGone(
            self.where,
            f"another folder is at {self.path}, so it was unmounted, moved, or deleted and made "
            "anew",
        )


class _Descriptor:
    """An open folder, closed with its last user. number: that of the descriptor."""

    def __init__(self, path: Path) -> None:
        # Not `_LIST`: users link their stores.
        self.number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.number).atexit = False
        opened = os.fstat(self.number)
        self.identity = (opened.st_dev, opened.st_ino)


def sync_folder(descriptor: int) -> None:
    """Make the names in an open folder durable, where the file system can do that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of file systems that sync no folders
            raise


def _close(descriptor: int, root: _Descriptor) -> None:
    if descriptor != root.number:
        os.close(descriptor)


def _kind(mode: int) -> str | None:
    """What it is, if neither a regular file nor a folder."""
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return kinds.get(stat.S_IFMT(mode), "a device")


def _make_folders(path: Path) -> None:
    """With its parents, each new name durable."""
    if path.is_dir():
        return
    _make_folders(path.parent)
    with suppress(FileExistsError):
        path.mkdir()
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_folder(descriptor)
    finally:
        os.close(descriptor)
