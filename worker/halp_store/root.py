"""The root's zarr.json: which store this is, which configuration it has, and who may write to it.

From version 3 on a store has a random id, and each segment and generation carries the store's
stamp: what was written for another store or configuration is known by it.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from halp_store.errors import (
    ForeignSegment,
    LayoutVersionError,
    NotAStore,
    StoreGone,
    StoreMismatch,
)
from halp_store.layout import LAYOUT_VERSION, READABLE_VERSIONS, Layout
from halp_store.segment import STAMP, parse_json
from halp_store.storage import METADATA, Storage

_STAMPED: Final = 3
"""The first version whose stores have an id."""


@dataclass(frozen=True)
class Root:
    """A store's identity. store_id: 32 hex digits, random; None in versions 1 and 2."""

    layout: Layout
    version: int
    store_id: str | None

    @classmethod
    def new(cls, layout: Layout) -> Root:
        """The root of a store that is not there yet."""
        return cls(layout, LAYOUT_VERSION, uuid.uuid4().hex)

    @cached_property
    def fingerprint_digest(self) -> str:
        """`sha256:` and 64 hex digits, over the layout with its fingerprint."""
        text = json.dumps(self.layout.to_json(), sort_keys=True, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    @property
    def stamp(self) -> dict[str, Any]:
        """The attributes that every segment and generation of this store carries."""
        if self.version < _STAMPED:
            return {"layout_version": self.version}
        values = (self.version, self.store_id, self.fingerprint_digest)
        return dict(zip(STAMP, values, strict=True))

    def check_stamp(self, where: str, name: str, attributes: Mapping[str, Any]) -> None:
        """Raise ForeignSegment if these attributes of `name` are not those of this store."""
        for field in STAMP:
            expected, got = self.stamp.get(field), attributes.get(field)
            if got != expected:
                what = f"{field}: expected {expected!r}, got {got!r}"
                raise ForeignSegment(where, name, what)

    def to_json(self) -> dict[str, Any]:
        """The attributes of the root's zarr.json. Inverse of `from_json`."""
        return {**self.stamp, **self.layout.to_json()}

    @classmethod
    def from_json(cls, attributes: Mapping[str, Any]) -> Root:
        """Raises KeyError, TypeError or ValueError for what is not whole."""
        version, layout = attributes["layout_version"], Layout.from_json(attributes)
        if version < _STAMPED:
            if bool(layout.scores) != (version > 1):
                raise ValueError(f"scores: not what version {version} has: {list(layout.scores)}")
            return cls(layout, version, None)
        root = cls(layout, version, attributes["store_id"])
        if not isinstance(root.store_id, str) or not root.store_id:
            raise ValueError(f"store_id: expected text, got {root.store_id!r}")
        if attributes["fingerprint_digest"] != root.fingerprint_digest:
            raise ValueError("fingerprint_digest is not that of its other attributes")
        return root


def read_root(storage: Storage) -> Root:
    """Raises NotAStore or LayoutVersionError."""
    try:
        return Root.from_json(_attributes(storage))
    except (KeyError, TypeError, ValueError) as error:
        raise NotAStore(storage.where, f"one whose attributes are not whole ({error})") from error


def stored_scores(storage: Storage) -> tuple[str, ...] | None:
    """Which score columns the store has; None where there is no store yet.

    Raises NotAStore or LayoutVersionError.
    """
    if storage.read(METADATA) is None and not storage.is_foreign():
        return None
    return read_root(storage).layout.scores


def require_same(storage: Storage, stored: Layout, ours: Layout) -> None:
    """Raises StoreMismatch naming the fields that differ."""
    theirs, mine = (json.loads(json.dumps(layout.to_json())) for layout in (stored, ours))
    if theirs != mine:
        raise StoreMismatch(storage.where, theirs, mine)


def claim_root(storage: Storage, layout: Layout) -> Root:
    """Make the store if there is none. Raises NotAStore, LayoutVersionError or StoreMismatch."""
    if storage.read(METADATA) is None:
        if storage.is_foreign():
            raise NotAStore(storage.where, "other files, and will not write among them")
        storage.create_root()
        # Lost to another worker that starts at the same time? Then the comparison decides.
        storage.publish(METADATA, root_document(Root.new(layout)))
    root = read_root(storage)
    require_same(storage, root.layout, layout)
    return root


def root_document(root: Root) -> bytes:
    """The root's zarr.json."""
    document = {"zarr_format": 3, "node_type": "group", "attributes": root.to_json()}
    return json.dumps(document, ensure_ascii=False, indent=2).encode()


def confirm_root(storage: Storage, root: Root) -> None:
    """Raise StoreGone unless the store at this place is still the one whose root this is."""
    try:
        there = read_root(storage)
    except (NotAStore, LayoutVersionError) as error:
        what = "its zarr.json is missing, or is another one"
        raise StoreGone(storage.where, what) from error
    if there != root:
        raise StoreGone(storage.where, "another store is in its place")


def _attributes(storage: Storage) -> dict[str, Any]:
    raw = storage.read(METADATA)
    if raw is None:
        found = "other files" if storage.is_foreign() else "nothing"
        raise NotAStore(storage.where, found)
    try:
        document = parse_json(raw)
    except ValueError as error:
        raise NotAStore(storage.where, f"one that is not JSON ({error})") from error
    attributes = document.get("attributes") if isinstance(document, dict) else None
    if not isinstance(attributes, dict) or "layout_version" not in attributes:
        raise NotAStore(storage.where, "one that halp-stream did not write")
    version = attributes["layout_version"]
    if version not in READABLE_VERSIONS:
        raise LayoutVersionError(storage.where, LAYOUT_VERSION, version)
    return attributes
