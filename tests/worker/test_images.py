"""Image files as they come: each ends in pixels or in a clear reason."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import threading

import numpy as np
import pytest
from PIL import Image

from halp_worker.fates import Reason, Rejected
from halp_worker.model import images
from halp_worker.model.images import ImageReader


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def rejection(root, name, **options):
    with pytest.raises(Rejected) as caught:
        ImageReader(root, **options).read(name)
    return caught.value.rejection


def save(root, name, image, **options):
    image.save(root / name, **options)
    return name


def noise(width=32, height=24, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_the_hash_is_that_of_the_files_bytes(root):
    """`image_sha256` is what `sha256sum` prints."""
    name = save(root, "a.png", noise())
    source = ImageReader(root).read(name)
    assert source.sha256 == hashlib.sha256((root / name).read_bytes()).hexdigest()
    assert source.pixels.mode == "RGB"


def test_exif_orientation_is_applied(root):
    """A photograph stored on its side is seen upright, as a person sees it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    name = save(root, "side.jpg", noise(40, 20), exif=exif)
    assert ImageReader(root).read(name).pixels.size == (20, 40)


def test_sixteen_bit_grey_keeps_its_brightness(root):
    """PIL alone would clip every value above 255 to white."""
    levels = np.linspace(0, 65535, 64 * 64, dtype=np.uint16).reshape(64, 64)
    name = save(root, "deep.png", Image.fromarray(levels))
    pixels = np.asarray(ImageReader(root).read(name).pixels)[:, :, 0]
    assert np.array_equal(pixels, levels >> 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_shown_on_white(root, mode):
    """What is fully transparent is white, whatever colour hides below."""
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    name = save(
        root,
        "clear.tif" if mode == "PA" else "clear.png",
        clear.convert("RGBA" if mode == "PA" else mode),
    )
    assert ImageReader(root).read(name).pixels.getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK"])
def test_other_modes_become_rgb(root, mode):
    """Grey, palette, bilevel and print colours all reach the model as RGB."""
    name = save(root, "a.tif", noise(mode=mode))
    assert ImageReader(root).read(name).pixels.mode == "RGB"


def test_a_mode_without_a_brightness_range_is_rejected(root):
    """Floating-point pixels have no defined white: better a reason than a guess."""
    name = save(root, "f.tif", Image.fromarray(np.ones((8, 8), np.float32)))
    assert rejection(root, name).reason is Reason.IMAGE_UNREADABLE


def test_a_missing_image_says_where_it_was_looked_for(root):
    """The message names the path and the root."""
    found = rejection(root, "a/b.jpg")
    assert found.reason is Reason.IMAGE_MISSING
    assert "a/b.jpg" in found.error
    assert str(root) in found.error


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_a_path_outside_the_root_is_rejected(root, name):
    """Dots and absolute paths do not lead out."""
    noise().save(root.parent / "secret.png")
    assert rejection(root, name).reason is Reason.IMAGE_OUTSIDE_ROOT


def test_a_link_out_of_the_root_is_rejected(root):
    """A symbolic link counts as what it points to."""
    noise().save(root.parent / "secret.png")
    (root / "link.png").symlink_to(root.parent / "secret.png")
    assert rejection(root, "link.png").reason is Reason.IMAGE_OUTSIDE_ROOT


def test_an_absolute_path_inside_the_root_is_fine(root):
    """Data sets often carry absolute paths."""
    save(root, "a.png", noise())
    assert ImageReader(root).read(str(root / "a.png")).pixels.size == (32, 24)


def test_links_in_a_circle_a_nul_and_a_folder_are_reasons(root):
    """Whatever a name does, it does not kill the worker."""
    (root / "x").symlink_to(root / "y")
    (root / "y").symlink_to(root / "x")
    (root / "folder").mkdir()
    for name in ("x", "a\0b", "folder", ".", "n" * 5000):
        assert rejection(root, name).reason in (Reason.IMAGE_UNREADABLE, Reason.IMAGE_MISSING)


def test_a_pipe_is_not_waited_for(root):
    """A FIFO would block its reader for ever."""
    os.mkfifo(root / "pipe.png")
    assert rejection(root, "pipe.png").reason is Reason.IMAGE_UNREADABLE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_truncated_image_is_rejected_in_every_common_format(root, kind):
    """Half a file is not half an image."""
    whole = io.BytesIO()
    noise(200, 200).save(whole, kind)
    (root / "half").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    assert rejection(root, "half").reason is Reason.IMAGE_UNREADABLE


def test_text_and_nothing_are_not_images(root):
    """A web page saved as .jpg, and an empty file."""
    (root / "page.jpg").write_text("<html>404</html>")
    (root / "empty.jpg").write_bytes(b"")
    for name in ("page.jpg", "empty.jpg"):
        found = rejection(root, name)
        assert found.reason is Reason.IMAGE_UNREADABLE
        assert "not an image" in found.error


def test_a_decompression_bomb_is_rejected_before_it_is_decoded(root):
    """A small file that claims to be huge."""
    bomb = save(root, "bomb.png", Image.new("1", (40_000, 40_000)))
    assert (root / bomb).stat().st_size < 1 << 20
    found = rejection(root, bomb)
    assert found.reason is Reason.IMAGE_TOO_LARGE


def test_a_file_too_large_is_not_read(root, monkeypatch):
    """The limit is checked on the file's size, not on what was read of it."""
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100)
    name = save(root, "a.png", noise())
    assert rejection(root, name).reason is Reason.IMAGE_TOO_LARGE


@pytest.fixture
def web(root):
    """A real HTTP server on loopback over the root."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(root))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_urls_are_refused_unless_asked_for(root, web):
    """Off by default; the message says which option turns them on."""
    found = rejection(root, f"{web}/a.png")
    assert found.reason is Reason.URL_REFUSED
    assert "--allow-urls" in found.error


def test_a_url_is_read_when_allowed(root, web):
    """With --allow-urls the same bytes give the same pixels and hash."""
    save(root, "a.png", noise())
    local = ImageReader(root).read("a.png")
    remote = ImageReader(root, allow_urls=True).read(f"{web}/a.png")
    assert remote.sha256 == local.sha256
    assert remote.pixels.tobytes() == local.pixels.tobytes()


def test_a_url_that_fails_is_a_reason(root, web):
    """404 and a closed port end in `url_failed`, not in a dead worker."""
    for url in (f"{web}/missing.png", "http://127.0.0.1:9/a.png"):
        assert rejection(root, url, allow_urls=True).reason is Reason.URL_FAILED
