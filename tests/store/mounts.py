"""`small_disk`: a real disk of a few hundred kB, where this user may mount one."""

import shutil
import subprocess
from contextlib import contextmanager

import pytest


@contextmanager
def small_disk(path, size="256k"):
    """A tmpfs at `path`; skips the test by name where it cannot be mounted."""
    path.mkdir(exist_ok=True)
    mount = shutil.which("mount")
    ended = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path],
        capture_output=True,
        text=True,
        check=False,
    )
    if not ended or ended.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {ended.stderr if ended else 'no mount'}")
    try:
        yield path
    finally:
        unmount(path)


def unmount(path):
    """As `umount -l`: at once, whoever uses it; nothing if it is not mounted."""
    subprocess.run(["umount", "-l", path], capture_output=True, check=False)
