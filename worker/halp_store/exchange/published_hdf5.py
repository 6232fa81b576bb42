"""The published HDF5 layout: one group per question id. Written and read here, nowhere else.

    <question id>/
        question, image_id, ground_truth_answer, answer     one text each
        vision_only_representation                          (V,) or (D,) float32
        vision_token_representation/layer_<i>               (D,) float32, a dataset per layer
        query_token_representation/layer_<i>                (D,) float32

Nothing else is in a group. The file itself may have the attribute `MARK`, a JSON object that says
where it came from: scripts that loop over the groups do not see it.

Refuses ids and texts that HDF5 cannot hold as they are: a "/" in an id would make two groups of it,
and no variable-length string holds a NUL character.

Not guaranteed: that libhdf5 comes back from a damaged file. The format has no checksums: most
damage is an error here, some is other numbers, and one file in hundreds keeps it busy for good.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from types import TracebackType
from typing import Any, Final, Self

import h5py
import numpy as np
import numpy.typing as npt

from halp_store.exchange.unfinished import MARK

TEXTS: Final = ("question", "image_id", "ground_truth_answer", "answer")
VISION: Final = "vision_only_representation"
VISION_TOKEN: Final = "vision_token_representation"  # noqa: S105 - a token of a prompt
QUERY_TOKEN: Final = "query_token_representation"  # noqa: S105 - likewise

_LAYER: Final = re.compile(r"layer_(0|[1-9][0-9]{0,5})")
_FIELDS: Final = frozenset({*TEXTS, VISION, VISION_TOKEN, QUERY_TOKEN})

# A hidden size is some thousands; a damaged shape may be anything, and would be allocated.
_MOST_VALUES: Final = 2**20

Vector = npt.NDArray[np.float32]
"""One dimension."""


@dataclass(frozen=True)
class PublishedRow:
    """One group. A field that is left out is not written; `read_row` finds all of them.

    texts: of `TEXTS`. vision: (V,) or (D,). tokens: `VISION_TOKEN` and `QUERY_TOKEN` -> layer ->
    (D,). extra: what else is in the group and is one value; never written.
    left_out: names of what else is in the group.
    """

    question_id: str
    texts: Mapping[str, str]
    vision: Vector | None
    tokens: Mapping[str, Mapping[int, Vector]]
    extra: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


class BadGroup(ValueError):  # noqa: N818 - as in `halp_store.errors`
    """A group is not what the layout says. The message is the reason, without file and group."""


def is_group_name(question_id: str) -> bool:
    """Whether a group of this name is one group, found under exactly this name."""
    return question_id not in {"", "."} and not {"/", "\0"} & set(question_id)


def is_text(value: str) -> bool:
    return "\0" not in value


class PublishedWriter:
    """A new file; a context manager. Raises OSError."""

    def __init__(self, path: str | PathLike[str], origin: Mapping[str, Any]) -> None:
        self._file = h5py.File(path, "x")
        # Of variable length: those are not bound by the 64 KB of an attribute.
        self._file.attrs[MARK] = json.dumps(origin)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, row: PublishedRow) -> None:
        """A group that is not there yet, with names and texts that HDF5 can hold."""
        group = self._file.create_group(row.question_id)
        for name, text in row.texts.items():
            group[name] = text
        if row.vision is not None:
            group[VISION] = row.vision
        for name, layers in row.tokens.items():
            tokens = group.create_group(name)
            for layer, values in layers.items():
                tokens[f"layer_{layer}"] = values


class PublishedReader:
    """A file of the layout, whoever wrote it; a context manager. Raises OSError."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self._file = h5py.File(path, "r")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._file)

    def __iter__(self) -> Iterator[str | bytes]:
        """Names of the groups, in HDF5's order; bytes where one is not UTF-8."""
        return iter(self._file)

    @property
    def origin(self) -> Mapping[str, Any]:
        """What an export of this project says of itself; empty for any other file."""
        try:
            found = json.loads(self._file.attrs[MARK])
        except (KeyError, OSError, TypeError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def read_row(self, name: str | bytes) -> PublishedRow:
        """Raises BadGroup for whatever is wrong with that group."""
        if not isinstance(name, str):
            raise BadGroup("its name is not UTF-8")
        try:
            return self._row(name)
        except BadGroup:
            raise
        # What h5py raises for damage depends on where it is; h5py has no error of its own.
        except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError) as error:
            raise BadGroup(f"cannot be read ({error})") from error

    def _row(self, name: str) -> PublishedRow:
        # A link may lead out of the file, to any other one of this machine.
        if not isinstance(self._file.get(name, getlink=True), h5py.HardLink):
            raise BadGroup("expected a group, got a link")
        group = self._file[name]
        if not isinstance(group, h5py.Group):
            raise BadGroup("expected a group, got a dataset")
        if missing := sorted(_FIELDS - set(group)):
            raise BadGroup(f"has no {', '.join(missing)}")
        tokens = {one: _layers(group, one) for one in (VISION_TOKEN, QUERY_TOKEN)}
        extra, left_out = _extra(group)
        texts = {one: _text(_dataset(group, one), one) for one in TEXTS}
        return PublishedRow(name, texts, _vector(group, VISION), tokens, extra, left_out)


def usual_shape(rows: list[PublishedRow]) -> tuple[tuple[int, ...], int, int] | None:
    """(layers, D, size of the vision vector) that most rows have; None without rows."""
    shapes = Counter(one for row in rows if (one := shape_of(row)))
    return shapes.most_common(1)[0][0] if shapes else None


def shape_of(row: PublishedRow) -> tuple[tuple[int, ...], int, int] | None:
    """(layers, D, size of the vision vector); None where its vectors do not agree."""
    layers = {tuple(sorted(one)) for one in row.tokens.values()}
    sizes = {len(values) for one in row.tokens.values() for values in one.values()}
    if len(layers) != 1 or len(sizes) != 1 or row.vision is None:
        return None
    return layers.pop(), sizes.pop(), len(row.vision)


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise BadGroup(f"{name}: expected a dataset, got a link")
    found = group[name]
    if not isinstance(found, h5py.Dataset):
        raise BadGroup(f"{name}: expected a dataset, got a group")
    return found


def _text(dataset: h5py.Dataset, name: str) -> str:
    value = _one(dataset)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise BadGroup(f"{name}: expected UTF-8 ({error})") from error
    if not isinstance(value, str):
        raise BadGroup(f"{name}: expected a text, got {dataset.dtype} {dataset.shape}")
    return value


def _one(dataset: h5py.Dataset) -> Any:
    """The value of a dataset that has one, or None."""
    if dataset.shape is None or dataset.size != 1:
        return None
    value = np.asarray(dataset[()]).reshape(-1)[0]
    return value.item() if isinstance(value, np.generic) else value


def _layers(group: h5py.Group, name: str) -> dict[int, Vector]:
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise BadGroup(f"{name}: expected a group, got a link")
    tokens = group[name]
    if not isinstance(tokens, h5py.Group):
        raise BadGroup(f"{name}: expected a group of layers, got a dataset")
    found: dict[int, Vector] = {}
    for layer in tokens:
        number = _LAYER.fullmatch(layer)
        if number is None:
            raise BadGroup(f"{name}: expected layer_<number>, got {layer!r}")
        found[int(number[1])] = _vector(tokens, layer, f"{name}/")
    if not found:
        raise BadGroup(f"{name}: has no layers")
    return found


def _vector(group: h5py.Group, name: str, above: str = "") -> Vector:
    dataset = _dataset(group, name)
    longest = max(dataset.shape or (0,))
    if dataset.dtype.kind != "f" or not 0 < longest == dataset.size <= _MOST_VALUES:
        what = f"{dataset.dtype} {dataset.shape}"
        raise BadGroup(f"{above}{name}: expected one vector of floats, got {what}")
    values = np.asarray(dataset[()]).reshape(-1)
    if not np.isfinite(values).all():
        raise BadGroup(f"{above}{name}: has values that are not finite")
    with np.errstate(over="ignore"):
        taken = values.astype(np.float32)
    if not np.array_equal(taken, values):
        raise BadGroup(f"{above}{name}: {dataset.dtype} with values that float32 does not hold")
    return taken


def _extra(group: h5py.Group) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Texts and numbers beside the layout's fields; and the names of the rest."""
    extra: dict[str, Any] = {}
    left_out: list[str] = []
    for name in sorted(set(group) - _FIELDS):
        value = None
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            found = group[name]
            value = _one(found) if isinstance(found, h5py.Dataset) else None
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if isinstance(value, str | int | float) and value == value:
            extra[name] = value
        else:
            left_out.append(name)
    return extra, tuple(left_out)
