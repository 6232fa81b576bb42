"""`ImageRoot`: whether a job's image is a file below the image root, and its bytes.

Knows paths as the worker will resolve them; refuses to decode an image.
"""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import Final

_MAX_PATH: Final = 4096
"""Characters; Linux opens no longer path, and resolving one of a megabyte takes seconds."""

_REMEMBERED: Final = 4096
"""Verdicts kept; questions about one image stand close together in a dataset."""

DEFAULT_INLINE_BYTES: Final = 1 << 20
"""Of an image inside a job, unless more is asked for: a photograph at the size models see it."""

_KEPT: Final = 2
"""Images kept as bytes, for questions about them that come next; each may be MAX_IMAGE_BYTES."""


def is_url(image: str) -> bool:
    return image[:8].lower().startswith(("http://", "https://"))


class ImageRoot:
    """The directory images are looked up in; symbolic links are resolved before judging."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._real = os.path.realpath(path)
        self._verdict = lru_cache(maxsize=_REMEMBERED)(self._look)
        self._bytes = lru_cache(maxsize=_KEPT)(self._read)

    @property
    def visible(self) -> bool:
        """Whether this machine sees the directory; where it does not, nothing can be said."""
        return self.path.is_dir()

    def problem(self, image: str) -> str | None:
        """Why a worker would not find `image`; None when it would, and for URLs."""
        return None if is_url(image) else self._verdict(image)

    def read(self, image: str, most_bytes: int) -> bytes:
        """The file in which `problem` found nothing wrong. Raises ValueError with a reason if it is
        larger, empty or cannot be read."""
        return self._bytes(image, most_bytes)

    def _read(self, image: str, most_bytes: int) -> bytes:
        try:
            with (Path(self._real) / image).open("rb") as file:
                data = file.read(most_bytes + 1)
        except OSError as error:
            raise ValueError(
                f"cannot be read: {image} under {self.path} ({error.strerror})"
            ) from None
        if not data:
            raise ValueError(f"is empty: {image} (under {self.path})")
        if len(data) > most_bytes:
            raise ValueError(
                f"is larger than {most_bytes:,} bytes: {image} (under {self.path}); make it "
                "smaller, or raise --max-inline-bytes"
            )
        return data

    def _look(self, image: str) -> str | None:
        if len(image) > _MAX_PATH:
            return f"cannot be read: {image} under {self.path} (File name too long)"
        try:
            found = os.path.realpath(os.path.join(self._real, image), strict=True)  # noqa: PTH118 (8 times faster than Path, once for each image)
            mode = os.stat(found).st_mode  # noqa: PTH116 (same)
        except (FileNotFoundError, NotADirectoryError):
            return f"not found: {image} (looked under {self.path})"
        except OSError as error:
            return f"cannot be read: {image} under {self.path} ({error.strerror})"
        except RecursionError:
            return f"cannot be read: {image} under {self.path} (Too many symbolic links)"
        if not found.startswith(self._real.rstrip(os.sep) + os.sep):
            return f"outside the image root: {image} is {found}, not below {self.path}"
        if not stat.S_ISREG(mode):
            return f"not a file: {image} (under {self.path})"
        return None
