"""Damaged image files of every format: pixels or a reason, never anything else."""

from __future__ import annotations

import io
import os
import random
import time
import warnings
from functools import cache

import numpy as np
import pytest
from PIL import Image

from halp_worker.fates import Rejected
from halp_worker.model.images import ImageReader, decode_image

Image.init()
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16")
READ = {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TIFF", "WEBP"}
SECONDS = 10


def noise(mode):
    random_pixels = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(random_pixels.integers(0, 1 << 16, (24, 33), dtype=np.uint16))
    pixels = random_pixels.integers(0, 256, (24, 33, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@cache
def written(kind):
    """(mode, bytes) for every mode that PIL writes this format in."""
    files = []
    for mode in MODES:
        buffer = io.BytesIO()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of the format
                noise(mode).save(buffer, kind)
        except (OSError, ValueError, KeyError, NotImplementedError):
            continue  # a mode that this format has not
        files.append((mode, buffer.getvalue()))
    return files


def ended(data, name="some.png"):
    """Pixels, or None for a rejection; whatever else it is fails the test."""
    started = time.process_time()
    image, reason = None, ""
    try:
        image = decode_image(data, name)
    except Rejected as rejected:
        reason = rejected.rejection.error
    assert time.process_time() - started < SECONDS
    if image is None:
        assert reason.isprintable()
        assert name in reason
        assert len(reason) < 2_000
    else:
        assert image.mode == "RGB"
    return image


KINDS = sorted(Image.SAVE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_format_is_read_or_refused_by_name(kind):
    """Photographs' formats are read; whatever else PIL knows is refused with the list of them."""
    files = written(kind)
    if not files:
        pytest.skip(f"this PIL cannot write {kind}")
    for mode, data in files:
        if kind not in READ:
            with pytest.raises(Rejected, match=r"not an image, or none of .*PNG"):
                decode_image(data, "some.png")
        elif mode not in ("I", "F", "I;16"):
            image = ended(data)
            assert image is not None, (kind, mode)
            assert image.size == (33, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_never_passes_for_another_image(kind):
    """Cut anywhere, it is refused, or nothing that matters was missing: the pixels are the same."""
    seeded = random.Random(kind)
    for mode, data in written(kind):
        whole = ended(data)
        cuts = {seeded.randrange(len(data)) for _ in range(20)}
        for cut in sorted(cuts | {0, 1, len(data) // 2, len(data) - 1}):
            image = ended(data[:cut])
            if image is not None:
                assert whole is not None
                assert image.tobytes() == whole.tobytes(), (kind, mode, cut)


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes_end_in_pixels_or_a_reason(kind):
    """Headers most of all: whatever sizes, offsets and counts they come to say."""
    seeded = random.Random(kind)
    for _, data in written(kind):
        for _ in range(25):
            damaged = bytearray(data)
            reach = seeded.choice((64, len(data)))
            for _ in range(seeded.choice((1, 1, 3, 10))):
                damaged[seeded.randrange(min(reach, len(data)))] = seeded.randrange(256)
            ended(bytes(damaged))


@pytest.mark.parametrize("kind", sorted(READ))
def test_what_follows_an_image_does_not_matter(kind):
    """Cameras and editors append things."""
    for _, data in written(kind):
        whole, more = ended(data), ended(data + b"\0trailing garbage" * 100)
        assert (whole is None) == (more is None)
        assert whole is None or whole.tobytes() == more.tobytes()


def test_the_name_does_not_decide_the_format(tmp_path):
    """A PNG called .jpg is a PNG; an EPS called .png is not read."""
    for name, kind in (("a.jpg", "PNG"), ("b.exe", "WEBP"), ("c", "JPEG"), ("d.eps", "GIF")):
        noise("RGB").save(tmp_path / name, kind)
        assert ImageReader(tmp_path).read(name).pixels.size == (33, 24)


def test_random_bytes_are_not_an_image():
    """After each signature, too."""
    seeded = random.Random(0)
    signatures = [
        b"",
        *(data[:size] for k in KINDS for _, data in written(k)[:1] for size in (4, 12, 32)),
    ]
    for signature in signatures:
        for size in (0, 1, 100, 5_000):
            ended(signature + seeded.randbytes(size))


def test_no_image_starts_another_program(tmp_path, monkeypatch):
    """PIL would start Ghostscript for EPS: one of our own on PATH is never called."""
    called = tmp_path / "called"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {called}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    binary_eps = b"\xc5\xd0\xd3\xc6" + (32).to_bytes(4, "little") + len(eps).to_bytes(4, "little")
    for data in (eps, binary_eps + bytes(20) + eps):
        assert ended(data) is None
    assert not called.exists()


@pytest.mark.parametrize(
    "data",
    [
        *(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), b"\xd7\xcd\xc6\x9a" + bytes(80)),
        *(b"\x01\0\0\0" + bytes(84), b"%PDF-1.7\n", b"PK\x03\x04" + bytes(60), b"GRIB" + bytes(60)),
        *(b"\x89HDF\r\n\x1a\n" + bytes(60), b"BUFR" + bytes(60), b"SIMPLE  =   T" + bytes(2880)),
        *(b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x1f\x8b" + bytes(60), b"\x7fELF"),
        *(b"push graphic-context\nimage over 0,0 0,0 'label:@/etc/passwd'\n",),
    ],
)
def test_what_only_holds_or_draws_images_is_refused(data):
    """OLE and WMF, PDF, ZIP, GRIB, HDF5, BUFR, FITS, SVG, gzip, programs, drawing commands."""
    with pytest.raises(Rejected, match="not an image"):
        decode_image(data, "some.png")
