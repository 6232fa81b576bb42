"""`ArrayFormat`: where the chunks of one array are and how one is decoded, from its metadata.

Knows the codecs of this layout and no others: bytes or strings, blosc, crc32c, with or without
shards. Each checksum is compared. A chunk that is missing is never a fill value: whoever fetches
chunks finds out. The bytes themselves are undone by numcodecs, the library below zarr.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc
from numcodecs.vlen import VLenUTF8

_TOKENS_DIMS: Final = 3
"""Of a column with layers: (question, layer, hidden)."""
_CHECKSUM_BYTES: Final = 4
_BLOSC_HEADER: Final = 16
_LONGEST_FILE: Final = 2**63
_INDEX_ENTRY: Final = np.dtype("<u8")
_ABSENT: Final = 2**64 - 1
"""In a shard's index: this chunk is not here."""

_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "float32": np.dtype("<f4"),
    "int64": np.dtype("<i8"),
    "string": np.dtype(object),
}


@dataclass(frozen=True)
class ArrayFormat:
    """shape: of the array. dtype: float32, int64 or object (strings).
    chunk: shape of what is compressed as a whole. stored: shape of what one key holds: `chunk`, or
    that of a shard of chunks. separator: between the parts of a key.
    is_sharded: whether what a key holds is a shard, if of one chunk only.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: tuple[int, ...]
    stored: tuple[int, ...]
    separator: str
    is_sharded: bool

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> ArrayFormat:
        """Of a Zarr v3 array metadata document.

        Raises KeyError, TypeError or ValueError for anything that this layout does not write.
        """
        stored = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
        codecs, chunk = document["codecs"], stored
        is_sharded = codecs[0]["name"] == "sharding_indexed"
        if is_sharded:
            sharding = codecs[0]["configuration"]
            _expect("index codecs", _names(sharding["index_codecs"]), ["bytes", "crc32c"])
            _expect("index_location", sharding["index_location"], "end")
            _expect("codecs", len(codecs), 1)
            _expect("data_type", document["data_type"] == "string", False)
            codecs, chunk = sharding["codecs"], tuple(sharding["chunk_shape"])
        dtype = _DTYPES[document["data_type"]]
        first = "vlen-utf8" if dtype.kind == "O" else "bytes"
        _expect("codecs", _names(codecs), [first, "blosc", "crc32c"])
        if first == "bytes":
            _expect("endian", codecs[0]["configuration"]["endian"], "little")
        keys = document["chunk_key_encoding"]
        _expect("chunk_key_encoding", keys["name"], "default")
        separator = keys["configuration"]["separator"]
        _expect("separator", separator, ".")
        return cls(tuple(document["shape"]), dtype, chunk, stored, separator, is_sharded)

    def check_grid(self) -> None:
        """Raises ValueError for numbers that no reader should divide by, or make room for."""
        for whole, part, shard in zip(self.shape, self.chunk, self.stored, strict=True):
            for one in (whole, part, shard):
                if type(one) is not int or one < 1:
                    raise ValueError(f"expected lengths of 1 or more, got {one!r}")
            if part > whole or shard % part or shard >= whole + part:
                raise ValueError(f"chunks of {part} in shards of {shard} do not fit {whole} in all")
        vectors_from = 2 if len(self.shape) == _TOKENS_DIMS else 1
        if self.chunk[vectors_from:] != self.shape[vectors_from:]:
            raise ValueError(f"expected chunks of whole vectors, got chunks of {self.chunk}")

    def key(self, place: Sequence[int]) -> str:
        """Of the stored chunk or shard at this place of the grid, below the array."""
        return self.separator.join(["c", *map(str, place)])

    @property
    def index_bytes(self) -> int:
        """Length of a shard's index, with its checksum: the last bytes of the shard."""
        chunks = math.prod(self._chunks_in_a_shard)
        return chunks * 2 * _INDEX_ENTRY.itemsize + _CHECKSUM_BYTES

    def parse_index(self, value: bytes) -> npt.NDArray[np.uint64]:
        """(chunks along each axis, ..., 2): offset and length in bytes. Raises ValueError."""
        if len(value) != self.index_bytes:
            raise ValueError(f"index of {self.index_bytes} bytes expected, got {len(value)}")
        return _checked(value).view(_INDEX_ENTRY).reshape(*self._chunks_in_a_shard, 2)

    def place_in(
        self, index: npt.NDArray[np.uint64], chunk: Sequence[int]
    ) -> tuple[int, int] | None:
        """(offset, length) of a chunk of the shard; None if it is not there. Raises ValueError."""
        offset, length = (int(one) for one in index[tuple(chunk)])
        if offset == _ABSENT:
            return None
        longest = math.prod(self.chunk) * self.dtype.itemsize + _BLOSC_HEADER + _CHECKSUM_BYTES
        if offset >= _LONGEST_FILE or length > longest:
            raise ValueError(f"index: at most {longest} bytes expected, got {length} at {offset}")
        return offset, length

    def decode(self, value: bytes) -> npt.NDArray[Any]:
        """One chunk, of shape `chunk`. Raises ValueError where it is not what was written."""
        content = _checked(value)
        # Blosc itself believes what its header says of the length.
        if int.from_bytes(content[12:_BLOSC_HEADER].tobytes(), "little") != len(content):
            raise ValueError("is not as long as its header says")
        try:
            raw = blosc.decompress(content)
            if self.dtype.kind == "O":
                values: npt.NDArray[Any] = VLenUTF8().decode(raw)
            else:
                values = np.frombuffer(raw, self.dtype)
        except (RuntimeError, MemoryError) as error:  # blosc's
            raise ValueError(str(error)) from error
        if values.size != math.prod(self.chunk):
            raise ValueError(f"expected {math.prod(self.chunk)} values, got {values.size}")
        return values.reshape(self.chunk)

    @property
    def _chunks_in_a_shard(self) -> tuple[int, ...]:
        return tuple(whole // part for whole, part in zip(self.stored, self.chunk, strict=True))


def _checked(value: bytes) -> npt.NDArray[np.uint8]:
    """Without the checksum, which is compared."""
    if len(value) <= _CHECKSUM_BYTES:
        raise ValueError(f"is cut short: {len(value)} bytes")
    content = np.frombuffer(value, np.uint8)[:-_CHECKSUM_BYTES]
    expected = int.from_bytes(value[-_CHECKSUM_BYTES:], "little")
    if google_crc32c.value(content) != expected:
        raise ValueError("its checksum (crc32c) is not that of its bytes")
    return content


def _names(codecs: Any) -> list[str]:
    return [codec["name"] for codec in codecs]


def _expect(what: str, got: object, expected: object) -> None:
    if got != expected:
        raise ValueError(f"{what}: expected {expected}, got {got}")
