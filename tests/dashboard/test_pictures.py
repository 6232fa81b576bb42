"""Pictures of stored rows: encoded anew, bounded, and never one from elsewhere."""

import io

import pytest
from PIL import Image

from halp_worker.dashboard import pictures as pictures_module
from halp_worker.dashboard.pictures import NoPicture, Pictures

from .conftest import write_picture


@pytest.fixture
def root(tmp_path):
    write_picture(tmp_path / "images", "a.png")
    return tmp_path / "images"


def test_a_picture_is_a_jpeg_of_at_most_the_side_asked_for(root):
    """Whatever the file is: its own bytes are not given out."""
    with Image.open(io.BytesIO(Pictures(root).jpeg("a.png", "", 100))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (100, 50))


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("../secret.png", "outside"),
        ("/etc/hostname", "outside"),
        ("link.png", "outside"),
        ("none.png", "not found"),
        ("text.png", "not an image"),
        ("https://example.org/a.png", "URL"),
    ],
)
def test_what_is_no_picture_below_the_root_is_a_reason(root, image, why):
    """Links are followed before it is judged; URLs are not fetched."""
    write_picture(root.parent, "secret.png")
    (root / "link.png").symlink_to(root.parent / "secret.png")
    (root / "text.png").write_text("no picture")
    with pytest.raises(NoPicture, match=why):
        Pictures(root).jpeg(image, "", 100)


def test_without_a_root_no_picture_is_shown():
    """The reason says how to see them."""
    with pytest.raises(NoPicture, match="--image-root"):
        Pictures(None).jpeg("a.png", "", 100)


def test_a_file_that_has_changed_is_not_shown_as_the_one_that_was_asked_about(root):
    """The row says which bytes the worker read."""
    sha256 = write_picture(root, "a.png", "navy")
    assert Pictures(root).jpeg("a.png", sha256, 100)
    write_picture(root, "a.png", "maroon")
    with pytest.raises(NoPicture, match="has changed"):
        Pictures(root).jpeg("a.png", sha256, 100)


def test_pictures_are_kept_in_bounded_memory(root, monkeypatch):
    """The last ones, so that a page that is scrolled does not decode them again."""
    pictures = Pictures(root)
    size = len(pictures.jpeg("a.png", "", 100))
    monkeypatch.setattr(pictures_module, "_CACHE_BYTES", 3 * size)
    for number in range(5):
        write_picture(root, f"{number}.png")
        pictures.jpeg(f"{number}.png", "", 100)
        (root / f"{number}.png").unlink()
    assert pictures.jpeg("4.png", "", 100)
    with pytest.raises(NoPicture, match="not found"):
        pictures.jpeg("0.png", "", 100)
