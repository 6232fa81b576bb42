"""Image names that try to leave the root, to hang the reader or to fool it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from halp_producer.images import ImageRoot
from halp_worker.fates import Reason, Rejected, Retryable
from halp_worker.model.images import ImageReader

FUZZ = settings(settings.get_profile("fuzz"), max_examples=300)
INSIDE, OUTSIDE = (0, 200, 0), (200, 0, 0)
"""Colours: what may be read, and what may never be seen."""


def picture(path, colour):
    Image.new("RGB", (8, 8), colour).save(path, "PNG")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Good images, and around them all that must not be reached through them."""
    base = tmp_path_factory.mktemp("paths")
    folder = base / "root"
    (folder / "dir" / "deep").mkdir(parents=True)
    (base / "root-beside").mkdir()
    for name in (
        "a.png",
        "dir/b.png",
        "dir/deep/c.png",
        "a b.png",
        "100%25.png",
        "back\\slash.png",
    ):
        picture(folder / name, INSIDE)
    for name in ("secret.png", "root-beside/secret.png"):
        picture(base / name, OUTSIDE)
    links = {
        "inside": "a.png",
        "dirlink": "dir",
        "out.png": "../secret.png",
        "outdir": "..",
        "beside": "../root-beside",
        "absolute": str(base / "secret.png"),
        "top": "/",
        "loop": "loop",
        "ping": "pong",
        "pong": "ping",
        "dangling": "nothing",
        "zero": "/dev/zero",
        "stdin": "/dev/stdin",
        "memory": "/proc/self/mem",
        "environment": "/proc/self/environ",
        "descriptors": "/proc/self/fd",
        "self": ".",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (folder / "bytes").symlink_to(os.fsdecode(b"../\xff\n\x1b[31m"))
    (folder / "chain0").symlink_to("a.png")
    for number in range(1, 1500):
        (folder / f"chain{number}").symlink_to(f"chain{number - 1}")
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path has at most 108 bytes
        one.bind("socket.png")
        os.chdir(here)
    return folder


def end(root, name):
    """The fate of a name, with what holds for every fate checked: pixels, or its reason."""
    try:
        image = ImageReader(root).read(name).pixels
    except Rejected as rejected:
        reason, text = rejected.rejection.reason, rejected.rejection.error
    else:
        assert image.getpixel((3, 3)) == INSIDE, name
        return "pixels"
    assert text.isprintable(), text
    assert len(text) < 3_000
    return reason


NAMES = {
    "..": ["..", "../secret.png", "dir/../../secret.png", "./../root/../secret.png", "../root"],
    "beside, with the same beginning": ["../root-beside/secret.png", "beside/secret.png"],
    "absolute": ["/etc/passwd", "/", "//etc/passwd", "/proc/self/environ", "/dev/stdin"],
    "links": ["out.png", "outdir/secret.png", "absolute", "top/etc/passwd", "bytes"],
    "links to links": ["self/self/out.png", "dirlink/../../secret.png", "self/outdir/secret.png"],
    "circles": ["loop", "ping", "loop/a.png", "dangling", "self/" * 500 + "loop"],
    "devices": ["/dev/zero", "zero", "stdin", "memory", "environment", "descriptors/0"],
    "no files": ["dir", "dir/", ".", "self", "dirlink", "pipe.png", "socket.png", "/dev"],
    "through a file": ["a.png/x", "a.png/../../secret.png", "pipe.png/x"],
    "long": ["n" * 256, "n" * 5_000, "a/" * 5_000, "../" * 400_000 + "secret.png", "./" * 500_000],
    "not text": ["a\0.png", "\0", "\ud800.png", "\udcff", "a.png\0.jpg"],
    "looks": ["A.PNG", "a.png ", " a.png", "a.png.", "a.png\n", "\u202eagp.a", "a\u0301.png"],
    "percent": ["%2e%2e/secret.png", "..%2fsecret.png", "%2e%2e%2fsecret.png", "a%2epng"],
    "windows": ["..\\secret.png", "C:\\secret.png", "\\\\server\\share", "a.png::$DATA"],
    "shell": ["~/a.png", "$HOME", "`id`", "a.png; id", "*", "{a,b}.png", "| cat", "-"],
    "other schemes": ["file:///etc/passwd", "file:a.png", "data:image/png;base64,iVBORw0KGgo=",
                      "ftp://127.0.0.1/a.png", "gopher://x", "s3://x/y", "//127.0.0.1/a.png"],
    "PIL's own": ["label:@/etc/passwd", "msl:/etc/passwd", "ephemeral:a.png"],
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", NAMES)
def test_a_name_that_leads_nowhere_good_is_a_reason(root, kind):
    """It is never read, never waited for, never another exception."""
    for name in NAMES[kind]:
        assert end(root, name) in (
            *(Reason.IMAGE_MISSING, Reason.IMAGE_OUTSIDE_ROOT, Reason.IMAGE_UNREADABLE),
        ), name


GOOD = ["a.png", "./a.png", "dir//b.png", "dir/../a.png", "inside", "dirlink/b.png", "a b.png",
        "100%25.png", "back\\slash.png", "self/self/dir/deep/../b.png", "outdir/root/a.png",
        "../root/a.png", "chain30", "/../{root}/a.png", "{root}/dir/deep/c.png"]  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_roundabout_way_to_a_good_image_is_fine(root, name):
    """What counts is where it ends; `%25` is a name as it stands."""
    assert end(root, name.replace("{root}", str(root))) == "pixels"
    assert ImageRoot(root).problem(name.replace("{root}", str(root))) is None


def test_links_upon_links_end_in_a_reason_on_both_sides(root):
    """Fifteen hundred of them are more than the interpreter's stack."""
    assert end(root, "chain1499") is Reason.IMAGE_UNREADABLE
    assert "Too many symbolic links" in ImageRoot(root).problem("chain1499")


STEPS = ["..", ".", "", "a.png", "dir", "deep", "b.png", "c.png", "self", "outdir", "dirlink",
         "out.png", "beside", "secret.png", "root", "root-beside", "loop", "top", "A.PNG", " ",
         "%2e%2e", "\\", "~", "bytes", "pipe.png", "nothing", "n" * 300, "é", "\n",
         "\x1b[0m"]  # fmt: skip


@FUZZ
@given(steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=7), absolute=st.booleans())
def test_no_way_through_the_folders_leads_out(root, steps, absolute):
    """Any steps at all: what lies outside is never read; producer and worker judge alike."""
    name = "/".join([str(root)] * absolute + steps)
    if not name.strip() or name.startswith("/") > absolute:
        return
    fate, problem = end(root, name), ImageRoot(root).problem(name)
    if problem is None:
        assert fate == "pixels"
    if fate is Reason.IMAGE_OUTSIDE_ROOT:
        assert problem is not None


@FUZZ
@given(st.text(max_size=60))
def test_any_text_as_a_name_is_a_reason(root, name):
    """Surrogates, control characters, nothing at all."""
    if not name.lower().startswith(("http://", "https://")):
        assert end(root, name) != "pixels"


@pytest.mark.parametrize("changed", ["file", "folder", "top folder"])
def test_a_link_put_there_after_the_look_is_not_followed(tmp_path, monkeypatch, changed):
    """Between judging a path and opening it, somebody puts a link out of the root in its way."""
    away, folder = tmp_path / "away", tmp_path / "root"
    for base, colour in ((away, OUTSIDE), (folder, INSIDE)):
        (base / "x" / "y").mkdir(parents=True)
        picture(base / "x" / "y" / "a.png", colour)
    reader = ImageReader(folder)
    below = {"file": "x/y/a.png", "folder": "x/y", "top folder": "x"}[changed]
    resolve = Path.resolve

    def resolve_then_change(self, *arguments):
        found = resolve(self, *arguments)
        (folder / below).rename(tmp_path / "old")
        (folder / below).symlink_to(away / below)
        return found

    monkeypatch.setattr(Path, "resolve", resolve_then_change)
    with pytest.raises(Rejected, match="cannot be read"):
        reader.read("x/y/a.png")


def test_a_folder_that_may_be_passed_but_not_listed_is_passed(tmp_path):
    """`--x--x--x` on a folder is enough for those who know the name."""
    (tmp_path / "private").mkdir()
    picture(tmp_path / "private" / "a.png", INSIDE)
    (tmp_path / "private").chmod(0o111)
    try:
        assert end(tmp_path, "private/a.png") == "pixels"
    finally:
        (tmp_path / "private").chmod(0o755)


URLS = ["http://", "https://", "http:///a.png", "http://[::1", "http://[1:2:3", "http://\0/",
        "http://a b/", "http://127.0.0.1:99999/a.png", "http://127.0.0.1:-1/",
        "http://127.0.0.1:9/a\r\nHost: x",
        "HTTP://127.0.0.1:9/", "http://user:pw@127.0.0.1:9/a.png", "http://.../", "http://*/",
        "http://127.0.0.1:9/" + "a" * 100_000, "http://" + "a" * 70 + ":1/", "http://\u2028:9/",
        "http://\ud800/", "http://127.0.0.1:9/\ud800", "http://x\u0301\u200d:9",
        "https://127.0.0.1:9/%"]  # fmt: skip


@pytest.mark.parametrize("url", URLS, ids=lambda url: repr(url[:30]))
def test_a_url_that_is_none_is_a_fate(tmp_path, url):
    """With --allow-urls: refused for good or tried later; without: refused."""
    with pytest.raises(Rejected, match="--allow-urls") as caught:
        ImageReader(tmp_path).read(url)
    assert caught.value.rejection.error.isprintable()
    with pytest.raises((Rejected, Retryable)):
        ImageReader(tmp_path, allow_urls=True).read(url)
