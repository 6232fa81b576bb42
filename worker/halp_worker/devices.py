"""`take_gpu`: which GPU of this host is free, so that N workers use N GPUs.

A GPU is taken with a lease on the run's server: a key that names its user and runs out by itself
when that user is dead. Knows the server and the GPUs' identities; loads torch only to list them.
Does not guarantee: that nobody else (another server's worker, another program) uses the GPU.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis

from halp_producer.keys import gpu_lease
from halp_producer.outages import is_outage
from halp_worker.fates import FatalError

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 1.0
"""Between two looks at GPUs that are all taken, and the longest pause while the server is away."""

FIRST_PAUSE_SECONDS: Final = 0.1

RENEWED_AFTER: Final = 0.25
"""Of a lease: three renewals may fail before it runs out."""

PATIENCE_BEYOND_LEASE_SECONDS: Final = 10.0
"""What a dead worker left has run out by then, and been seen to."""

# Taking and renewing are one thing, which may happen twice: a reply that was lost is no harm.
# KEYS: the lease. ARGV: me, its milliseconds. Returns whose it is now.
_HOLD: Final = """#!lua flags=allow-oom
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return holder end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""

# KEYS: the lease. ARGV: me. Returns 1, or 0 if it was not ours.
_RELEASE: Final = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


@dataclass(frozen=True)
class Gpu:
    """index: as torch counts in this process (`cuda:<index>`). uuid: the same in every process
    and container of the host."""

    index: int
    uuid: str


def list_gpus() -> tuple[Gpu, ...]:
    """The CUDA devices this process may use; none without CUDA. Loads torch."""
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(
        Gpu(index, str(torch.cuda.get_device_properties(index).uuid))
        for index in range(torch.cuda.device_count())
    )


class GpuLease:
    """One GPU in one worker's hands. Made by `take_gpu`.

    Context manager: inside, a thread renews the lease (a model may load for longer than a lease
    lasts, before any heartbeat); at the end the GPU is given back. `renew` may be called as well.
    """

    def __init__(
        self, client: redis.Redis, gpu: Gpu, worker: str, host: str, lease_seconds: float
    ) -> None:
        self._client = client
        self.gpu = gpu
        self._me = json.dumps({"worker": worker, "host": host})
        self._lease_ms = max(1, int(lease_seconds * 1000))
        self._lock = threading.Lock()  # a renewal that overtakes the release would take it again
        self._released = False
        self._warned = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="gpu-lease", daemon=True)

    def __enter__(self) -> GpuLease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self.release()
        except redis.RedisError as error:
            log.warning(
                "GPU %d could not be given back (%s): it is free in %g s",
                self.gpu.index,
                error,
                self._lease_ms / 1000,
            )

    @property
    def device(self) -> str:
        """In torch's words: `cuda:1`."""
        return f"cuda:{self.gpu.index}"

    def renew(self) -> bool:
        """Whether the GPU is still, or again, ours. Raises what redis-py raises.

        A lease that ran out is taken anew unless another worker was faster; then both use the
        GPU, which may be too small for two: a warning says so, once.
        """
        with self._lock:
            if self._released:
                return False
            holder = self._hold()
            is_news = holder is not None and not self._warned
            self._warned = holder is not None
        if is_news:
            log.warning(
                "GPU %d is used %s too: this worker's lease ran out while it was silent. If memory "
                "gets short, restart one of them",
                self.gpu.index,
                holder,
            )
        return holder is None

    def release(self) -> bool:
        """Gives the GPU back; whether it was ours. Never takes another's away."""
        with self._lock:
            self._released = True
            key = gpu_lease(self.gpu.uuid)
            return bool(self._client.eval(_RELEASE, 1, key, self._me))

    def _keep(self) -> None:
        while not self._stop.wait(self._lease_ms / 1000 * RENEWED_AFTER):
            try:
                self.renew()
            except redis.RedisError as error:
                log.warning("lease of GPU %d was not renewed: %s", self.gpu.index, error)

    def _hold(self) -> str | None:
        """None if the GPU is ours now, else who has it, as `by worker X on host Y`."""
        key = gpu_lease(self.gpu.uuid)
        reply: Any = self._client.eval(_HOLD, 1, key, self._me, str(self._lease_ms))
        holder = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
        return None if holder == self._me else _by(holder)


def take_gpu(
    client: redis.Redis,
    worker: str,
    host: str,
    *,
    gpus: Sequence[Gpu],
    lease_seconds: float,
    patience_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> GpuLease:
    """The first free one of `gpus`; waits up to `patience_seconds` for one, or for the server.

    The lease's key is the GPU's uuid alone: containers of one host have different host names, but
    see the same GPUs. `host` and `worker` only say to people who it is; `worker` must be unique.
    patience_seconds: above `lease_seconds`, so that what a dead worker left runs out meanwhile.

    Raises FatalError that says who has each GPU, or that the server was away.
    """
    leases = [GpuLease(client, gpu, worker, host, lease_seconds) for gpu in gpus]
    deadline = clock() + patience_seconds
    pause = FIRST_PAUSE_SECONDS
    is_announced = False
    while True:
        try:
            taken, holders = _first_free(leases)
            if taken is not None:
                return taken
            problem = _all_in_use(leases, holders)
            pause = POLL_SECONDS
        except redis.RedisError as error:
            if not is_outage(error):
                raise
            problem = f"the server was away while a GPU was chosen: {error}"
            pause = min(2 * pause, POLL_SECONDS)
        left = deadline - clock()
        if left <= 0:
            raise FatalError(problem)
        if not is_announced:
            is_announced = True
            log.info("%s; waiting up to %g s", problem, patience_seconds)
        sleep(min(pause, left))


def resolve_device(
    device: str,
    client: redis.Redis,
    worker: str,
    host: str,
    *,
    lease_seconds: float,
    patience_seconds: float | None = None,
    list_gpus: Callable[[], Sequence[Gpu]] = list_gpus,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> GpuLease | None:
    """A lease where there is something to share out: device `auto` and two GPUs or more.

    None otherwise: a device that was named is used as named, one GPU needs no choice.
    patience_seconds: None, a little longer than what a dead worker left takes to run out.
    """
    if patience_seconds is None:
        patience_seconds = lease_seconds + PATIENCE_BEYOND_LEASE_SECONDS
    gpus = list_gpus() if device == "auto" else ()
    if len(gpus) < 2:
        return None
    return take_gpu(
        client,
        worker,
        host,
        gpus=gpus,
        lease_seconds=lease_seconds,
        patience_seconds=patience_seconds,
        sleep=sleep,
        clock=clock,
    )


def _first_free(leases: list[GpuLease]) -> tuple[GpuLease | None, list[str]]:
    """The lease that is ours now, or who has each GPU.

    Where the server fails in the middle, that GPU goes to the front: it may be ours already, and
    taking another one as well would keep it from everybody.
    """
    holders = []
    for lease in list(leases):
        try:
            holder = lease._hold()
        except redis.RedisError:
            leases.remove(lease)
            leases.insert(0, lease)
            raise
        if holder is None:
            return lease, []
        holders.append(holder)
    return None, holders


def _all_in_use(leases: list[GpuLease], holders: list[str]) -> str:
    each = sorted((lease.gpu.index, holder) for lease, holder in zip(leases, holders, strict=True))
    users = ", ".join(f"GPU {index} {holder}" for index, holder in each)
    return (
        f"all {len(leases)} GPUs of this host are in use: {users}; "
        "start fewer workers, or name one: --device cuda:0"
    )


def _by(holder: str) -> str:
    try:
        who = json.loads(holder)
        return f"by worker {who['worker']} on host {who['host']}"
    except (ValueError, TypeError, KeyError):
        return f"by {holder!r}"
