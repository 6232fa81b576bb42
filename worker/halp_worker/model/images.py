"""`ImageReader`: the image of a job -> RGB pixels, or its fate with a reason.

Knows files and PIL; does not know the model. Paths stay under the root after links are followed, a
size is checked before pixels are decoded, EXIF orientation is applied. What is wrong with the image
is `Rejected`; what is wrong with the disk, the network or this host's memory is `Retryable`. What
another host may be able to read carries the part of this one that could not.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from halp_producer.images import is_url
from halp_producer.problem import in_short
from halp_worker.fates import HostPart, Reason, Rejected, Retryable
from halp_worker.model.download import download

MAX_FILE_BYTES: Final = 256 << 20
"""Far above any photograph; keeps a wrong path to a disk image from filling the memory."""

MAX_IMAGE_PIXELS: Final = 100_000_000
"""Width times height. A 100-megapixel photograph passes, a decompression bomb does not."""

Image.init()
_FORMATS: Final[list[str]] = [
    name
    for name in ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP")
    if name in Image.OPEN
]
"""What photographs come in, as far as this PIL has it. Each has a signature and is decoded inside
this process. PIL's other formats start Ghostscript (EPS), hold images of another size than they
declare (ICO, ICNS), or have no signature and take garbage for pixels (TGA, XBM). Looked up here,
where there is only one thread."""

MAX_PATH: Final = 4096
"""Characters; Linux opens no longer path, and resolving one of a megabyte takes seconds."""

_PASSING: Final = frozenset(
    {
        # The disk or its network: a mount that is stale, cut off or failing over.
        *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNREFUSED),
        *(errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        # This host or process has too much open, or too little memory.
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS),
        # Somebody else is at the file: a lock, a lease.
        *(errno.EAGAIN, errno.EBUSY, errno.ETXTBSY),
    }
)
"""Errors of reading that say nothing about the image. All others are the image's for good."""

_FOLDER: Final = os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)
"""How a folder on the way is opened; where there is O_PATH, it need not be readable."""

_PIL_OUT_OF_MEMORY: Final = "out of memory error"
"""How PIL words a decoder's status -9, in an OSError without a number."""


@dataclass(frozen=True)
class SourceImage:
    """pixels: RGB, upright. sha256: hex digest of the file's bytes as they were read."""

    pixels: Image.Image
    sha256: str


class ImageReader:
    """Reads images below `root`, inside jobs, and with `allow_urls` from http(s) URLs."""

    def __init__(self, root: Path, *, allow_urls: bool = False) -> None:
        self._root = root.resolve()
        self._allow_urls = allow_urls

    def read(self, image: str, data: bytes | None = None) -> SourceImage:
        """data: the image, where it travelled inside its job; then `image` is only its name, and no
        file or URL is asked. Raises Rejected if there can never be an image, Retryable if it may
        be there later."""
        if data is None:
            data = self._download(image) if is_url(image) else self._load(image)
        return SourceImage(decode_image(data, image), hashlib.sha256(data).hexdigest())

    def _load(self, image: str) -> bytes:
        shown = in_short(image)
        if len(image) > MAX_PATH:
            raise Rejected(
                Reason.IMAGE_UNREADABLE,
                f"image cannot be read: {shown}: {len(image)} characters are no path",
            )
        try:
            path = (self._root / image).resolve()
            if not path.is_relative_to(self._root):
                raise Rejected(
                    Reason.IMAGE_OUTSIDE_ROOT,
                    f"image outside the root: {shown} -> {in_short(str(path))}",
                )
            with open(self._open(path.relative_to(self._root)), "rb") as file:  # noqa: PTH123
                status = os.fstat(file.fileno())
                if not S_ISREG(status.st_mode):
                    raise Rejected(Reason.IMAGE_UNREADABLE, f"image is not a file: {shown}")
                if status.st_size > MAX_FILE_BYTES:
                    raise Rejected(
                        Reason.IMAGE_TOO_LARGE,
                        f"image file has {status.st_size} bytes, the limit is {MAX_FILE_BYTES}: "
                        f"{shown}",
                    )
                return file.read(status.st_size)
        except FileNotFoundError:
            if not os.path.isdir(self._root):  # noqa: PTH112 - says False where Path's raises
                raise Retryable(
                    Reason.IMAGE_UNAVAILABLE,
                    f"the image root is gone: {self._root}: is its disk mounted? ({shown})",
                    HostPart.IMAGES,
                ) from None
            raise Rejected(
                Reason.IMAGE_MISSING,
                f"image not found: {shown} (looked under {self._root})",
                HostPart.IMAGES,
            ) from None
        except MemoryError:
            raise _no_memory(image) from None
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, OSError) and error.errno in _PASSING:
                raise Retryable(
                    Reason.IMAGE_UNAVAILABLE,
                    f"image cannot be read now: {shown}: {in_short(str(error))}",
                    HostPart.IMAGES,
                ) from None
            # ValueError: a NUL in the name; RuntimeError: a loop of symbolic links.
            raise Rejected(
                Reason.IMAGE_UNREADABLE,
                f"image cannot be read: {shown}: {in_short(str(error))}",
                HostPart.IMAGES if isinstance(error, PermissionError) else None,
            ) from None

    def _open(self, below: Path) -> int:
        """A descriptor of the file at `below` the root, a path without links.

        Step by step, so that a link put there since the path was judged is not followed.
        """
        folder = os.open(self._root, _FOLDER)
        try:
            for name in below.parts[:-1]:
                inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = inner
            # Not blocking: opening a pipe would wait for somebody to write into it.
            how = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
            return os.open(below.name or ".", how, dir_fd=folder)
        finally:
            os.close(folder)

    def _download(self, url: str) -> bytes:
        if not self._allow_urls:
            raise Rejected(
                Reason.URL_REFUSED,
                "image is a URL, and this worker was started without --allow-urls: "
                f"{in_short(url)}",
                HostPart.NETWORK,
            )
        try:
            return download(url, MAX_FILE_BYTES)
        except MemoryError:
            raise _no_memory(url) from None


def _no_memory(image: str) -> Retryable:
    return Retryable(
        Reason.IMAGE_UNAVAILABLE,
        f"this host has no memory for the image now: {in_short(image)}",
        HostPart.IMAGES,
    )


def decode_image(data: bytes, name: str) -> Image.Image:
    """RGB pixels, upright, first frame, transparency on white; `name` is for the message.

    Raises Rejected if the bytes are not a whole image or have too many pixels, Retryable if this
    host's memory has no room for one within the limit: it may later.
    """
    shown = in_short(name)
    try:
        with warnings.catch_warnings():
            # Our own limit decides, and damaged metadata (PIL warns of it) harms no pixel.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise Rejected(
                    Reason.IMAGE_TOO_LARGE,
                    f"image has {width}x{height} pixels, the limit is {MAX_IMAGE_PIXELS}: {shown}",
                )
            image.load()
            if image.format == "JPEG2000":
                _require_end(data)
            return _rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise Rejected(
            Reason.IMAGE_TOO_LARGE, f"image is too large: {shown}: {in_short(str(error))}"
        ) from None
    except UnidentifiedImageError:
        raise Rejected(
            Reason.IMAGE_UNREADABLE, f"not an image, or none of {', '.join(_FORMATS)}: {shown}"
        ) from None
    except Rejected:
        raise
    except MemoryError:
        raise _no_memory(name) from None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
        if str(error).startswith(_PIL_OUT_OF_MEMORY):
            raise _no_memory(name) from None
        kind = type(error).__name__
        raise Rejected(
            Reason.IMAGE_UNREADABLE, f"image is damaged: {shown}: {kind}: {in_short(str(error))}"
        ) from None


def _require_end(data: bytes) -> None:
    """Of a JPEG 2000 codestream (ISO 15444-1, A.4.4): cut between two packets, it decodes to less
    detail without an error. No packet holds these two bytes, so a whole file is never refused."""
    if data.find(b"\xff\xd9", data.find(b"\xff\x4f\xff\x51")) < 0:
        raise ValueError("the codestream does not end")


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
