"""Pictures of a report: only below the root, only pictures, only the file that was asked about."""

from __future__ import annotations

import hashlib
import io
import os
import zlib

import numpy as np
import pytest
from PIL import Image

from halp_probe.report import pictures
from halp_probe.report.pictures import SIDE, Pictures


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def save(path, size=(640, 400), mode="RGB", **options):
    Image.new(mode, size, "teal" if mode == "RGB" else 0).save(path, **options)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def opened(picture):
    assert picture.jpeg is not None, picture.why
    return Image.open(io.BytesIO(picture.jpeg))


def test_a_picture_becomes_a_small_jpeg(root):
    """Its shape stays; no byte of the file goes through."""
    sha256 = save(root / "a.png")
    found = opened(Pictures(root).of("a.png", sha256))
    assert (found.format, found.size) == ("JPEG", (SIDE, SIDE * 400 // 640))


@pytest.mark.parametrize("form", ["bmp", "gif", "jpeg", "png", "webp"])
def test_the_usual_formats_are_read(root, form):
    """Whatever their name says."""
    save(root / f"a.{form}")
    (root / f"a.{form}").rename(root / "a.dat")
    assert opened(Pictures(root).of("a.dat", "")).format == "JPEG"


def test_a_photograph_stands_upright_and_glass_is_white(root):
    """EXIF orientation is applied; what is transparent is shown on white."""
    tags = Image.Exif()
    tags[274] = 6
    save(root / "a.jpeg", exif=tags)
    assert opened(Pictures(root).of("a.jpeg", "")).height == SIDE
    save(root / "b.png", mode="RGBA")
    assert np.asarray(opened(Pictures(root).of("b.png", ""))).min() > 250


def test_a_changed_file_is_not_shown(root):
    """It is not what the model saw."""
    save(root / "a.png")
    found = Pictures(root).of("a.png", hashlib.sha256(b"another").hexdigest())
    assert found.jpeg is None
    assert "has changed" in found.why


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("../secret.png", "out of the image root"),
        ("link.png", "out of the image root"),
        ("folder/../../secret.png", "out of the image root"),
        ("missing.png", "no file missing.png"),
        ("", "does not know its picture"),
        ("https://example.org/a.png", "is a URL"),
        ("a\0.png", "cannot be read"),
        ("loop", "cannot be read"),
        ("folder", "not one of a file"),
        ("pipe", "not one of a file"),
        ("x" * 5000, "5,000 characters"),
        ("text.png", "damaged, or not one of"),
        ("cut.png", "damaged, or not one of"),
        ("vector.png", "damaged, or not one of"),
    ],
)
def test_what_is_no_picture_below_the_root_says_why(tmp_path, root, image, why):
    """And nothing of it is read into the page."""
    save(tmp_path / "secret.png")
    (root / "folder").mkdir()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    (root / "text.png").write_text("no picture")
    save(root / "whole.png")
    (root / "cut.png").write_bytes((root / "whole.png").read_bytes()[:-40])
    (root / "vector.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    found = Pictures(root).of(image, "")
    assert found.jpeg is None
    assert why in found.why


def test_the_absolute_path_of_a_picture_below_the_root_is_shown(root):
    """Some data sets name them so."""
    save(root / "a.png")
    assert Pictures(root).of(str(root / "a.png"), "").jpeg


def test_a_bomb_is_refused_before_it_is_decoded(root, monkeypatch):
    """By the size that it declares."""
    header = b"\x89PNG\r\n\x1a\n"
    body = (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    chunk = b"IHDR" + body
    crc = zlib.crc32(chunk).to_bytes(4, "big")
    (root / "a.png").write_bytes(header + len(body).to_bytes(4, "big") + chunk + crc)
    assert Pictures(root).of("a.png", "").jpeg is None
    save(root / "b.png")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1000)
    assert "640x400 pixels" in Pictures(root).of("b.png", "").why


def test_a_file_that_is_too_large_is_not_read(root, monkeypatch):
    """A wrong path to a disk image does not fill the memory."""
    monkeypatch.setattr(pictures, "MAX_FILE_BYTES", 100)
    save(root / "a.png")
    assert "bytes" in Pictures(root).of("a.png", "").why


def test_without_a_root_no_picture_is_shown():
    """And the placeholder says what would show it."""
    assert "--image-root" in Pictures(None).of("a.png", "").why
