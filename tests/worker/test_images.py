"""Image files as they come: each ends in pixels or in a clear reason."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import io
import os
import resource
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halp_worker.fates import Reason, Rejected, Retryable
from halp_worker.model import download, images
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


def setback(root, name, **options):
    with pytest.raises(Retryable) as caught:
        ImageReader(root, **options).read(name)
    return caught.value.setback


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


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN])
def test_a_disk_that_fails_for_now_is_no_fault_of_the_image(root, monkeypatch, number):
    """A network disk comes back: the job is tried again, with the error's words."""

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    save(root, "a.png", noise())
    monkeypatch.setattr(images.os, "open", fail)
    found = setback(root, "a.png")
    assert found.reason is Reason.IMAGE_UNAVAILABLE
    assert os.strerror(number) in found.error


def test_too_many_open_files_is_no_fault_of_the_image(root):
    """The limit is the process's; it has room again when others have closed theirs."""
    save(root, "a.png", noise())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        found = setback(root, "a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found.reason is Reason.IMAGE_UNAVAILABLE


def test_a_file_that_may_not_be_read_is_rejected(root, monkeypatch):
    """Permissions do not mend themselves."""

    def fail(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    save(root, "a.png", noise())
    monkeypatch.setattr(images.os, "open", fail)
    assert rejection(root, "a.png").reason is Reason.IMAGE_UNREADABLE


def test_an_image_root_that_is_gone_does_not_fail_the_run(root):
    """An unmounted disk would otherwise reject every question as missing."""
    name = save(root, "a.png", noise())
    reader = ImageReader(root)
    root.rename(root.parent / "away")
    with pytest.raises(Retryable, match="the image root is gone") as caught:
        reader.read(name)
    assert caught.value.setback.reason is Reason.IMAGE_UNAVAILABLE
    (root.parent / "away").rename(root)
    assert reader.read(name).pixels.mode == "RGB"


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError("out of memory error when reading image file")], ids=repr
)
def test_a_host_without_memory_for_an_image_tries_later(root, monkeypatch, error):
    """The image is within the limits: another time there may be room."""

    def fail(*arguments, **options):
        raise error

    save(root, "a.png", noise())
    monkeypatch.setattr(images.Image, "open", fail)
    assert setback(root, "a.png").reason is Reason.IMAGE_UNAVAILABLE


class Web(http.server.SimpleHTTPRequestHandler):
    """Files of the root; below `/odd/`, everything that servers do wrong."""

    ended: threading.Event

    def __init__(self, *args, **options):
        with contextlib.suppress(ConnectionError):  # clients that give up
            super().__init__(*args, **options)

    def log_message(self, *args):
        pass

    def do_GET(self):
        kind, _, argument = self.path.removeprefix("/odd/").partition("/")
        if not self.path.startswith("/odd/"):
            super().do_GET()
        elif kind == "status":
            self.send_error(int(argument))
        elif kind == "again":
            self.redirect(self.path)
        elif kind == "file":
            self.redirect("file:///etc/passwd")
        elif kind == "silent":
            self.ended.wait(30)
        elif kind == "cut":
            self.start("Content-Length: 1000")
            self.wfile.write(b"only this")
        elif kind == "drip-body":
            self.start("Content-Type: image/png")
            self.drip()
        elif kind == "drip-header":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: ")
            self.drip()

    def redirect(self, where):
        self.send_response(302)
        self.send_header("Location", where)
        self.end_headers()

    def start(self, header):
        self.wfile.write(f"HTTP/1.0 200 OK\r\n{header}\r\n\r\n".encode())

    def drip(self):
        while not self.ended.wait(0.02):
            self.wfile.write(b".")


@pytest.fixture
def web(root):
    """A real HTTP server on loopback over the root."""

    class Here(Web):
        ended = threading.Event()

        def __init__(self, *args):
            super().__init__(*args, directory=str(root))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Here)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Here.ended.set()
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


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_a_url_that_is_wrong_is_rejected(root, web, status):
    """The server has answered: asking again would say the same."""
    found = rejection(root, f"{web}/odd/status/{status}", allow_urls=True)
    assert found.reason is Reason.URL_FAILED
    assert str(status) in found.error


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again_later(root, web, status):
    """The queue delays and repeats; nothing is tried again at once."""
    found = setback(root, f"{web}/odd/status/{status}", allow_urls=True)
    assert found.reason is Reason.URL_FAILED
    assert str(status) in found.error


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/a.png", "http://nowhere.invalid/a.png"], ids=["closed", "no-host"]
)
def test_a_server_that_is_away_is_asked_again_later(root, url):
    """Networks and name servers come back."""
    assert setback(root, url, allow_urls=True).reason is Reason.URL_FAILED


def test_a_body_that_was_cut_off_is_asked_for_again(root, web):
    """Half a download is not half an image, and not the image's fault."""
    assert setback(root, f"{web}/odd/cut", allow_urls=True).reason is Reason.URL_FAILED


@pytest.mark.parametrize(
    "url",
    ["http://", "http://[::1/a.png", "http://a:port/a.png", f"http://{'x' * 70}.com/", "http://."],
)
def test_a_url_that_is_none_is_rejected(root, url):
    """Whatever is wrong with its text."""
    assert rejection(root, url, allow_urls=True).reason is Reason.URL_FAILED


@pytest.mark.parametrize("where", ["again", "file"])
def test_redirects_in_a_circle_and_to_files_are_rejected(root, web, where):
    """A redirect leads to another web address, or nowhere."""
    found = rejection(root, f"{web}/odd/{where}", allow_urls=True)
    assert found.reason is Reason.URL_FAILED
    assert "root:" not in found.error


def test_a_silent_server_is_given_up(root, web, monkeypatch):
    """After a time without a byte."""
    monkeypatch.setattr(download, "URL_TIMEOUT_SECONDS", 0.2)
    found = setback(root, f"{web}/odd/silent", allow_urls=True)
    assert found.reason is Reason.URL_FAILED
    assert "timed out" in found.error


@pytest.mark.parametrize("what", ["body", "header"])
def test_a_server_that_drips_is_given_up(root, web, monkeypatch, what):
    """Each byte comes in time; all of them together do not."""
    monkeypatch.setattr(download, "URL_TOTAL_SECONDS", 0.3)
    started = time.monotonic()
    found = setback(root, f"{web}/odd/drip-{what}", allow_urls=True)
    assert found.reason is Reason.URL_FAILED
    assert "took over 0.3 s" in found.error
    assert time.monotonic() - started < 10


def test_a_download_leaves_no_thread_and_no_open_file(root, web, wait_until):
    """A worker makes many of them."""
    save(root, "a.png", noise())
    reader = ImageReader(root, allow_urls=True)
    reader.read(f"{web}/a.png")
    before = len(list(Path("/dev/fd").iterdir()))
    reader.read(f"{web}/a.png")
    assert not [one for one in threading.enumerate() if isinstance(one, threading.Timer)]
    wait_until(lambda: len(list(Path("/dev/fd").iterdir())) <= before)  # the server's end, too


def test_a_url_of_a_large_file_is_not_read_to_its_end(root, web, monkeypatch):
    """The limit holds while it is read: servers lie about lengths."""
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100)
    save(root, "a.png", noise())
    assert rejection(root, f"{web}/a.png", allow_urls=True).reason is Reason.IMAGE_TOO_LARGE
