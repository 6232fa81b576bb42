"""`StoreWriter`: buffers finished rows and commits them as segments; the only maker of receipts.

A flush: refresh the index, build the segment in memory, stage all of it but its zarr.json, make
that durable, ask which rows are still ours, publish the zarr.json only if absent, read it back.
Committed means that the nonce read back is ours. One thread uses a writer; any number of writers
share a store.

Who takes rows from another worker calls `fence` before `lookup`: what that worker staged before is
published by then and found, or never; what it stages later it asks about, and is told no.

Not guaranteed: what `halp_store.index` says about one id with two contents in the same moment;
this writer reports the conflict if it lost, but cannot know of a rival that published later.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from halp_store.address import storage_at
from halp_store.answers import Said, read_said, said_of
from halp_store.buffer import RowBuffer
from halp_store.errors import (
    DamagedSegment,
    GoneSegment,
    PublishFailed,
    StagingTooSlow,
    StoreError,
    StoreMismatch,
    StoreUnavailable,
)
from halp_store.features import FeatureBatch, Receipt, RowKey, StoredRow, _seal_receipt
from halp_store.fence import delete_staged, fence_segment, is_fenced
from halp_store.index import SegmentIndex
from halp_store.layout import Layout
from halp_store.names import group_prefix, new_segment_name, prefix_of, worker_prefix
from halp_store.root import Root, claim_root, confirm_root
from halp_store.segment import Segment, build_segment, parse_header
from halp_store.storage import METADATA, SEGMENTS, Storage

RowState = Literal["new", "buffered", "stored", "conflict"]
"""Of a row: unknown; waiting for a flush with this content; committed with this content; buffered
or committed with other content."""

MayCommit = Callable[[Sequence[RowKey]], Collection[RowKey]]
"""Is asked about rows and answers with those that are still ours; what it raises comes out of
`flush`. It renews what it answers with for as long as a publish takes."""

# A name is lost only to who fenced it, which is rare; more often means that it is broken.
_PUBLISH_TRIES: Final = 4
# One after the other costs a disk journal commit per file; eight at a time share one.
_STAGING_THREADS: Final = 8


@dataclass(frozen=True)
class Flush:
    """What became of the rows that were buffered.

    receipt: for rows that are committed, by this flush or before; None if there are none.
    conflicts: rows that were not written because their id has other content. Their first writer
        keeps it.
    segment: name of the segment that this flush wrote, if it wrote one.
    withheld: rows that were not written because they are not ours any more, and that nobody had
        stored when this flush ended.
    """

    receipt: Receipt | None
    conflicts: tuple[RowKey, ...]
    segment: str | None
    withheld: tuple[RowKey, ...] = ()


@dataclass(frozen=True)
class _Plan:
    """Of the buffered rows: those to write and where they are, and what is with the others."""

    write: dict[RowKey, int]
    stored: list[RowKey]
    conflicts: list[RowKey]
    withheld: list[RowKey]


class StoreWriter:
    """Opened with `StoreWriter.open`."""

    def __init__(
        self,
        storage: Storage,
        root: Root,
        worker: str,
        provenance: Mapping[str, Any],
        *,
        flush_rows: int,
        flush_seconds: float,
        staging_deadline_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self.layout = root.layout
        self._root = root
        self._storage, self._worker, self._provenance = storage, worker, provenance
        self._flush_rows, self._flush_seconds = flush_rows, flush_seconds
        self._staging_deadline_seconds, self._clock = staging_deadline_seconds, clock
        self._index = SegmentIndex(storage, root)
        # Segments that were published, or fenced, durably, as far as known.
        self._durable: set[str] = set()
        self._fenced: set[str] = set()
        self._buffer = RowBuffer()

    @classmethod
    def open(
        cls,
        path_or_url: str | os.PathLike[str],
        layout: Layout,
        *,
        worker: str,
        provenance: Mapping[str, Any],
        flush_rows: int = 64,
        flush_seconds: float = 5.0,
        staging_deadline_seconds: float = 600.0,
        storage: Storage | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> StoreWriter:
        """Open the store at `path_or_url`, or make it.

        worker: goes into segment names; what a file name cannot hold becomes a dash.
        provenance: JSON object, kept with each segment (versions, device, batch sizes).
        storage: instead of what `path_or_url` names.
        Raises NotAStore, LayoutVersionError, or StoreMismatch naming the fields that differ.
        """
        if flush_rows < 1:
            raise ValueError(f"flush_rows: expected at least 1, got {flush_rows}")
        name = worker_prefix(worker)
        if not name:
            raise ValueError(f"worker: expected a name with letters or digits, got {worker!r}")
        storage = storage or storage_at(path_or_url)
        root = claim_root(storage, layout)
        writer = cls(
            storage,
            root,
            name,
            {"worker": worker, **provenance},
            flush_rows=flush_rows,
            flush_seconds=flush_seconds,
            staging_deadline_seconds=staging_deadline_seconds,
            clock=clock,
        )
        writer.refresh()
        return writer

    @property
    def store_id(self) -> str | None:
        """Of the store; None in one of version 1 or 2."""
        return self._root.store_id

    def refresh(self) -> None:
        """Take in what other writers published.

        Raises DamagedSegment, ForeignSegment, or StoreGone.
        """
        confirm_root(self._storage, self._root)
        self._index = self._index.refresh()

    def refresh_deletions(self) -> None:
        """Take in what was deleted since; costs little if nothing was. Raises as `refresh`."""
        self._index = self._index.refresh_deletions()

    def lookup(self, key: RowKey) -> RowState:
        """What is known of a row as of the last refresh or flush."""
        published = self._index.state(key)
        return self._buffer.state(key) if published == "new" else published

    def receipt_for(self, keys: Iterable[RowKey]) -> Receipt:
        """For rows that `lookup` calls stored. Raises ValueError naming any that is not."""
        rows = tuple(keys)
        missing = [key.question_id for key in rows if self._index.state(key) != "stored"]
        if missing or not rows:
            raise ValueError(f"expected rows that are stored with this content, not: {missing}")
        self._make_durable(rows)
        return self._receipt(rows, {})

    @property
    def rows_buffered(self) -> int:
        return len(self._buffer)

    def seconds_until_due(self) -> float | None:
        """Until `flush` should be called: 0 when it should be now, None with nothing buffered."""
        if self._buffer.since is None:
            return None
        if len(self._buffer) >= self._flush_rows:
            return 0.0
        return max(0.0, self._buffer.since + self._flush_seconds - self._clock())

    def append(self, features: FeatureBatch) -> None:
        """Buffer rows. One that is in the buffer with the same content is dropped: it is the same.

        Keeps a reference, not a copy. Raises StoreMismatch if the layout is another.
        """
        if features.layout != self.layout:
            raise StoreMismatch(
                self._storage.where, self.layout.to_json(), features.layout.to_json()
            )
        self._buffer.append(features, self._clock())

    def fence(self, workers: Iterable[str]) -> int:
        """Stop these workers from publishing what they have staged, then refresh; how many
        segments were fenced by this call.

        workers: as they were given to `open`. When it returns, each of their segments that was
        staged before the call is in the index or can never be published, durably.
        Raises DamagedSegment, ForeignSegment, StoreGone or StoreUnavailable.
        """
        prefixes = {worker_prefix(worker) for worker in workers}
        self._index = self._index.refresh()
        staged = [
            name
            for name in self._storage.list_names(SEGMENTS)
            if prefix_of(name) in prefixes
            and name not in self._fenced
            and not self._index.is_published(name)
        ]
        won = [name for name in staged if fence_segment(self._storage, name)]
        if staged:  # another's tombstone, too, may be seen before it is durable
            folders = [*(f"{SEGMENTS}/{name}" for name in staged), SEGMENTS, ""]
            try:
                self._storage.sync(folders)
            except FileNotFoundError as error:
                where = self._storage.where
                raise StoreUnavailable(where, "fence segments", error, "try again") from error
        self._index = self._index.refresh()
        self._fenced.update(name for name in staged if not self._index.is_published(name))
        return len(won)

    def flush(self, may_commit: MayCommit | None = None) -> Flush:
        """Commit what is buffered. If it raises, the buffer is as before.

        may_commit: is asked before the rows are built and again when they are staged; all rows
            are taken for ours without it. Rows that it leaves out are withheld and leave the
            buffer. It is not asked about rows that are stored.
        Raises StagingTooSlow, PublishFailed, DamagedSegment, ForeignSegment, StoreGone,
        StoreUnavailable, or what `may_commit` raises.
        """
        withheld: set[RowKey] = set()
        tries = 0
        while tries < _PUBLISH_TRIES:
            self.refresh()
            plan = self._plan(withheld)
            if not plan.write:
                return self._finish(plan, None, {})
            if lost := _lost(plan.write, may_commit):
                withheld |= lost
                continue
            features = self._buffer.features(list(plan.write.values()))
            segment = self._build(features)
            self._stage(segment)
            if lost := _lost(plan.write, may_commit):
                withheld |= lost
                self._give_up(segment)
                continue
            if self._publish(segment):
                # Again, because another writer may have published the same id while we wrote.
                self._index = self._index.refresh()
                said = {segment.name: said_of(features)}
                plan = self._plan(withheld)
                if not plan.write:  # or rows of it were deleted at once: they are written again
                    return self._finish(plan, segment.name, said)
            tries += 1
        raise PublishFailed(self._storage.where, _PUBLISH_TRIES)

    def _plan(self, withheld: Collection[RowKey]) -> _Plan:
        plan = _Plan({}, [], [], [])
        first: dict[str, RowKey] = {}  # of the buffered rows that are ours
        for key, row in self._buffer:
            state = self._index.state(key)
            if state == "stored":
                plan.stored.append(key)
            elif state == "conflict":
                plan.conflicts.append(key)
            elif key in withheld:
                plan.withheld.append(key)
            elif first.setdefault(key.question_id, key) != key:
                plan.conflicts.append(key)
            else:
                plan.write[key] = row
        return plan

    def _build(self, features: FeatureBatch) -> Segment:
        return build_segment(
            features,
            name=new_segment_name(self._worker),
            stamp=self._root.stamp,
            provenance=self._provenance,
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )

    def _stage(self, segment: Segment) -> None:
        started = self._clock()
        root = f"{SEGMENTS}/{segment.name}"
        keys = [f"{root}/{key}" for key in segment.staged]
        try:
            with ThreadPoolExecutor(max(_STAGING_THREADS, self._storage.concurrency)) as threads:
                list(threads.map(self._storage.write, keys, segment.staged.values()))
        except StoreUnavailable:
            # The next try has a name of its own: these files would only take up a full disk.
            with suppress(StoreError):
                delete_staged(self._storage, segment.name)
            raise
        folders = dict.fromkeys(key.rpartition("/")[0] for key in keys)
        try:
            self._storage.sync([*folders, root, SEGMENTS, ""])
        except FileNotFoundError as error:
            confirm_root(self._storage, self._root)
            what = "look who deletes below segments/: a repair with a far too short grace?"
            raise StoreUnavailable(self._storage.where, f"stage {root}", error, what) from error
        took = self._clock() - started
        if took > self._staging_deadline_seconds:
            deadline = self._staging_deadline_seconds
            raise StagingTooSlow(self._storage.where, segment.name, deadline, took)

    def _publish(self, segment: Segment) -> bool:
        key = f"{SEGMENTS}/{segment.name}/{METADATA}"
        confirm_root(self._storage, self._root)
        # The answer is not enough: on a network a lost reply and a retry look like a refusal.
        self._storage.publish(key, segment.metadata)
        published = self._storage.read(key)
        try:
            header = parse_header(published) if published else None
        except ValueError as error:
            raise DamagedSegment(self._storage.where, segment.name, None, str(error)) from error
        if header is None or header.nonce != segment.nonce:
            return False
        self._durable.add(segment.name)
        self._index.add(segment.name, header)
        return True

    def _give_up(self, segment: Segment) -> None:
        """Never to be published. Its zarr.json is a tombstone from now on, whoever made it."""
        fence_segment(self._storage, segment.name)
        if is_fenced(self._storage, segment.name):
            delete_staged(self._storage, segment.name)

    def _finish(
        self, plan: _Plan, segment: str | None, said: Mapping[str, Sequence[Said]]
    ) -> Flush:
        self._make_durable(plan.stored)
        receipt = self._receipt(plan.stored, said) if plan.stored else None
        self._buffer = RowBuffer()
        return Flush(receipt, tuple(plan.conflicts), segment, tuple(plan.withheld))

    def _receipt(self, keys: Sequence[RowKey], said: Mapping[str, Sequence[Said]]) -> Receipt:
        try:
            stored = self._stored(keys, said)
        except GoneSegment:
            # Pruned since it was seen? Then a generation has the rows.
            generation = self._index.generation
            self.refresh()
            if self._index.generation is generation:
                raise
            return self._receipt(keys, said)
        # Last of all: rows in a store that was unmounted, moved or exchanged prove nothing.
        confirm_root(self._storage, self._root)
        return _seal_receipt(stored)

    def _stored(
        self, keys: Sequence[RowKey], said: Mapping[str, Sequence[Said]]
    ) -> tuple[StoredRow, ...]:
        """Where these rows are by now, and what is told of them. said: of segments at hand, by row;
        that of others is read."""
        places = {key: place for key in keys if (place := self._index.find(key.question_id))}
        elsewhere = [one for one in places.values() if one.segment not in said]
        read = dict(
            zip(
                elsewhere,
                read_said(self._storage, self._root, self._index, elsewhere),
                strict=True,
            )
        )
        return tuple(
            StoredRow(
                key,
                place.segment,
                place.row,
                *(read[place] if place in read else said[place.segment][place.row]),
            )
            for key, place in places.items()
        )

    def _make_durable(self, keys: Collection[RowKey]) -> None:
        # Another writer's row can be seen before its own sync has ended; a receipt may not.
        places = (self._index.find(key.question_id) for key in keys)
        names = {place.segment for place in places if place} - self._durable
        generation = self._index.generation
        try:
            self._storage.sync(sorted(map(group_prefix, names)))
        except FileNotFoundError as error:
            # Pruned since it was seen? Then a generation has the rows, and they are found there.
            self.refresh()
            if self._index.generation is generation:
                lost = [name for name in sorted(names) if not self._is_there(name)]
                what = "was published and is missing now"
                name = (lost or sorted(names))[0]
                raise GoneSegment(self._storage.where, name, None, what) from error
            self._make_durable(keys)
        else:
            self._durable |= names

    def _is_there(self, name: str) -> bool:
        return self._storage.read(f"{group_prefix(name)}/{METADATA}") is not None


def _lost(rows: Collection[RowKey], may_commit: MayCommit | None) -> set[RowKey]:
    """The rows that are not ours any more."""
    return set(rows).difference(may_commit(tuple(rows))) if may_commit else set()
