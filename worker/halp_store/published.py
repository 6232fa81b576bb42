"""`PublishedGroup`: a segment or a generation being read; damage becomes a named error.

Fetches the chunks that are asked for and no others. A missing one is refused: Zarr readers take it
for "all fill values".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from halp_store.chunks import ArrayFormat
from halp_store.errors import DamagedSegment, ForeignSegment, GoneSegment
from halp_store.names import group_prefix
from halp_store.root import Root
from halp_store.segment import array_documents, group_attributes, parse_json
from halp_store.storage import METADATA, Storage

_TOKENS_DIMS: Final = 3
"""Of a column with layers: (question, layer, hidden)."""


class PublishedGroup:
    """Reads the group's metadata once. Raises GoneSegment if there is none, ForeignSegment if it
    does not belong to the store, or DamagedSegment.

    name: of a segment, or `compacted/<number>`. root: None, for who reports each difference itself.
    May be used from several threads.
    """

    def __init__(self, storage: Storage, name: str, root: Root | None) -> None:
        self._storage, self._name, self._prefix = storage, name, group_prefix(name)
        self._formats: dict[str, ArrayFormat] = {}
        self._indices: dict[str, npt.NDArray[np.uint64]] = {}
        document = storage.read(f"{self._prefix}/{METADATA}")
        if document is None:
            raise self._gone(None, "is missing, although it was published")
        try:
            self._documents = array_documents(document)
            self._attributes = group_attributes(document) or {}
        except ValueError as error:
            raise self._damage(None, str(error)) from error
        if root is not None:
            self._check_origin(root)

    def read(
        self,
        array: str,
        shape: tuple[int, ...],
        rows: npt.NDArray[np.int64] | None = None,
        layers: Sequence[int] | None = None,
    ) -> npt.NDArray[Any]:
        """Rows of a column, in the order asked for. Raises DamagedSegment or GoneSegment.

        shape: what the column must have, all rows and layers. rows: all without it. layers: indices
        along axis 1; all without it; only their chunks are read.
        """
        dtype = self._format(array, shape).dtype
        wanted = np.arange(shape[0]) if rows is None else rows
        tail = shape[1:] if layers is None else (len(layers), *shape[2:])
        result = np.empty((len(wanted), *tail), dtype)
        self.fill(result, np.arange(len(wanted)), array, shape, wanted, layers)
        return result

    def fill(
        self,
        out: npt.NDArray[Any],
        targets: npt.NDArray[np.int64],
        array: str,
        shape: tuple[int, ...],
        rows: npt.NDArray[np.int64],
        layers: Sequence[int] | None = None,
    ) -> None:
        """As `read`, into `out[targets]`."""
        layout = self._format(array, shape)
        picked = range(shape[1]) if layers is None and len(shape) == _TOKENS_DIMS else layers
        blocks = rows // layout.chunk[0]
        order = np.argsort(blocks, kind="stable")
        for some in np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1):
            if not len(some):
                continue
            block = int(blocks[some[0]])
            inside = _as_slice(rows[some] - block * layout.chunk[0])
            into = _as_slice(targets[some])
            if picked is None:
                place = (block, *(0 for _ in shape[1:]))
                out[into] = self._chunk(array, layout, place)[inside]
                continue
            for number, layer in enumerate(picked):
                chunk = self._chunk(array, layout, (block, layer // layout.chunk[1], 0))
                out[into, number] = chunk[inside, layer % layout.chunk[1]]

    def check_own_metadata(self, array: str) -> None:
        """Raises DamagedSegment unless the array's own zarr.json says what the group's says.

        This room reads the group's; other Zarr readers may take the array's own.
        """
        document = self._storage.read(f"{self._prefix}/{array}/{METADATA}")
        if document is None:
            raise self._damage(array, "its own zarr.json is missing")
        try:
            same = parse_json(document) == self._documents.get(array)
        except ValueError as error:
            raise self._damage(array, f"its own zarr.json cannot be read ({error})") from error
        if not same:
            raise self._damage(array, "its own zarr.json differs from the group's")

    def stored_keys(self, array: str, shape: tuple[int, ...]) -> Iterator[str]:
        """The keys of all chunks or shards that the array must have, below the group."""
        layout = self._format(array, shape)
        counts = (-(-whole // part) for whole, part in zip(shape, layout.stored, strict=True))
        for place in itertools.product(*map(range, counts)):
            yield f"{array}/{layout.key(place)}"

    def _check_origin(self, root: Root) -> None:
        root.check_stamp(self._storage.where, self._name, self._attributes)
        if root.store_id is None:
            # Without a digest of the configuration in the stamp, the layers are the best sign.
            layers = self.read("layer", (len(root.layout.layers),)).tolist()
            if layers != list(root.layout.layers):
                what = f"layers: expected {list(root.layout.layers)}, got {layers}"
                raise ForeignSegment(self._storage.where, self._name, what)

    def _format(self, array: str, shape: tuple[int, ...]) -> ArrayFormat:
        try:
            layout = self._formats.get(array) or ArrayFormat.from_document(self._documents[array])
            if layout.shape != shape:
                raise self._damage(array, f"expected shape {shape}, got {layout.shape}")
            layout.check_grid()
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise self._damage(array, f"metadata cannot be read ({error})") from error
        self._formats[array] = layout
        return layout

    def _chunk(self, array: str, layout: ArrayFormat, chunk: tuple[int, ...]) -> npt.NDArray[Any]:
        parts = tuple(
            whole // part for whole, part in zip(layout.stored, layout.chunk, strict=True)
        )
        key = layout.key([one // many for one, many in zip(chunk, parts, strict=True)])
        path = f"{self._prefix}/{array}/{key}"
        what = f"chunk {key}"
        value: bytes | None
        if not layout.is_sharded:
            value = self._storage.read(path)
        else:
            inside = tuple(one % many for one, many in zip(chunk, parts, strict=True))
            what = f"shard {key}, chunk {inside} of it"
            value = self._from_shard(array, layout, key, inside)
        if value is None:
            raise self._gone(array, f"{what} is missing")
        try:
            return layout.decode(value)
        except ValueError as error:
            raise self._damage(array, f"{what} cannot be decoded ({error})") from error

    def _from_shard(
        self, array: str, layout: ArrayFormat, key: str, inside: tuple[int, ...]
    ) -> bytes | None:
        path = f"{self._prefix}/{array}/{key}"
        index = self._indices.get(path)
        if index is None:
            tail = self._storage.read_range(path, -layout.index_bytes, layout.index_bytes)
            if tail is None:
                return None
            try:
                index = layout.parse_index(tail)
            except ValueError as error:
                raise self._damage(array, f"shard {key}: {error}") from error
            self._indices[path] = index
        try:
            place = layout.place_in(index, inside)
        except ValueError as error:
            raise self._damage(array, f"shard {key}: {error}") from error
        if place is None:
            return None
        return self._storage.read_range(path, *place)

    def _damage(self, array: str | None, what: str) -> DamagedSegment:
        return DamagedSegment(self._storage.where, self._name, array, what)

    def _gone(self, array: str | None, what: str) -> GoneSegment:
        return GoneSegment(self._storage.where, self._name, array, what)


def _as_slice(indices: npt.NDArray[np.int64]) -> slice | npt.NDArray[np.int64]:
    """The same, as a slice if they follow each other: that copies in one go."""
    first, last = int(indices[0]), int(indices[-1])
    follow = last - first == len(indices) - 1 and bool((np.diff(indices) == 1).all())
    return slice(first, last + 1) if follow else indices
