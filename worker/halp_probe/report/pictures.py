"""`Pictures`: the picture of a row as a thumbnail, decoded and encoded anew, or why there is none.

Only files below the image root, after links are followed; no URL is fetched. No byte of a file gets
into the page as it is.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Final

from PIL import Image, ImageOps

from halp_probe.report.wording import shown

SIDE: Final = 240
"""Longest side of a thumbnail, in pixels."""
MAX_FILE_BYTES: Final = 64 << 20
"""Far above a photograph; a wrong path to a disk image does not fill the memory."""
MAX_PIXELS: Final = 100_000_000
"""Width times height, as for the workers: checked before a pixel is decoded."""
_FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
_MAX_PATH: Final = 4096
_NAME: Final = 120
_QUALITY: Final = 82


@dataclass(frozen=True)
class Picture:
    """jpeg: bytes of a thumbnail; None where there is none, and `why` says so."""

    jpeg: bytes | None
    why: str = ""


class _NoPicture(Exception):  # noqa: N818 - named for what it says
    """The message says why."""


class Pictures:
    """Of the rows of one store. root: None shows none."""

    def __init__(self, root: Path | None) -> None:
        self._root = root.resolve() if root is not None else None

    def of(self, image: str, sha256: str) -> Picture:
        """image: a path below the root. sha256: of the file that was asked about, hex; empty where
        nobody knows it."""
        try:
            data = self._read(image)
            if sha256 and hashlib.sha256(data).hexdigest() != sha256:
                raise _NoPicture("the file has changed since the question was answered")
            return Picture(_thumbnail(data))
        except _NoPicture as error:
            return Picture(None, str(error))

    def _read(self, image: str) -> bytes:
        if self._root is None:
            raise _NoPicture("pictures are shown with --image-root")
        _check_name(image)
        try:
            path = (self._root / image).resolve()
            if not path.is_relative_to(self._root):
                raise _NoPicture("the path leads out of the image root")
            # Not blocking: opening a pipe would wait for somebody to write into it.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                return _content(descriptor)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise _NoPicture(f"there is no file {shown(image, _NAME)}") from None
        except (OSError, ValueError, RuntimeError):
            # ValueError: a NUL in the name; RuntimeError: a loop of links.
            raise _NoPicture(f"the file cannot be read: {shown(image, _NAME)}") from None


def _check_name(image: str) -> None:
    if not image:
        raise _NoPicture("the store does not know its picture")
    if image[:8].lower().startswith(("http://", "https://")):
        raise _NoPicture("the picture is a URL, and none is fetched")
    if len(image) > _MAX_PATH:
        raise _NoPicture(f"its path has {len(image):,} characters")


def _content(descriptor: int) -> bytes:
    status = os.fstat(descriptor)
    if not S_ISREG(status.st_mode):
        raise _NoPicture("the path is not one of a file")
    if status.st_size > MAX_FILE_BYTES:
        raise _NoPicture(f"the file has {status.st_size:,} bytes")
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(MAX_FILE_BYTES)


def _thumbnail(data: bytes) -> bytes:
    try:
        with warnings.catch_warnings():
            # Our own limit decides, and damaged metadata (PIL warns of it) harms no pixel.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise _NoPicture(f"the picture has {image.width}x{image.height} pixels")
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            upright = ImageOps.exif_transpose(image)
            upright.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            out = io.BytesIO()
            _on_white(upright).save(out, "JPEG", quality=_QUALITY)
            return out.getvalue()
    except _NoPicture:
        raise
    except Exception:  # noqa: BLE001 - decoders raise anything on damaged files
        formats = ", ".join(_FORMATS)
        raise _NoPicture(f"the file is damaged, or not one of {formats}") from None


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image).convert("RGB")
