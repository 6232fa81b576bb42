"""What a worker checks before it loads weights: the run, the settings, and what they meet.

Everything here takes seconds and needs no more than the small files of the checkpoint.
"""

from __future__ import annotations

import logging
import os
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, Final

import redis

from halp_producer.keys import DONE, ENQUEUED, FAILED, RunKeys
from halp_store.address import storage_at
from halp_store.layout import Layout
from halp_store.root import read_root, require_same, stored_scores
from halp_store.storage import Storage
from halp_worker.fates import FatalError
from halp_worker.metrics import Metrics
from halp_worker.model.blueprint import Blueprint
from halp_worker.model.layers import as_stored, choose_layers, choose_positions, expected_layout
from halp_worker.model.loading import check_device
from halp_worker.model.rehearsal import rehearse_inputs
from halp_worker.model.risk import Foresight
from halp_worker.settings import WorkerSettings
from halp_worker.store_outage import open_patiently

log = logging.getLogger(__name__)

_KEYS_LOOKED_AT: Final = 10_000
"""Of the server, for names like the run's."""


def check_run(client: redis.Redis, run: str, *, until_empty: bool) -> None:
    """Whether there is such a run. Changes nothing.

    Raises FatalError for a worker that would leave at once; another one may wait for its run.
    """
    keys = RunKeys(run)
    if client.exists(keys.known, keys.failed) or client.xlen(keys.jobs) or _counts(client, keys):
        return
    if not until_empty:
        log.warning("nothing was enqueued under run %s yet: waiting", run)
        return
    near = get_close_matches(run, _runs(client))
    hint = f"; there is {', '.join(near)}" if near else ""
    raise FatalError(
        f"run {run!r}: nothing was ever enqueued under this name{hint}: check --run and "
        "--redis-url, or enqueue first"
    )


def is_all_failed(client: redis.Redis, run: str) -> bool:
    """Whether the run has ended, and every job of it failed."""
    keys = RunKeys(run)
    try:
        counts = _counts(client, keys)
    except redis.RedisError as error:
        log.warning("could not ask how run %s ended: %s", run, error)
        return False
    failed = counts.get(FAILED, 0)
    return failed > 0 and failed == counts.get(ENQUEUED)


def check_settings(settings: WorkerSettings, ranks: int) -> None:
    """What needs no checkpoint. Raises FatalError or StoreError; what may be right is warned of."""
    choose_positions(settings.positions)
    storage_at(settings.store)
    check_device(settings.model, ranks)
    _check_image_root(settings.image_root)
    if settings.metrics_port:
        with Metrics().serve(settings.metrics_host, settings.metrics_port):
            pass  # nobody else listens there


def check_blueprint(
    settings: WorkerSettings, blueprint: Blueprint, foresight: Foresight | None
) -> None:
    """Whether settings, probe, store and the small files of the checkpoint fit each other.

    Raises FatalError or StoreError.
    """
    layers = choose_layers(settings.layers, blueprint.n_layers)
    positions = choose_positions(settings.positions)
    storage = storage_at(settings.store)
    stored = open_patiently(lambda: stored_layout(storage))
    layout = expected_layout(blueprint, layers, positions, foresight, stored)
    if stored is not None:
        require_same(storage, stored, layout)
    rehearse_inputs(settings.model.model, blueprint, positions)


def check_store(settings: WorkerSettings, layout: Layout, blueprint: Blueprint) -> Layout:
    """`layout` in the words of the store. Raises StoreError if it has rows of another one."""
    storage = storage_at(settings.store)
    stored = open_patiently(lambda: stored_layout(storage))
    if stored is None:
        return layout
    layout = as_stored(layout, blueprint.checkpoint, stored)
    require_same(storage, stored, layout)
    return layout


def stored_layout(storage: Storage) -> Layout | None:
    """That of the store; None where there is no store yet. Raises StoreError."""
    return None if stored_scores(storage) is None else read_root(storage).layout


def _check_image_root(root: Path) -> None:
    try:
        with os.scandir(root) as entries:
            if next(entries, None) is None:
                log.warning("the image root %s is empty: is its disk mounted?", root)
    except OSError as error:
        log.warning("the image root %s cannot be read: %s", root, error.strerror)


def _counts(client: redis.Redis, keys: RunKeys) -> dict[str, int]:
    counts: Any = client.hgetall(keys.counts)
    wanted = (ENQUEUED, DONE, FAILED)
    return {name: int(counts[name.encode()]) for name in wanted if name.encode() in counts}


def _runs(client: redis.Redis) -> list[str]:
    """Names of runs on the server, as far as that is quickly told."""
    names = client.scan_iter(match="halp:{*}:counts", count=1000)
    try:
        found = [str(name, "utf-8", "replace") for name in islice(names, _KEYS_LOOKED_AT)]
    except redis.RedisError:  # this user may not ask
        return []
    return [name.partition("{")[2].partition("}")[0] for name in found]
