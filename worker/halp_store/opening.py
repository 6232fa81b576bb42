"""`opened`: the store that a command is about, or its one sentence and exit code 1."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from halp_store.console import guarded

if TYPE_CHECKING:
    from halp_store.reader import Store


def opened(path_or_url: str | os.PathLike[str]) -> Store:
    """For reading, as of now. numpy and zarr are loaded here, and not before."""

    def read() -> Store:
        from halp_store.reader import open_store

        return open_store(path_or_url)

    return guarded(read)
