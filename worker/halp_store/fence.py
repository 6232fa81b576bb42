"""A fence: a tombstone in place of the zarr.json of a segment that is not published.

Both are made by create-if-absent, so one of them stays for ever: a segment that is fenced can
never be published, and one that is published can never be fenced.

Not guaranteed on a disk without hard links: there a writer that sleeps between creating its
zarr.json and filling it in can be neither fenced nor seen.
"""

from __future__ import annotations

from halp_store.segment import TOMBSTONE_DOCUMENT, parse_header
from halp_store.storage import METADATA, SEGMENTS, Storage


def fence_segment(storage: Storage, name: str) -> bool:
    """Fence it durably if it is not published; whether this call did it.

    False says no more than that there is a zarr.json: the segment's, or an earlier tombstone.
    """
    return storage.publish(f"{SEGMENTS}/{name}/{METADATA}", TOMBSTONE_DOCUMENT)


def clear_without_room(storage: Storage, name: str) -> int | None:
    """Fence a segment and remove what was staged, on a disk without room for a tombstone.

    An empty zarr.json takes no room, and keeps every other from being made; the tombstone follows
    when the staged files are gone. How many went; None if there is a zarr.json already.
    Raises StoreUnavailable if not even that can be made.
    """
    root = f"{SEGMENTS}/{name}"
    try:
        storage.write(f"{root}/{METADATA}", b"")
    except FileExistsError:
        return None
    storage.sync([root])
    removed = delete_staged(storage, name)
    storage.fill(f"{root}/{METADATA}", TOMBSTONE_DOCUMENT)
    return removed


def is_fenced(storage: Storage, name: str) -> bool:
    """Whether the tombstone is there. Something else in its place, damaged or not, is none."""
    document = storage.read(f"{SEGMENTS}/{name}/{METADATA}")
    try:
        return bool(document) and parse_header(document or b"") is None
    except ValueError:
        return False


def delete_staged(storage: Storage, name: str) -> int:
    """Remove what was staged of a segment and keep its zarr.json; how many keys went.

    Only for a segment that is fenced.
    """
    root = f"{SEGMENTS}/{name}"
    return storage.delete(root, keep={f"{root}/{METADATA}"})
