"""Which store the rows of a run are in. The server knows, so that no worker begins a second one.

A worker that is started again while the store's disk is not mounted finds no store at its path. To
make one there would acknowledge the run's jobs into a folder that nobody reads.
"""

from __future__ import annotations

from typing import Any

import redis

from halp_producer.keys import DONE, RunKeys
from halp_store.root import read_root
from halp_store.storage import METADATA, Storage
from halp_worker.fates import FatalError


def check_store_of_run(client: redis.Redis, keys: RunKeys, storage: Storage) -> None:
    """Raise FatalError if rows of this run are in a store that is not at this place."""
    recorded: Any = client.get(keys.store)
    if recorded is None or not _has_rows(client, keys):
        return
    if storage.read(METADATA) is None:
        raise FatalError(
            f"{storage.where}: there is no store, but rows of run {keys.run} are in one already: "
            "mount it or move it back there, or enqueue into another --run"
        )
    if (read_root(storage).store_id or "").encode() != recorded:
        raise FatalError(
            f"{storage.where}: is not the store that rows of run {keys.run} are in: give the path "
            "of that one, or enqueue into another --run"
        )


def record_store_of_run(client: redis.Redis, keys: RunKeys, store_id: str | None) -> None:
    """From now on this store is the run's, unless rows of the run are in another one. store_id:
    None in a store of an older version, which has none."""
    if store_id is not None and not _has_rows(client, keys):
        client.set(keys.store, store_id)


def _has_rows(client: redis.Redis, keys: RunKeys) -> bool:
    done: Any = client.hget(keys.counts, DONE)
    return bool(int(done or 0))
