"""The seam to where bytes are: `Storage`, for a directory (`local`) or a bucket (`objects`).

Knows keys (paths below the store's root, with `/`), durability and create-if-absent. Refuses to
know what a segment means: it never parses what it holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, Protocol

SEGMENTS: Final = "segments"
GENERATIONS: Final = "compacted"
METADATA: Final = "zarr.json"
# Files that are being written begin with it, and a dash; so do leftovers of killed writers. Also
# the folder for scratch files, in which older versions wrote the half-written ones.
PARTIAL: Final = ".partial"


class Storage(Protocol):
    """Where a store's bytes are. Keys are relative to the root, for example `zarr.json`.

    As long as there is no root, nothing is there. Once there was one, every call may raise
    StoreGone if it is gone or exchanged; StoreUnavailable if the disk or the bucket fails; and
    LinkInStore for a key that is reached only through a link.
    """

    @property
    def where(self) -> str:
        """The root as a user would write it, for messages."""

    @property
    def concurrency(self) -> int:
        """How many requests at once are worth it."""

    def create_root(self) -> None:
        """Make the root, durably, if there is none. No other call makes it.

        Raises StoreGone if this storage has used one before.
        """

    def list_names(self, prefix: str) -> list[str]:
        """The names directly below `prefix`, in no particular order, but those with a leading dot.

        A name is there from the first key that was written below it on, for every caller: a
        fence rests on it.
        """

    def read(self, key: str) -> bytes | None:
        """The whole value, or None if there is no such key."""

    def read_range(self, key: str, start: int, length: int) -> bytes | None:
        """`length` bytes from `start`, fewer where the value ends; None if there is no such key.

        A negative `start` counts from the end.
        """

    def write(self, key: str, value: bytes) -> None:
        """Create `key`, durably. FileExistsError if it exists. Called from several threads.

        Nothing stays under `key` if it fails, where the disk still allows to remove it.
        """

    def fill(self, key: str, value: bytes) -> None:
        """Give an empty key, which this caller has made with `write`, its value; as a whole."""

    def sync(self, prefixes: Iterable[str]) -> None:
        """Make the names directly below each prefix durable. FileNotFoundError without one."""

    def publish(self, key: str, value: bytes) -> bool:
        """Create `key` as a whole if it is absent, atomically and durably; False if it exists."""

    def is_foreign(self) -> bool:
        """Whether there is something at the root, but no zarr.json: no place for a new store."""

    def size(self) -> int:
        """All bytes below the root."""

    def list_keys(self, prefix: str) -> list[str]:
        """All keys below `prefix`, in no particular order, but `half_written` ones of a publish."""

    def links(self, prefix: str = "") -> list[str]:
        """The keys below `prefix` that are neither a regular file nor a folder: symbolic links,
        FIFOs, devices. Every other call refuses such a key with LinkInStore."""

    def half_written(self) -> list[str]:
        """The keys of files that a publish is writing, or that it left when it was killed."""

    def age_seconds(self, prefix: str) -> float | None:
        """Since the newest change of the key `prefix` or of anything below it, by the clock of
        this machine; None if there is nothing."""

    def delete(self, prefix: str, keep: Collection[str] = ()) -> int:
        """Remove the key `prefix` and all below it but the keys in `keep`; how many went.

        Not atomic. Others may write or delete there meanwhile: what they write may stay.
        """
