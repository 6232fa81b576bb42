"""Digests of a checkpoint: what makes it the same model wherever it is mounted.

A 7B model has 16 GB. Reading all of it takes a minute or more, so of each large tensor three pieces
are read: a training run, a merge or a quantisation changes all of a tensor. What changes only some
numbers between the pieces of one tensor is not seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from halp_worker.model.tensor_files import INDEX, TensorPlace

PREFIX: Final = "sha256-tensors:"
"""Begins these digests; those of stores before layout version 3 begin with `sha256:`."""

_WHOLE_BYTES: Final = 1 << 20
"""Tensors up to this size are hashed whole: all norms and biases, and most of a small model."""

_PIECE_BYTES: Final = 64 << 10
"""Of each larger tensor the first, the middle and the last piece of this size are hashed."""

_FILES: Final = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Endings of the files besides the weights that change a number or an answer."""

_TEMPLATES: Final = "additional_chat_templates"
"""The folder of named chat templates: `default.jinja` is the model's where there is no other."""

_SAMPLED_PIECES: Final = 64


def weights_digest(places: Mapping[str, TensorPlace]) -> str:
    """Digest of every tensor's name, type, shape and bytes, in whichever files they are."""
    digest = hashlib.sha256()
    for name, place in sorted(places.items()):
        digest.update(f"{name}\0{place.dtype}\0{place.shape}\0".encode())
        with place.file.open("rb") as file:
            for start, size in _pieces(place):
                file.seek(start)
                digest.update(file.read(size))
    return f"{PREFIX}{digest.hexdigest()[:32]}"


def _pieces(place: TensorPlace) -> Iterator[tuple[int, int]]:
    """(start, size) of what is read of a tensor."""
    if place.size <= _WHOLE_BYTES:
        yield place.start, place.size
        return
    last = place.size - _PIECE_BYTES
    for offset in (0, last // 2, last):
        yield place.start + offset, _PIECE_BYTES


def folder_digest(folder: Path, weights: str) -> str:
    """Digest of a folder: `weights`, and its configuration, tokenizer and processor files."""
    digest = hashlib.sha256(weights.encode())
    for path in [*sorted(folder.iterdir()), *sorted((folder / _TEMPLATES).glob("*.jinja"))]:
        if path.suffix in _FILES and path.name != INDEX and path.is_file():
            content = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
    return f"{PREFIX}{digest.hexdigest()[:32]}"


def sampled_digest(folder: Path) -> str:
    """Digest of a folder as stores before layout version 3 have it: only to go on writing those.

    Weight files count in 64 pieces by offset, which can miss most tensors.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in {".json", ".jinja", ".txt", ".safetensors"}:
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if path.suffix != ".safetensors" or size <= _SAMPLED_PIECES * _PIECE_BYTES:
                digest.update(file.read())
                continue
            for piece in range(_SAMPLED_PIECES):
                file.seek((size - _PIECE_BYTES) * piece // (_SAMPLED_PIECES - 1))
                digest.update(file.read(_PIECE_BYTES))
    return f"sha256:{digest.hexdigest()[:32]}"
