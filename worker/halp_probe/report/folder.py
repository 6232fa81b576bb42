"""`report_folder`: a folder that gets its name when it is whole.

What may be replaced is an empty folder and, by force, an earlier report; nothing else.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from halp_probe.errors import ProbeError

PAGE: Final = "index.html"
FIGURES: Final = "evaluation.json"


class OutputExists(ProbeError):  # noqa: N818 - named for what it says
    """There is something at the path already, or no folder to put it into."""


def check_free(out: Path, *, force: bool) -> None:
    """Raises OutputExists unless a report may be written to `out`."""
    if not os.path.lexists(out):
        if not out.absolute().parent.is_dir():
            raise OutputExists(f"{out}: there is no folder {out.parent} to write it into")
        return
    if not out.is_dir() or out.is_symlink():
        raise OutputExists(f"{out}: exists, and is not a folder; use another path")
    if not any(out.iterdir()):
        return
    if not ((out / PAGE).is_file() and (out / FIGURES).is_file()):
        raise OutputExists(f"{out}: is a folder, and not one of a report: use another path")
    if not force:
        raise OutputExists(f"{out}: has a report; --force replaces it")


@contextmanager
def report_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """An empty folder beside `out`, which becomes `out` when the block ends well.

    Raises OutputExists before the block, and after it if `out` came into being meanwhile.
    """
    check_free(out, force=force)
    parent = out.absolute().parent
    with tempfile.TemporaryDirectory(prefix=f"{out.name}.partial-", dir=parent) as aside:
        whole = Path(aside) / "whole"
        whole.mkdir()
        yield whole
        check_free(out, force=force)
        if out.is_dir() and any(out.iterdir()):
            out.rename(Path(aside) / "replaced")
        whole.replace(out)
