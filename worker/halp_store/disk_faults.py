"""What to do about an error of the operating system: a sentence for each kind of number."""

from __future__ import annotations

import errno
import os
from typing import Final

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Of a disk, or a quota, without room."""
_FAULTY: Final = {
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ECONNRESET,
    errno.ENODEV,
    errno.ENXIO,
    errno.EUCLEAN,
}


def remedy_for(error: OSError, path: str | os.PathLike[str]) -> str:
    """A clause that tells the user what to do. path: where the error occurred, or above it."""
    number = error.errno
    if number in FULL:
        return f"free some space there ({_free_space(path)}), or give this user a larger quota"
    if number == errno.EROFS:
        return "it is mounted read-only: mount it read-write, and look in dmesg for the reason"
    if number in _FAULTY:
        return "the mount or the disk has a fault: look in dmesg, mount it again"
    if number in {errno.EACCES, errno.EPERM}:
        return "give this user the right to read, write, create and delete there"
    if number in {errno.EMFILE, errno.ENFILE}:
        return "allow more open files (ulimit -n)"
    if number == errno.ENAMETOOLONG:
        return "use a file system that takes names of 255 bytes, or a shorter path"
    return f"look at the disk and its mount ({errno.errorcode.get(number or 0, 'no number')})"


def _free_space(path: str | os.PathLike[str]) -> str:
    try:
        disk = os.statvfs(path)
    except OSError:
        return "how much is free cannot be read"
    free = disk.f_bavail * disk.f_frsize
    amount = f"{free / 1e9:,.1f} GB" if free >= 1e9 else f"{free / 1e6:,.1f} MB"
    inodes = "" if disk.f_favail or not disk.f_files else " and no inodes"
    return f"{amount}{inodes} are free"
