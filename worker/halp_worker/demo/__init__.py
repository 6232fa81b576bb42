"""The demo room: a synthetic world, a small model that answers questions about it, the main job.

`SHAPES` and `HELD_OUT` are package data: what `training` wrote. Importing this loads nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

SHAPES: Final = Path(__file__).parent / "shapes"
"""A Qwen2.5-VL of 1.9 M parameters that answers questions about coloured shapes: a checkpoint
folder as the hub lays it out, and `training.json`, how it came to be and how good it is."""

HELD_OUT: Final = Path(__file__).parent / "held_out"
"""`images/` and `dataset.jsonl`: scenes it never saw, with questions and their right answers."""
