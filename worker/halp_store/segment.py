"""`Segment`: one flush as a Zarr v3 group, built in memory, and how a published one is recognised.

Knows the bytes of a segment: arrays, codecs, chunks, attributes. Refuses to know where they go.
A segment opens with plain `zarr.open_group` and plain `xarray.open_zarr`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from halp_store.arrays import add_array
from halp_store.features import FeatureBatch
from halp_store.layout import LAYOUT_VERSION, READABLE_VERSIONS, TEXT_COLUMNS
from halp_store.storage import METADATA

STAMP: Final = ("layout_version", "store_id", "fingerprint_digest")
"""Attributes of segments and generations that say which store they were written for."""

TOMBSTONE: Final = "tombstone"
"""Attribute of a zarr.json that stands in a segment's place: there is no segment."""

TOMBSTONE_DOCUMENT: Final = json.dumps(
    {"zarr_format": 3, "node_type": "group", "attributes": {TOMBSTONE: True}}
).encode()
"""That zarr.json. Whoever creates it first has fenced the segment; see `halp_store.fence`."""


@dataclass(frozen=True)
class Segment:
    """name: below `segments/`. nonce: what proves that a published zarr.json is this one.
    staged: key below the segment -> bytes, all but the zarr.json of the group.
    metadata: the group's zarr.json, with the metadata of all arrays consolidated.
    """

    name: str
    nonce: str
    staged: Mapping[str, bytes]
    metadata: bytes


@dataclass(frozen=True)
class Header:
    """What the index needs of a published segment. Row i has the i-th id and content hash.

    attributes: of the group, with the stamp of the store that it was written for.
    """

    attributes: Mapping[str, Any]
    nonce: str
    question_ids: tuple[str, ...]
    content_hashes: tuple[str, ...]


def build_segment(
    features: FeatureBatch,
    *,
    name: str,
    stamp: Mapping[str, Any],
    provenance: Mapping[str, Any],
    created: str,
) -> Segment:
    """Encode all rows of `features` (at least one). stamp: of the store's `Root`. created: an ISO
    8601 time."""
    values: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(values), zarr_format=3)
    layout = features.layout
    _add(group, "layer", ("layer",), np.asarray(layout.layers, np.int64))
    for column in TEXT_COLUMNS:
        _add(group, column, ("question",), np.array(features.text[column], dtype=object))
    numbers = features.numbers
    for column, (dims, _) in layout.number_columns().items():
        _add(group, column, ("question", *dims), numbers[column])
    staged = {key: value.to_bytes() for key, value in values.items() if key != METADATA}
    nonce = uuid.uuid4().hex
    attributes = {
        **stamp,
        # The CF attribute from which xarray learns that the ids are a coordinate.
        "coordinates": "question_id",
        "question_ids": features.text["question_id"],
        "content_hashes": features.text["content_hash"],
        "nonce": nonce,
        "created": created,
        "provenance": dict(provenance),
    }
    return Segment(name, nonce, staged, group_document(attributes, staged))


def group_attributes(document: bytes) -> dict[str, Any] | None:
    """The attributes in the zarr.json of a segment or a generation; None for a tombstone.

    Raises ValueError saying what is wrong with it, the layout version above all.
    """
    parsed = parse_json(document)
    attributes = parsed.get("attributes") if isinstance(parsed, dict) else None
    if not isinstance(attributes, dict):
        raise ValueError("expected the metadata of a Zarr group, got something else")
    if attributes.get(TOMBSTONE):
        return None
    version = attributes.get("layout_version")
    if version not in READABLE_VERSIONS:
        raise ValueError(f"layout version: expected {LAYOUT_VERSION}, got {version!r}")
    return attributes


def parse_header(document: bytes) -> Header | None:
    """The header in a segment's zarr.json; None for a tombstone.

    Raises ValueError saying what is wrong with it.
    """
    attributes = group_attributes(document)
    if attributes is None:
        return None
    nonce = attributes.get("nonce")
    ids, hashes = attributes.get("question_ids"), attributes.get("content_hashes")
    if not (isinstance(nonce, str) and _are_texts(ids) and _are_texts(hashes)):
        raise ValueError("expected attributes nonce, question_ids and content_hashes")
    if len(ids) != len(hashes):
        raise ValueError(f"expected as many content_hashes as ids, got {len(hashes)}, {len(ids)}")
    "".join([*ids, *hashes]).encode()  # a ValueError too, for a lone surrogate: \\ud800
    return Header(attributes, nonce, tuple(ids), tuple(hashes))


def parse_json(document: bytes) -> Any:
    """Raises ValueError for all that is not JSON, and for JSON that is nested too deeply."""
    try:
        return json.loads(document)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def array_documents(document: bytes) -> dict[str, dict[str, Any]]:
    """array -> its metadata, from a segment's zarr.json. Raises ValueError if it has none."""
    try:
        found: dict[str, dict[str, Any]] = parse_json(document)["consolidated_metadata"]["metadata"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected consolidated metadata, {error} is missing") from error
    return found


def _add(group: zarr.Group, name: str, dims: tuple[str, ...], values: npt.NDArray[Any]) -> None:
    # One chunk per layer, so that one layer is read without the rest; the others are one chunk.
    chunks = tuple(
        1 if dim == "layer" and len(dims) > 1 else length
        for dim, length in zip(dims, values.shape, strict=True)
    )
    array = add_array(group, name, dims, values.shape, values.dtype, chunks)
    array[...] = values


def group_document(attributes: Mapping[str, Any], staged: Mapping[str, bytes]) -> bytes:
    """As `zarr.consolidate_metadata` writes it, but without its warning that this is young."""
    suffix = f"/{METADATA}"
    arrays = {
        key.removesuffix(suffix): json.loads(value)
        for key, value in staged.items()
        if key.endswith(suffix)
    }
    document = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": attributes,
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": arrays},
    }
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()


def _are_texts(values: object) -> TypeGuard[list[str]]:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
