"""Reads where each tensor of a checkpoint lies: the headers of its safetensors files.

Knows the safetensors format and the index of a sharded checkpoint; reads no weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from halp_worker.fates import FatalError

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

_LFS_POINTER: Final = b"version https://git-lfs.github.com/spec/"

_LARGEST_HEADER: Final = 100_000_000
"""The limit of the safetensors library."""

_BITS: Final = {
    **{"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32},
    **{"F16": 16, "BF16": 16, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4},
}


@dataclass(frozen=True)
class TensorPlace:
    """One tensor in a file. dtype: in the words of safetensors. start: its first byte there."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def require_whole(path: Path, folder: Path) -> None:
    """Raises FatalError if the file is empty, or a Git LFS pointer in place of the file."""
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if not start:
        raise FatalError(f"checkpoint {folder}: {path.name} is empty: copy or download it again")
    if start == _LFS_POINTER:
        raise FatalError(
            f"checkpoint {folder}: {path.name} is a Git LFS pointer and not the file itself: run "
            "`git lfs install` and `git lfs pull` there, or use `hf download`"
        )


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads. Raises FatalError if there are none, or some are missing.

    A single file comes before an index, as in transformers.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise FatalError(f"checkpoint {folder}: {_instead_of_weights(folder)}")
    names = sorted(set(_weight_map(folder).values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FatalError(
            f"checkpoint {folder}: {len(missing)} of its {len(names)} weight files are missing: "
            f"{_some(missing)}: copy or download it again"
        )
    return [folder / name for name in names]


def find_tensors(folder: Path) -> dict[str, TensorPlace]:
    """Every tensor of the checkpoint by name. Raises FatalError naming the file that is not whole.

    The files must be those of `weight_files`, and hold what the index says.
    """
    places: dict[str, TensorPlace] = {}
    for path in weight_files(folder):
        require_whole(path, folder)
        for name, place in _read_header(path, folder).items():
            if name in places:
                raise FatalError(
                    f"checkpoint {folder}: {name} is in {places[name].file.name} and in "
                    f"{path.name}: files of two checkpoints are mixed; download it again"
                )
            places[name] = place
    if not (folder / SINGLE).is_file():
        wrong = [
            f"{name} ({file})"
            for name, file in _weight_map(folder).items()
            if name not in places or places[name].file.name != file
        ]
        if wrong:
            raise FatalError(
                f"checkpoint {folder}: {len(wrong)} weights are not where {INDEX} says: "
                f"{_some(wrong)}: files of two checkpoints are mixed; download it again"
            )
    return places


def _weight_map(folder: Path) -> Mapping[str, str]:
    index = folder / INDEX
    require_whole(index, folder)
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        whole = all(Path(file).name == file for file in weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise FatalError(f"checkpoint {folder}: {INDEX} is damaged: copy or download it again")
    return dict(weight_map)


def _read_header(path: Path, folder: Path) -> dict[str, TensorPlace]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _LARGEST_HEADER:
                raise ValueError("no header")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        places = {name: _place(path, 8 + length, entry) for name, entry in header.items()}
        end = max((place.start + place.size for place in places.values()), default=8 + length)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FatalError(
            f"checkpoint {folder}: {path.name} is no safetensors file, or is truncated: copy or "
            "download it again"
        ) from None
    if (size := path.stat().st_size) != end:
        raise FatalError(
            f"checkpoint {folder}: {path.name} has {size} bytes, expected {end}: copy or download "
            "it again"
        )
    return places


def _place(path: Path, data: int, entry: Mapping[str, Any]) -> TensorPlace:
    """data: where the tensors' bytes begin. Raises ValueError, KeyError or TypeError."""
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    bits = _BITS.get(entry["dtype"])
    if not 0 <= start <= end or (bits and math.prod(shape) * bits != (end - start) * 8):
        raise ValueError("offsets")
    return TensorPlace(path, entry["dtype"], shape, data + start, end - start)


def _instead_of_weights(folder: Path) -> str:
    """Why there are no weights to load, and what to do."""
    names = sorted(path.name for path in folder.iterdir())

    def ending(*suffixes: str) -> list[str]:
        return [name for name in names if name.endswith(suffixes)]

    if found := ending(".gguf"):
        return (
            f"its weights are a GGUF file ({found[0]}), which is for llama.cpp: use the "
            "checkpoint that it was made from"
        )
    if found := ending(".bin", ".pt", ".pth", ".ckpt"):
        return (
            f"its weights are pickles ({found[0]}), which can run any code and are not read: save "
            "it again with `model.save_pretrained(FOLDER)`, which writes safetensors"
        )
    if found := ending(".distcp"):
        return (
            f"its weights are a distributed training checkpoint ({found[0]}): save it again with "
            "`model.save_pretrained(FOLDER)`"
        )
    return f"has no weights: expected {SINGLE}, or {INDEX} and the files that it names"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
