"""Small files that ask for much, each by its name. Made when they are needed, none is stored.

Run as a program it decodes them all, each in a process of its own with a bound on memory and time,
and prints what became of each: one line of JSON a file. Not collected by pytest.
"""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from PIL import Image

HUGE: Final = 60_000
"""Pixels a side: 3.6 gigapixels, far over the limit."""

LEGAL: Final = 9_999
"""Pixels a side: just within the limit of 100 megapixels."""


def saved(kind: str, size: tuple[int, int] = (8, 8), mode: str = "RGB", **options: object) -> bytes:
    """An image of one colour, as PIL writes it."""
    buffer = io.BytesIO()
    Image.new(mode, size, 1).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A PNG chunk with its checksum."""
    return (
        struct.pack(">I", len(data))
        + name
        + data
        + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
    )


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG with this header and these chunks between it and the end."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *chunks, chunk(b"IEND", b"")])


def zeros(size: int) -> bytes:
    """`size` zeros, deflated, without ever holding them."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(size >> 20)]
    return b"".join([*parts, packer.compress(bytes(size & 0xFFFFF)), packer.flush()])


def png_pixels(side: int, colour: int = 0, channels: int = 1) -> bytes:
    """A PNG of side x side black pixels, whole and valid."""
    return png(side, side, chunk(b"IDAT", zeros(side * (side * channels + 1))), colour=colour)


def tiff(entries: list[tuple[int, int, int, int]], after: bytes = b"", next_ifd: int = 0) -> bytes:
    """A little-endian TIFF with one directory of (tag, type, count, value) at byte 8."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    directory = struct.pack("<H", len(entries)) + body + struct.pack("<I", next_ifd)
    return b"II*\0" + struct.pack("<I", 8) + directory + after


def plain_tiff(width: int, height: int, data: bytes, next_ifd: int = 0) -> bytes:
    """An uncompressed grey TIFF that says this size and holds `data`."""
    entries = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1)),
        *((262, 3, 1, 1), (273, 4, 1, 8 + 2 + 10 * 12 + 4), (277, 3, 1, 1), (278, 4, 1, height)),
        *((279, 4, 1, len(data)), (284, 3, 1, 1)),
    ]
    return tiff(entries, data, next_ifd)


def overlapping_tags(size: int = 1 << 20, count: int = 20_000) -> bytes:
    """A TIFF whose tags all point to the same bytes: `size` times `count` if each is kept."""
    start = 8 + 2 + count * 12 + 4
    return tiff([(1000 + tag, 7, size, start) for tag in range(count)], bytes(size))


def exif_in_png() -> bytes:
    """The same in the EXIF of a PNG that is good otherwise."""
    row = chunk(b"IDAT", zlib.compress(bytes(8 * 9)))
    return png(8, 8, chunk(b"eXIf", overlapping_tags()), row)


def gif(width: int, height: int, *blocks: bytes) -> bytes:
    """A GIF with a palette of two."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return screen + b"".join(blocks) + b";"


def gif_frame(width: int, height: int) -> bytes:
    """A frame with data for one pixel only."""
    return b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00"


def gif_comment(blocks: int) -> bytes:
    """One comment of very many sub-blocks; adding up bytes one by one would be quadratic."""
    return b"!\xfe" + (b"\xff" + b"x" * 255) * blocks + b"\0"


def webp(width: int, height: int) -> bytes:
    """A lossless WEBP header of this size, with nothing behind it."""
    bits = (width - 1) | (height - 1) << 14
    body = b"VP8L" + struct.pack("<IBI", 5, 0x2F, bits) + b"\0"
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def jpeg_resized(width: int, height: int) -> bytes:
    """A JPEG whose frame header says another size than its data holds."""
    data = bytearray(saved("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def icon(width: int, height: int) -> bytes:
    """An icon of 1x1 pixels that holds a PNG of any size."""
    inner = png(width, height)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 1, 1, 0, 0, 1, 32, len(inner), 22) + inner


TOO_LARGE: Final[dict[str, Callable[[], bytes]]] = {
    "png header": lambda: png(HUGE, HUGE),
    "png largest header": lambda: png(0x7FFFFFFF, 0x7FFFFFFF),
    "png of black pixels over the limit": lambda: png_pixels(12_000),
    "png between the two limits": lambda: png(10_001, 10_000),
    "gif header": lambda: gif(65_535, 65_535, gif_frame(65_535, 65_535)),
    "webp header": lambda: webp(16_384, 16_384),
    "jpeg header": lambda: jpeg_resized(65_500, 65_500),
    "bmp header": lambda: saved("BMP")[:18] + struct.pack("<ii", HUGE, HUGE) + saved("BMP")[26:],
    "ppm header": lambda: b"P6 60000 60000 255\n" + bytes(100),
    "qoi header": lambda: b"qoif" + struct.pack(">IIBB", HUGE, HUGE, 3, 0) + bytes(8),
    "tiff header": lambda: plain_tiff(HUGE, HUGE, bytes(100)),
}
"""Over the limit of pixels; refused by what they declare, before anything is decoded."""

UNREADABLE: Final[dict[str, Callable[[], bytes]]] = {
    "png without pixels within the limit": lambda: png(LEGAL, LEGAL),
    "jpeg without pixels within the limit": lambda: jpeg_resized(LEGAL, LEGAL)[:-30],
    "gif without pixels within the limit": lambda: gif(LEGAL, LEGAL, gif_frame(LEGAL, LEGAL)),
    "webp without pixels within the limit": lambda: webp(LEGAL, LEGAL),
    "tiff without pixels within the limit": lambda: plain_tiff(LEGAL, LEGAL, bytes(100)),
    "png with a text of 128 mebibytes": lambda: png(
        8, 8, chunk(b"zTXt", b"Comment\0\0" + zeros(1 << 27))
    ),
    "png with an international text of 128 mebibytes": lambda: png(
        8, 8, chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros(1 << 27))
    ),
    "png with a colour profile of 128 mebibytes": lambda: png(
        8, 8, chunk(b"iCCP", b"icc\0\0" + zeros(1 << 27))
    ),
    "png of a length beyond its end": lambda: png(8, 8)[:33] + b"\x7f\xff\xff\xffIDAT" + bytes(9),
    "tiff with overlapping tags": overlapping_tags,
    "tiff whose directory is at its own header": lambda: b"II*\0\0\0\0\0" + bytes(99),
    "tiff whose directory is beyond the end": lambda: b"II*\0\xff\xff\xff\xff",
    "gif of nothing but one comment": lambda: gif(8, 8, gif_comment(60_000)),
    "icon around a huge png": lambda: icon(HUGE, HUGE),
    "ppm in words that never end": lambda: b"P3 " + b"#" * (4 << 20),
    "ppm of one number": lambda: b"P3 8 8 255 " + b"1" * (4 << 20),
}
"""Within the limit, or not an image at all; damaged for good."""

READABLE: Final[dict[str, Callable[[], bytes]]] = {
    "png of black pixels within the limit": lambda: png_pixels(LEGAL),
    "png of clear pixels within the limit": lambda: png_pixels(LEGAL, colour=6, channels=4),
    "png of one line": lambda: png(99_999_999, 1, chunk(b"IDAT", zeros(100_000_000))),
    "gif of a hundred thousand frames": lambda: gif(8, 8, gif_whole() * 100_000),
    "gif with a comment of megabytes": lambda: gif(8, 8, gif_comment(60_000), gif_whole()),
    "tiff whose pages go in a circle": lambda: plain_tiff(8, 8, bytes(64), next_ifd=8),
    "png with overlapping tags in its exif": exif_in_png,
    "png of fifty thousand chunks": lambda: png(
        8,
        8,
        chunk(b"prVt", b"") * 50_000,
        chunk(b"IDAT", zlib.compress(bytes(8 * 9))),
    ),
}
"""Odd, large in some way, and whole: pixels come out, the first page's."""


def gif_whole() -> bytes:
    """A frame of 8x8 pixels, as PIL writes it."""
    data = saved("GIF", mode="L")
    return data[data.rindex(b",\0\0\0\0") : -1]


MEMORY_BYTES: Final = 3 << 30
"""For one image, on top of the interpreter: pixels of 100 megapixels take 400 MB a copy."""

CPU_SECONDS: Final = 20
"""Several times what the slowest of them takes here."""


def _decode(make: Callable[[], bytes], used_kib: int) -> dict[str, Any]:
    from halp_worker.fates import Rejected, Retryable
    from halp_worker.model.images import decode_image

    data = make()
    resource.setrlimit(resource.RLIMIT_AS, (used_kib * 1024 + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    started = time.process_time()
    found: dict[str, Any] = {"bytes": len(data)}
    try:
        image = decode_image(data, "bomb.png")
        found.update(end="pixels", mode=image.mode, size=image.size)
    except Rejected as rejected:
        found.update(end=str(rejected.rejection.reason), error=rejected.rejection.error)
    except Retryable as retryable:
        found.update(end=f"retry: {retryable.setback.reason}", error=retryable.setback.error)
    except BaseException as error:  # noqa: BLE001 - to be reported, whatever it is
        found.update(end="escaped", error=repr(error))
    found["seconds"] = round(time.process_time() - started, 2)
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return found


def _main() -> None:
    import halp_worker.model.images  # noqa: F401 - loaded once, before the forks

    used_kib = int(Path("/proc/self/statm").read_text().split()[0]) * 4
    for name, make in {**TOO_LARGE, **UNREADABLE, **READABLE}.items():
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            print(json.dumps({"name": name, **_decode(make, used_kib)}), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(json.dumps({"name": name, "end": f"killed: {status}"}), flush=True)


if __name__ == "__main__":
    _main()
