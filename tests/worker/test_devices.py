"""N workers on one host take N GPUs. The GPUs are simulated, the server is real."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from halp_producer.keys import gpu_lease
from halp_worker.devices import Gpu, list_gpus, resolve_device, take_gpu
from halp_worker.fates import FatalError
from processes import Process


@pytest.fixture
def gpus():
    """Four GPUs no other test knows."""
    return [Gpu(index, str(uuid.uuid4())) for index in range(4)]


@pytest.fixture
def take(client, gpus):
    def call(worker, **changes):
        options = {"gpus": gpus, "lease_seconds": 30, "patience_seconds": 0}
        return take_gpu(client, worker, "host", **{**options, **changes})

    return call


class Clock:
    """Time that passes only when somebody sleeps; `during` happens in the first sleep."""

    def __init__(self, during=lambda: None):
        self.now, self.during, self.pauses = 0.0, during, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.pauses.append(seconds)
        if len(self.pauses) == 1:
            self.during()


class LosesReplies:
    """A connection on which each of the `lost` calls takes effect, and its reply is lost."""

    def __init__(self, client, *lost):
        self.client, self.lost, self.calls = client, lost, 0

    def eval(self, *arguments):
        self.calls += 1
        reply = self.client.eval(*arguments)
        if self.calls in self.lost:
            raise redis.ConnectionError("Connection closed by server.")
        return reply


def test_four_workers_at_once_take_four_gpus(server, gpus):
    """However close together they start, no two get the same one."""
    together = threading.Barrier(4)

    def start(number):
        with redis.Redis.from_url(server.url) as own:
            own.ping()
            together.wait()
            return take_gpu(
                own, f"w{number}", "host", gpus=gpus, lease_seconds=30, patience_seconds=0
            ).device

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(start, range(4))) == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]


def test_the_fifth_worker_waits_for_the_gpu_that_is_given_back(take):
    """It looks about once a second and takes what becomes free."""
    leases = [take(f"w{number}") for number in range(4)]
    clock = Clock(during=leases[2].release)
    fifth = take("w4", patience_seconds=60, sleep=clock.sleep, clock=clock)
    assert fifth.device == "cuda:2"
    assert clock.pauses == [1.0]


def test_a_worker_that_gets_none_is_told_who_has_them(take):
    """After its patience it ends with every user's name, and what to do."""
    for number in range(4):
        take(f"w{number}")
    clock = Clock()
    with pytest.raises(FatalError) as caught:
        take("w4", patience_seconds=3, sleep=clock.sleep, clock=clock)
    assert str(caught.value) == (
        "all 4 GPUs of this host are in use: GPU 0 by worker w0 on host host, "
        "GPU 1 by worker w1 on host host, GPU 2 by worker w2 on host host, "
        "GPU 3 by worker w3 on host host; start fewer workers, or name one: --device cuda:0"
    )
    assert clock.now == 3


def test_the_lease_of_a_killed_worker_runs_out(server, client, gpus, take):
    """Nobody has to clean up after kill -9."""
    code = (
        "import sys, redis; from halp_worker.devices import Gpu, take_gpu\n"
        "lease = take_gpu(redis.Redis.from_url(sys.argv[1]), 'dead', 'h',"
        " gpus=[Gpu(0, sys.argv[2])], lease_seconds=1, patience_seconds=0)\n"
        "with lease: print(lease.device, flush=True); sys.stdin.read()"
    )
    with Process(
        [sys.executable, "-c", code, server.url, gpus[0].uuid],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdout.readline() == "cuda:0\n"
        with pytest.raises(FatalError, match="GPU 0 by worker dead on host h"):
            take("heir", gpus=gpus[:1])
        worker.kill()
    assert take("heir", gpus=gpus[:1], patience_seconds=20).device == "cuda:0"


def test_inside_its_block_a_lease_keeps_itself(client, gpus, take, wait_until):
    """A model may load for longer than a lease lasts: the lease is renewed meanwhile."""
    key = gpu_lease(gpus[0].uuid)
    with take("w", lease_seconds=0.8) as lease:
        client.pexpire(key, 100_000)
        wait_until(lambda: client.pttl(key) <= 800)  # the thread renewed it, to its own length
        assert not client.set(key, "x", nx=True)
        assert lease.renew()
    assert client.get(key) is None


def test_renewing_keeps_the_lease(client, gpus, take):
    """The time to live starts anew."""
    lease = take("w")
    client.pexpire(gpu_lease(gpus[0].uuid), 5_000)
    assert lease.renew()
    assert client.pttl(gpu_lease(gpus[0].uuid)) > 25_000


def test_a_lease_that_ran_out_is_taken_anew_if_nobody_else_has(client, gpus, take):
    """Also after FLUSHALL: the GPU is still in use."""
    lease = take("w")
    client.delete(gpu_lease(gpus[0].uuid))
    assert lease.renew()
    assert json.loads(client.get(gpu_lease(gpus[0].uuid))) == {"worker": "w", "host": "host"}


def test_a_stale_owner_changes_nothing_for_the_new_one(client, gpus, take, caplog):
    """It can neither renew nor release what is another's now, and says so once."""
    stale = take("stale")
    client.delete(gpu_lease(gpus[0].uuid))
    take("new")
    client.pexpire(gpu_lease(gpus[0].uuid), 5_000)
    assert not stale.renew()
    assert not stale.renew()
    assert not stale.release()
    assert json.loads(client.get(gpu_lease(gpus[0].uuid)))["worker"] == "new"
    assert client.pttl(gpu_lease(gpus[0].uuid)) <= 5_000
    assert [record.getMessage() for record in caplog.records] == [
        "GPU 0 is used by worker new on host host too: this worker's lease ran out while it was "
        "silent. If memory gets short, restart one of them"
    ]


def test_a_renewal_after_the_release_does_not_take_the_gpu_again(client, gpus, take):
    """The heartbeat may be late by a beat."""
    lease = take("w")
    assert lease.release()
    assert not lease.renew()
    assert client.get(gpu_lease(gpus[0].uuid)) is None


def test_a_lost_reply_does_not_cost_a_second_gpu(client, gpus, take):
    """What was taken without our knowledge is recognised as ours, whatever else is free."""
    before = take("before")  # GPU 0
    clock = Clock(during=before.release)
    lease = take_gpu(
        LosesReplies(client, 2),
        "w",
        "host",
        gpus=gpus,
        lease_seconds=30,
        patience_seconds=10,
        sleep=clock.sleep,
        clock=clock,
    )
    assert lease.device == "cuda:1"
    assert client.get(gpu_lease(gpus[0].uuid)) is None


def test_a_server_that_is_away_is_waited_for(client, gpus):
    """Longer each time, up to a second; then it is said."""
    away = LosesReplies(client, *range(100))
    clock = Clock()
    with pytest.raises(FatalError, match="the server was away while a GPU was chosen: Connection"):
        take_gpu(
            away,
            "w",
            "host",
            gpus=gpus,
            lease_seconds=30,
            patience_seconds=5,
            sleep=clock.sleep,
            clock=clock,
        )
    assert clock.pauses[:5] == [0.2, 0.4, 0.8, 1.0, 1.0]


def test_a_full_server_still_gives_gpus(server, client, gpus, take):
    """Jobs that are there can be worked on: a lease is small."""
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.set("x", "y")
        assert take("w").renew()
    finally:
        client.config_set("maxmemory", 0)


@pytest.mark.parametrize(
    ("device", "count"), [("auto", 0), ("auto", 1), ("cpu", 4), ("cuda:1", 4), ("cuda", 4)]
)
def test_with_nothing_to_share_out_there_is_no_lease(client, gpus, device, count):
    """A device that was named is used as named, and one GPU needs no choice."""
    found = resolve_device(
        device, client, "w", "host", lease_seconds=30, list_gpus=lambda: gpus[:count]
    )
    assert found is None
    assert not any(client.exists(gpu_lease(gpu.uuid)) for gpu in gpus)


def test_auto_with_several_gpus_takes_one(client, gpus):
    """`--device auto` is what makes the same command right for every worker of a host."""
    options = {"lease_seconds": 30, "list_gpus": lambda: gpus}
    devices = [
        resolve_device("auto", client, name, "host", **options).device for name in ("a", "b")
    ]
    assert devices == ["cuda:0", "cuda:1"]


def test_a_host_without_cuda_has_no_gpus(monkeypatch):
    """Listing them is harmless where there are none."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert list_gpus() == ()


@pytest.mark.accelerator
def test_real_gpus_have_different_uuids():
    """What the lease's key is made of."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    found = list_gpus()
    assert len({gpu.uuid for gpu in found}) == len(found) == torch.cuda.device_count()
