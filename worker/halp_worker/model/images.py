"""`ImageReader`: an image name from a job -> RGB pixels, or a rejection with its reason.

Knows files, URLs and PIL; does not know the model. Paths stay under the root after links are
followed, a size is checked before pixels are decoded, EXIF orientation is applied.
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

import numpy as np
import requests
from PIL import Image, ImageOps, UnidentifiedImageError

from halp_producer.images import is_url
from halp_worker.fates import Reason, Rejected

MAX_FILE_BYTES: Final = 256 << 20
"""Far above any photograph; keeps a wrong path to a disk image from filling the memory."""

MAX_IMAGE_PIXELS: Final = 100_000_000
"""Width times height. A 100-megapixel photograph passes, a decompression bomb does not."""

URL_TIMEOUT_SECONDS: Final = 20.0
URL_TRIES: Final = 3


@dataclass(frozen=True)
class SourceImage:
    """pixels: RGB, upright. sha256: hex digest of the file's bytes as they were read."""

    pixels: Image.Image
    sha256: str


class ImageReader:
    """Reads images below `root`; from http(s) URLs only with `allow_urls`."""

    def __init__(self, root: Path, *, allow_urls: bool = False) -> None:
        self._root = root.resolve()
        self._allow_urls = allow_urls

    def read(self, image: str) -> SourceImage:
        """Raises Rejected with the reason if this name can never give an image."""
        data = self._download(image) if is_url(image) else self._load(image)
        return SourceImage(decode_image(data, image), hashlib.sha256(data).hexdigest())

    def _load(self, image: str) -> bytes:
        try:
            path = (self._root / image).resolve()
            if not path.is_relative_to(self._root):
                raise Rejected(
                    Reason.IMAGE_OUTSIDE_ROOT, f"image outside the root: {image} -> {path}"
                )
            # Not blocking: opening a pipe would wait for somebody to write into it.
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
                status = os.fstat(file.fileno())
                if not S_ISREG(status.st_mode):
                    raise Rejected(Reason.IMAGE_UNREADABLE, f"image is not a file: {image}")
                if status.st_size > MAX_FILE_BYTES:
                    raise Rejected(
                        Reason.IMAGE_TOO_LARGE,
                        f"image file has {status.st_size} bytes, the limit is {MAX_FILE_BYTES}: "
                        f"{image}",
                    )
                return file.read()
        except FileNotFoundError:
            raise Rejected(
                Reason.IMAGE_MISSING, f"image not found: {image} (looked under {self._root})"
            ) from None
        except (OSError, ValueError, RuntimeError) as error:
            # ValueError: a NUL in the name; RuntimeError: a loop of symbolic links.
            raise Rejected(
                Reason.IMAGE_UNREADABLE, f"image cannot be read: {image}: {error}"
            ) from None

    def _download(self, url: str) -> bytes:
        if not self._allow_urls:
            raise Rejected(
                Reason.URL_REFUSED,
                f"image is a URL, and this worker was started without --allow-urls: {url}",
            )
        for attempt in range(1, URL_TRIES + 1):
            try:
                return _get(url)
            except requests.RequestException as error:
                if attempt == URL_TRIES:
                    raise Rejected(Reason.URL_FAILED, f"image URL failed: {url}: {error}") from None
        raise AssertionError("unreachable")  # pragma: no cover


def _get(url: str) -> bytes:
    with requests.get(url, stream=True, timeout=URL_TIMEOUT_SECONDS) as response:
        response.raise_for_status()
        data = bytearray()
        for part in response.iter_content(1 << 20):
            data += part
            if len(data) > MAX_FILE_BYTES:
                raise Rejected(
                    Reason.IMAGE_TOO_LARGE, f"image is over {MAX_FILE_BYTES} bytes: {url}"
                )
        return bytes(data)


def decode_image(data: bytes, name: str) -> Image.Image:
    """RGB pixels, upright, first frame, transparency on white; `name` is for the message.

    Raises Rejected if the bytes are not a whole image or have too many pixels.
    """
    try:
        with warnings.catch_warnings():
            # Our own limit decides, and damaged metadata (PIL warns of it) harms no pixel.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise Rejected(
                    Reason.IMAGE_TOO_LARGE,
                    f"image has {width}x{height} pixels, the limit is {MAX_IMAGE_PIXELS}: {name}",
                )
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise Rejected(Reason.IMAGE_TOO_LARGE, f"image is too large: {name}: {error}") from None
    except UnidentifiedImageError:
        raise Rejected(Reason.IMAGE_UNREADABLE, f"not an image: {name}") from None
    except Rejected:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
        kind = type(error).__name__
        raise Rejected(
            Reason.IMAGE_UNREADABLE, f"image is damaged: {name}: {kind}: {error}"
        ) from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # PIL clips 16-bit grey to 255 when it converts; keep the high byte instead.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixel mode {image.mode} has no defined brightness range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")
