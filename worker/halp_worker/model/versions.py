"""Which releases of transformers compute the right thing."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from packaging.version import Version

from halp_worker.fates import FatalError

FIRST_SUPPORTED: Final = Version("5.0")
FIRST_BROKEN: Final = Version("5.3.0")
FIRST_MENDED: Final = Version("5.5.4")
"""Between these, M-RoPE gives images wrong temporal positions (huggingface/transformers#45325)."""


def check_transformers(installed: str | None = None) -> None:
    """Raises FatalError if this transformers (default: the installed one) must not be used."""
    found = Version(installed or version("transformers"))
    if found < FIRST_SUPPORTED:
        raise FatalError(
            f"transformers {found} is too old: expected 5 or newer. "
            "Do: pip install -U 'halp-stream[worker]'"
        )
    if FIRST_BROKEN <= found < FIRST_MENDED:
        raise FatalError(
            f"transformers {found} computes wrong image positions for Qwen2.5-VL "
            f"({FIRST_BROKEN} to before {FIRST_MENDED} do): the states would be wrong. "
            "Do: pip install -U 'halp-stream[worker]'"
        )
