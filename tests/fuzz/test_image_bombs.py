"""Small image files that ask for much: bounded memory, bounded time, and a clear end."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("bombs.py")
BOMBS = runpy.run_path(str(PROGRAM))


@pytest.fixture(scope="module")
def ends() -> dict[str, dict[str, Any]]:
    """What became of each file, decoded in a process with limits."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=200, check=True
    )
    found = (json.loads(line) for line in done.stdout.splitlines())
    return {one["name"]: one for one in found}


@pytest.mark.parametrize("name", BOMBS["TOO_LARGE"])
def test_what_declares_too_many_pixels_is_refused_unread(ends, name):
    """The declared size decides: no memory is taken for pixels."""
    end = ends[name]
    assert end["end"] == "image_too_large", end
    assert "bomb.png" in end["error"]
    assert end["peak_mib"] < 200
    assert end["seconds"] < 2


@pytest.mark.parametrize("name", BOMBS["UNREADABLE"])
def test_what_unpacks_to_far_more_than_it_says_is_damaged(ends, name):
    """Texts, profiles and tags that grow a thousandfold are refused before they are unpacked."""
    end = ends[name]
    assert end["end"] == "image_unreadable", end
    assert end["error"].isprintable()
    assert "bomb.png" in end["error"]
    assert end["peak_mib"] < 700
    assert end["seconds"] < 10


@pytest.mark.parametrize("name", BOMBS["READABLE"])
def test_what_is_odd_but_whole_is_read_within_bounds(ends, name):
    """The first page of very many, a hundred megapixels, tags that overlap."""
    end = ends[name]
    assert end["end"] == "pixels", end
    assert end["mode"] == "RGB"
    assert end["peak_mib"] < 2_400
    assert end["seconds"] < 15
