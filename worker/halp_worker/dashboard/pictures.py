"""`Pictures`: the picture of a stored row, decoded by the workers' reader and encoded anew.

So a browser never gets bytes of a file, and only what is below the image root. URLs are not
fetched. Knows pictures by the name in a row, never by a path from a browser.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

from PIL import Image

from halp_producer.images import is_url
from halp_worker.fates import Rejected, Retryable
from halp_worker.model.images import ImageReader

SIDES: Final = {"thumbnail": 192, "large": 1400}
"""Longest side in pixels: a thumbnail on a fine screen, and what a window has room for."""

_QUALITY: Final = 88
_CACHE_BYTES: Final = 64 << 20
"""Some thousand thumbnails."""

_AT_ONCE: Final = 2
"""Decoded at once: the largest that is allowed takes some hundred MB."""


class NoPicture(Exception):  # noqa: N818 - named for what it says
    """It cannot be shown; the message says why."""


class Pictures:
    """May be used from several threads."""

    def __init__(self, root: Path | None) -> None:
        """root: images are found below it and nowhere else; None shows none."""
        self._reader = ImageReader(root) if root is not None else None
        self._decoding = threading.Semaphore(_AT_ONCE)
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()
        self._cached_bytes = 0

    @property
    def are_shown(self) -> bool:
        return self._reader is not None

    def jpeg(self, image: str, sha256: str, side: int) -> bytes:
        """At most `side` pixels wide and high. Raises NoPicture.

        sha256: of the file that the worker read, in hex; empty where nobody knows it.
        """
        key = (image, sha256, side)
        with self._lock:
            if (found := self._cache.get(key)) is not None:
                self._cache.move_to_end(key)
                return found
        with self._decoding:
            data = self._encoded(image, sha256, side)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = data
                self._cached_bytes += len(data)
            while self._cached_bytes > _CACHE_BYTES:
                self._cached_bytes -= len(self._cache.popitem(last=False)[1])
        return data

    def _encoded(self, image: str, sha256: str, side: int) -> bytes:
        if self._reader is None:
            raise NoPicture("pictures are shown when the dashboard is started with --image-root")
        if is_url(image):
            raise NoPicture("the picture is a URL; the dashboard fetches none")
        try:
            source = self._reader.read(image)
        except Rejected as error:
            raise NoPicture(str(error)) from None
        except Retryable as error:
            raise NoPicture(str(error)) from None
        if sha256 and source.sha256 != sha256:
            raise NoPicture(
                f"the file has changed since the question was answered: {image}: expected SHA-256 "
                f"{sha256[:12]}..., got {source.sha256[:12]}..."
            )
        pixels = source.pixels
        pixels.thumbnail((side, side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        pixels.save(out, "JPEG", quality=_QUALITY)
        return out.getvalue()
