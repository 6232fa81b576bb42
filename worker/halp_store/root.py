"""The root's zarr.json: which layout and configuration a store has, and who may write to it."""

from __future__ import annotations

import json
from typing import Any

from halp_store.errors import LayoutVersionError, NotAStore, StoreMismatch
from halp_store.layout import LAYOUT_VERSION, READABLE_VERSIONS, Layout
from halp_store.segment import parse_json
from halp_store.storage import METADATA, Storage


def read_root(storage: Storage) -> Layout:
    """Raises NotAStore or LayoutVersionError."""
    try:
        return Layout.from_json(_attributes(storage))
    except (KeyError, TypeError, ValueError) as error:
        raise NotAStore(storage.where, f"one whose attributes are not whole ({error})") from error


def stored_scores(storage: Storage) -> tuple[str, ...] | None:
    """Which score columns the store has; None where there is no store yet.

    Raises NotAStore or LayoutVersionError.
    """
    if storage.read(METADATA) is None and not storage.is_foreign():
        return None
    return read_root(storage).scores


def claim_root(storage: Storage, layout: Layout) -> None:
    """Make the store if there is none. Raises NotAStore, LayoutVersionError or StoreMismatch."""
    if storage.read(METADATA) is None:
        if storage.is_foreign():
            raise NotAStore(storage.where, "other files, and will not write among them")
        document = {"zarr_format": 3, "node_type": "group", "attributes": layout.to_json()}
        storage.create_root()
        # Lost to another worker that starts at the same time? Then the comparison decides.
        storage.publish(METADATA, json.dumps(document, ensure_ascii=False, indent=2).encode())
    check_same(storage.where, _attributes(storage), layout)


def check_same(where: str, stored: dict[str, Any], layout: Layout) -> None:
    """Raises StoreMismatch, naming the fields, if `layout` is not the one of `stored`."""
    ours = json.loads(json.dumps(layout.to_json()))
    if stored != ours:
        raise StoreMismatch(where, stored, ours)


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
