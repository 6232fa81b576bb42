"""`Groups`: the groups of one store, opened once: what its views share."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from threading import Lock
from typing import Final

from halp_store.errors import DeletedQuestion, GoneSegment, UnknownQuestion
from halp_store.generation import Generation, read_generation
from halp_store.index import SegmentIndex
from halp_store.layout import Layout
from halp_store.names import generation_number
from halp_store.places import Places
from halp_store.published import PublishedGroup
from halp_store.root import Root, confirm_root
from halp_store.storage import Storage

# Groups that were read are kept open: their metadata (100 KB each) and the indices of their shards.
_OPEN_GROUPS: Final = 64


class Groups:
    """What the views of one store share: where each id is, and the groups that are open.

    May be used from several threads. One that was pickled or forked opens everything anew.
    """

    def __init__(self, storage: Storage, root: Root) -> None:
        self.storage, self.root = storage, root
        self._begin()

    @property
    def layout(self) -> Layout:
        return self.root.layout

    def _begin(self) -> None:
        self._process = os.getpid()
        self._index: SegmentIndex | None = None
        self._opened: OrderedDict[str, Future[PublishedGroup]] = OrderedDict()
        self._opening, self._refreshing = Lock(), Lock()

    def __reduce__(self) -> tuple[type[Groups], tuple[Storage, Root]]:
        return Groups, (self.storage, self.root)

    def enter(self) -> None:
        """Before a read: in a process that was forked, locks may be held by nobody."""
        if self._process != os.getpid():
            self._begin()

    @property
    def index(self) -> SegmentIndex:
        """As of the last refresh. Raises DamagedSegment."""
        return self._index if self._index is not None else self.refresh()

    def refresh(self) -> SegmentIndex:
        """Raises DamagedSegment, or StoreGone if the store is not there any more."""
        self.enter()
        confirm_root(self.storage, self.root)
        with self._refreshing:
            index = self._index
            if index is None:
                index = SegmentIndex(self.storage, self.root)
            self._index = index = index.refresh()
            return index

    def ids(self) -> tuple[str, ...]:
        """All, sorted."""
        index = self.index
        with self._refreshing:
            return tuple(sorted(index))

    def find(self, ids: Sequence[str]) -> Places:
        """As of the last refresh. Raises UnknownQuestion, DeletedQuestion for one that was."""
        index = self.index
        try:
            return Places.find(index, ids)
        except KeyError as error:
            if error.args[0] in index.deletions:
                raise DeletedQuestion(self.storage.where, error.args[0]) from None
            raise UnknownQuestion(self.storage.where, error.args[0], len(index), []) from None

    def open(self, name: str) -> PublishedGroup:
        """Raises GoneSegment or DamagedSegment."""
        with self._opening:
            group = self._opened.get(name)
            is_ours = group is None
            if group is None:
                group = self._opened[name] = Future()
            self._opened.move_to_end(name)
            if len(self._opened) > _OPEN_GROUPS:
                self._opened.popitem(last=False)
        if is_ours:
            try:
                group.set_result(PublishedGroup(self.storage, name, self.root))
            except BaseException as error:
                group.set_exception(error)
                self.close(name)
                raise
        return group.result()

    def close(self, name: str) -> None:
        """Read its metadata again next time."""
        with self._opening:
            self._opened.pop(name, None)

    def generation(self, name: str) -> Generation:
        """Raises GoneSegment or DamagedSegment."""
        newest = self.index.generation
        if newest is not None and newest.name == name:
            return newest
        number = generation_number(name.rpartition("/")[2]) or 0
        found = read_generation(self.storage, number)
        if found is None:
            what = "is missing, although it was published"
            raise GoneSegment(self.storage.where, name, None, what)
        return found
