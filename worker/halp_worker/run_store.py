"""Which stores the rows of a run are in. The server knows, so that no worker makes one anew.

A worker that is started again while the store's disk is not mounted finds no store at its path. To
make one there would acknowledge the run's jobs into a folder that nobody reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import redis

from halp_producer.keys import DONE, RunKeys
from halp_store.address import is_url
from halp_store.root import read_root
from halp_store.storage import METADATA, Storage
from halp_worker.fates import FatalError

_RECORD: Final = """#!lua flags=allow-oom
return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
"""
"""Also on a server that is full: the worker is there to empty it."""


def store_of_run(client: redis.Redis, keys: RunKeys, path: str) -> str | None:
    """The id of the store at this path that rows of the run may be in; None if there is none."""
    recorded: Any = client.hget(keys.stores, _place(path))
    return recorded.decode() if recorded and _has_rows(client, keys) else None


def record_store_of_run(
    client: redis.Redis, keys: RunKeys, path: str, store_id: str | None
) -> None:
    """Rows of the run may be in this store from now on. store_id: None in a store of an older
    version, which has none."""
    if store_id is not None:
        client.eval(_RECORD, 1, keys.stores, _place(path), store_id)


def check_store_of_run(run: str, store_id: str | None, storage: Storage) -> None:
    """Raise FatalError unless the store with this id is at this place. store_id: None, any will do.

    Raises StoreError, too.
    """
    if store_id is None:
        return
    if storage.read(METADATA) is None:
        raise FatalError(
            f"{storage.where}: there is no store any more, but rows of run {run} were stored "
            "there: mount it or move it back, or enqueue into another --run"
        )
    if read_root(storage).store_id != store_id:
        raise FatalError(
            f"{storage.where}: is not the store any more that rows of run {run} were stored in: "
            "move that one back, or enqueue into another --run"
        )


def _place(path: str) -> str:
    return path if is_url(path) else str(Path(path).absolute())


def _has_rows(client: redis.Redis, keys: RunKeys) -> bool:
    done: Any = client.hget(keys.counts, DONE)
    return bool(int(done or 0))
