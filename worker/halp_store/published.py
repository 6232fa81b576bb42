"""`PublishedSegment`: one segment being read, with all damage turned into a named error.

zarr 3.1 takes a missing chunk for "all fill values", so the chunks are fetched here, a missing
one is refused, and zarr decodes (and checks) what was fetched.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy.typing as npt
import zarr
from zarr.core.array import AsyncArray
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore, StorePath

from halp_store.errors import DamagedSegment
from halp_store.segment import array_documents, parse_json
from halp_store.storage import METADATA, SEGMENTS, Storage


class PublishedSegment:
    """Reads the group's metadata once. Raises DamagedSegment if it cannot."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name
        document = storage.read(f"{SEGMENTS}/{name}/{METADATA}")
        if document is None:
            raise self._damage(None, "is missing, although it was published")
        try:
            self._documents = array_documents(document)
        except ValueError as error:
            raise self._damage(None, str(error)) from error

    def read(
        self, array: str, shape: tuple[int, ...], layer: int | None = None
    ) -> npt.NDArray[Any]:
        """A column of this segment. Raises DamagedSegment.

        shape: what the column must have, all layers. layer: index along axis 1, which then falls
        away; only its chunks are read.
        """
        fetched: dict[str, Buffer] = {}
        try:
            opened = self._open(array, fetched)
        except (KeyError, TypeError, ValueError) as error:
            raise self._damage(array, f"metadata cannot be read ({error})") from error
        if opened.shape != shape:
            raise self._damage(array, f"expected shape {shape}, got {opened.shape}")
        buffer = default_buffer_prototype().buffer
        counts = (-(-length // chunk) for length, chunk in zip(shape, opened.chunks, strict=True))
        for chunk in itertools.product(*map(range, counts)):
            if layer is not None and chunk[1] != layer // opened.chunks[1]:
                continue
            key = opened.metadata.encode_chunk_key(chunk)
            value = self._storage.read(f"{SEGMENTS}/{self._name}/{array}/{key}")
            if value is None:
                raise self._damage(array, f"chunk {key} is missing")
            fetched[key] = buffer.from_bytes(value)
        try:
            return opened[...] if layer is None else opened[:, layer]  # type: ignore[return-value]
        except (ValueError, RuntimeError) as error:
            raise self._damage(array, f"cannot be decoded ({error})") from error

    def check_own_metadata(self, array: str) -> None:
        """Raises DamagedSegment unless the array's own zarr.json says what the segment's says.

        This room reads the segment's; other Zarr readers may take the array's own.
        """
        document = self._storage.read(f"{SEGMENTS}/{self._name}/{array}/{METADATA}")
        if document is None:
            raise self._damage(array, "its own zarr.json is missing")
        try:
            same = parse_json(document) == self._documents.get(array)
        except ValueError as error:
            raise self._damage(array, f"its own zarr.json cannot be read ({error})") from error
        if not same:
            raise self._damage(array, "its own zarr.json differs from the segment's")

    def _open(self, array: str, fetched: dict[str, Buffer]) -> zarr.Array[Any]:
        place = StorePath(MemoryStore(fetched))
        return zarr.Array(AsyncArray.from_dict(place, self._documents[array]))

    def _damage(self, array: str | None, what: str) -> DamagedSegment:
        return DamagedSegment(self._storage.where, self._name, array, what)
