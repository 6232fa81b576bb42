"""`Unfinished`: a file or folder that gets its name only when it is whole.

It is written into a folder `<name>.partial-<random>` beside where it goes, which is locked for as
long as its process lives. A kill leaves that folder and nothing else; the next one of that name
removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from halp_store.errors import StoreError
from halp_store.storage import METADATA

MARK: Final = "halp_stream_export"
"""Attribute, or key of the metadata, that says where an export came from: a JSON object."""


class OutputExists(StoreError):  # noqa: N818 - as in `halp_store.errors`
    """There is something at the path already."""


def check_free(out: Path, *, is_folder: bool, force: bool) -> None:
    """Raises OutputExists unless `out` may be written.

    force: what may be replaced is a file by a file, and the folder of an earlier export by another;
    no other folder, whatever it holds.
    """
    if not os.path.lexists(out):
        if not out.absolute().parent.is_dir():
            raise OutputExists(f"{out}: there is no folder {out.parent} to write it into")
    elif out.is_dir():
        if is_folder and not any(out.iterdir()):
            return
        if not (is_folder and _is_export(out)):
            raise OutputExists(f"{out}: is a folder, and not one that an export wrote: use another")
        if not force:
            raise OutputExists(f"{out}: exists; --force replaces it")
    elif is_folder or not force:
        instead = "use another path" if is_folder else "--force replaces it"
        raise OutputExists(f"{out}: exists; {instead}")


@contextmanager
def unfinished(out: Path, *, is_folder: bool, force: bool) -> Iterator[Path]:
    """A path to write a file or a folder at, which becomes `out`, durably, when the block ends.

    Raises OutputExists before the block, and after it if `out` came into being meanwhile.
    """
    check_free(out, is_folder=is_folder, force=force)
    parent, prefix = out.absolute().parent, f"{out.name}.partial-"
    _remove_left_over(parent, prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    lock = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: then nobody removes what is left
            fcntl.flock(lock, fcntl.LOCK_EX)
        whole = folder / "whole"
        yield whole
        _sync(whole)
        check_free(out, is_folder=is_folder, force=force)
        if is_folder and out.is_dir() and any(out.iterdir()):
            out.rename(folder / "replaced")
        whole.replace(out)
        _sync_one(parent)
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left_over(parent: Path, prefix: str) -> None:
    """What killed processes left. A live one's is locked."""
    for folder in parent.iterdir():
        if not folder.name.startswith(prefix) or folder.is_symlink() or not folder.is_dir():
            continue
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # somebody is at work, or nobody can tell
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _is_export(folder: Path) -> bool:
    try:
        document: Any = json.loads((folder / METADATA).read_bytes())
    except (OSError, ValueError):
        return False
    attributes = document.get("attributes") if isinstance(document, dict) else None
    return isinstance(attributes, dict) and MARK in attributes


def _sync(path: Path) -> None:
    if path.is_dir():
        for one in path.iterdir():
            _sync(one)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
