"""`open_store` and `Store`: all committed rows, as of now, in order of question id.

What is committed later is shown by `refresh()`, or comes out of `follow()`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np

from halp_store.address import storage_at
from halp_store.deletions import Deletions
from halp_store.generation import check_none_is_lost
from halp_store.groups import Groups
from halp_store.places import Places
from halp_store.root import read_root
from halp_store.storage import Storage
from halp_store.view import View


def open_store(path_or_url: str | os.PathLike[str], *, storage: Storage | None = None) -> Store:
    """The store at `path_or_url`, for reading, as of now.

    storage: instead of what `path_or_url` names.
    Raises NotAStore, LayoutVersionError, or DamagedSegment.
    """
    return Store(storage or storage_at(path_or_url))


class Store(View):
    """A view of all rows, in order of question id whatever the order of writing.

    `refresh` changes it, so let no other thread read from it meanwhile; views taken from it stay
    as they are.
    """

    def __init__(self, storage: Storage) -> None:
        nowhere = Places((), (), np.empty(0, np.int64), np.empty(0, np.int64))
        super().__init__(Groups(storage, read_root(storage)), (), nowhere)
        self._shown: object = None
        self._deletions = Deletions()  # as of what is shown
        self.refresh()
        check_none_is_lost(storage, self._groups.index.generation)

    def refresh(self) -> None:
        """Show what was committed since. Views that were taken from it stay as they are.

        Raises DamagedSegment, or StoreGone if the store is not there any more.
        """
        index = self._groups.refresh()
        state = (len(index), self.generation, len(index.segments), index.deletions.names)
        if state != self._shown:
            ids = self._groups.ids()
            self._show(ids, self._groups.find(ids))
            self._shown, self._deletions = state, index.deletions

    def follow(
        self, *, poll_seconds: float = 1.0, idle_seconds: float | None = None
    ) -> Iterator[View]:
        """Views of the rows that this store does not show yet, in order of question id, for ever.

        The first comes at once if rows were committed since the store was opened or refreshed last,
        the next whenever some were committed. `store[:]` and what `store.follow()` gives are every
        row, once: none comes twice, also if it is compacted meanwhile, and none is left out. A
        question that is deleted and stored again comes again. The store is refreshed on the way.

        poll_seconds: between looks; a look lists the segments. idle_seconds: end when so many have
            passed without a new row, not counting the caller's own time; 0 ends with what is there.
        Raises DamagedSegment, or StoreGone if the store is not there any more.
        """
        return self._follow(set(self._ids), self._deletions, poll_seconds, idle_seconds)

    def _follow(
        self,
        seen: set[str],
        deletions: Deletions,
        poll_seconds: float,
        idle_seconds: float | None,
    ) -> Iterator[View]:
        last = time.monotonic()
        looked: tuple[str, ...] | None = None
        while True:
            self.refresh()
            if deletions is not self._deletions:
                seen -= self._deletions.ids_since(deletions)
                deletions = self._deletions
            new = []
            if looked is not self._ids:  # a refresh that finds rows shows another tuple
                looked = self._ids
                new = [row for row, one in enumerate(looked) if one not in seen]
            if new:
                ids = tuple(self._ids[row] for row in new)
                seen.update(ids)
                yield View(self._groups, ids, self._places.of(np.array(new, np.int64)))
                last = time.monotonic()
                continue
            pause = poll_seconds
            if idle_seconds is not None:
                left = last + idle_seconds - time.monotonic()
                if left <= 0:
                    return
                pause = min(pause, left)
            time.sleep(pause)

    @property
    def segments(self) -> list[str]:
        """Names of the published segments that no generation covers."""
        return sorted(self._groups.index.segments)

    @property
    def generation(self) -> str | None:
        """`compacted/<number>` of the newest generation, for `xarray.open_zarr`; None without."""
        generation = self._groups.index.generation
        return generation.name if generation else None

    @property
    def contradictions(self) -> tuple[str, ...]:
        """Ids that two writers stored with different content; one of both is shown."""
        return self._groups.index.contradictions

    @property
    def rows_deleted(self) -> int:
        """Rows that were deleted and still take up room."""
        return self._groups.index.rows_deleted

    def bytes_on_disk(self) -> int:
        """Of the whole store, with what compaction has not pruned yet."""
        return self._groups.storage.size()
