"""Sentinel and Cluster, with real processes: a failover in the middle of a run, each id once."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import socket
import subprocess

import pytest
import redis

from fleet import Fleet, make_job
from halp_producer import server as server_module
from halp_producer.dataset import Dataset
from halp_producer.intake import enqueue_dataset
from halp_producer.server import ServerError, connect_exact

from .test_crash_points import assert_each_once

REDIS_SERVER = shutil.which("redis-server")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(REDIS_SERVER is None, reason="needs redis-server on PATH"),
]

JOBS = [make_job(number) for number in range(24)]
OPTIONS = ("--batch-size", "2", "--flush-rows", "2", "--batch-ms", "20", "--lease-seconds", "5")
PASSWORD = "s3cret"


@pytest.fixture
def spawn(tmp_path, wait_until):
    """`spawn(*options)`: a server process that answers, and its port; ended after the test."""
    with contextlib.ExitStack() as stack:

        def start(*options, config=""):
            port = free_port()
            folder = tmp_path / f"server-{port}"
            folder.mkdir()
            (folder / "server.conf").write_text(config)
            process = subprocess.Popen(
                [
                    *(str(REDIS_SERVER), str(folder / "server.conf"), "--port", str(port)),
                    *("--bind", "127.0.0.1", "--dir", str(folder), *options),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            wait_until(lambda: answers(port))
            return port, process

        yield start


def free_port():
    """One whose cluster bus, 10000 above it, is free too: both below what connections take."""
    for port in random.SystemRandom().sample(range(20_000, 22_700), 100):
        with (
            socket.socket() as probe,
            socket.socket() as bus,
            contextlib.suppress(OSError),
        ):
            probe.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + 10_000))
            return port
    raise RuntimeError("no free port")


def answers(port):
    try:
        with redis.Redis(port=port, password=PASSWORD, retry=None) as client:
            return client.ping()
    except redis.AuthenticationError:
        return True
    except redis.RedisError:
        return False


def questions(path):
    names = ("question_id", "image", "question", "ground_truth")
    path.write_text(
        "".join(json.dumps({name: getattr(job, name) for name in names}) + "\n" for job in JOBS)
    )
    return Dataset(path)


# -- Sentinel ------------------------------------------------------------------------------------


@pytest.fixture
def sentinels(spawn, wait_until):
    """A primary, a replica, three Sentinels: the primary's process, the replica's port, a URL."""
    login = ("--requirepass", PASSWORD, "--masterauth", PASSWORD, "--save", "")
    primary, process = spawn(*login, "--repl-diskless-sync-delay", "0")
    replica, _ = spawn(*login, "--replicaof", "127.0.0.1", str(primary))
    with redis.Redis(port=primary, password=PASSWORD) as client:
        wait_until(lambda: client.info("replication")["connected_slaves"] == 1)
        wait_until(lambda: client.info("replication")["slave0"]["state"] == "online")
        # What it answered is on the replica, but for a moment: the test waits for it.
        client.config_set("min-replicas-to-write", 1)
    watched = (
        f"sentinel monitor halp 127.0.0.1 {primary} 2\nsentinel auth-pass halp {PASSWORD}\n"
        "sentinel down-after-milliseconds halp 500\nsentinel failover-timeout halp 3000\n"
    )
    ports = [spawn("--sentinel", config=watched)[0] for _ in range(3)]
    for port in ports:
        with redis.Redis(port=port) as client:
            wait_until(
                lambda client=client: (
                    len(client.sentinel_sentinels("halp")) == 2
                    and len(client.sentinel_slaves("halp")) == 1
                )
            )
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return process, replica, f"redis+sentinel://:{PASSWORD}@{hosts}/halp/0"


def test_a_failover_by_sentinels_in_the_middle_of_a_run(sentinels, run, tmp_path, wait_until):
    """The workers wait for the new primary, and each id is stored once."""
    process, replica, url = sentinels
    dataset = questions(tmp_path / "questions.jsonl")
    with server_module.connect(url) as client, redis.Redis(port=replica, password=PASSWORD) as copy:
        fleet = Fleet(url, client, run, tmp_path)
        assert enqueue_dataset(dataset, fleet.keys, client).added == len(JOBS)
        workers = [fleet.start("--until-empty", *OPTIONS) for _ in range(2)]
        wait_until(lambda: fleet.status().done >= 4)
        process.send_signal(signal.SIGKILL)
        wait_until(lambda: copy.info("replication")["role"] == "master")
        copy.config_set("min-replicas-to-write", 0)
        # What the replica may have missed comes again; what is stored is found.
        wait_until(lambda: reached(client))
        enqueue_dataset(dataset, fleet.keys, client)
        for worker in workers:
            assert worker.wait() == 0, fleet.logs()
        fleet.finish(*OPTIONS)
        assert_each_once(fleet, JOBS)
        assert fleet.status().finished
        assert PASSWORD not in fleet.logs()
        fleet.end()


def test_what_repeats_nothing_repeats_nothing_with_sentinels_either(sentinels):
    """Whichever server is the primary."""
    *_, url = sentinels
    with connect_exact(url) as client:
        settings = client.connection_pool.connection_kwargs
        assert settings["retry"].get_retries() == 0
        assert settings["socket_timeout"] == server_module.REQUEST_TIMEOUT_S


def reached(client):
    with contextlib.suppress(redis.RedisError):
        return client.ping() and client.info("replication")["role"] != "slave"
    return False


def test_sentinels_that_know_no_such_service_are_named(sentinels):
    """In a sentence, with all of them, and without the password."""
    *_, url = sentinels
    with pytest.raises(ServerError, match="no Sentinel that answers knows a primary") as caught:
        connect_exact(url.replace("/halp/", "/other/"))
    assert PASSWORD not in str(caught.value)
    place = url.partition("@")[2].partition(",")[0]
    with pytest.raises(ServerError, match="what answers there is a Sentinel"):
        connect_exact(f"redis://{place}/0")


def test_what_is_no_sentinel_is_told(server):
    """Somebody named the server itself."""
    with pytest.raises(ServerError, match="what answers there is no Sentinel"):
        connect_exact(server.url.replace("redis:", "redis+sentinel:").replace("/0", "/halp"))
    with pytest.raises(ServerError, match="the server is no cluster"):
        connect_exact(server.url.replace("redis:", "redis+cluster:"))


# -- Cluster -------------------------------------------------------------------------------------


@pytest.fixture
def cluster(spawn, wait_until):
    """Three primaries, each with a replica: their processes by port, and a URL."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--save", "")
    quick = ("--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0")
    nodes = dict(spawn(*options, *quick) for _ in range(6))
    ports = list(nodes)
    clients = {port: redis.Redis(port=port, decode_responses=True) for port in ports}
    for number, port in enumerate(ports):
        clients[port].execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        clients[port].execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0])
    for port, (first, last) in zip(
        ports[:3], ((0, 5460), (5461, 10922), (10923, 16383)), strict=True
    ):
        clients[port].execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
    ids = {port: clients[port].execute_command("CLUSTER", "MYID") for port in ports}
    for port in ports:
        wait_until(lambda port=port: len(known(clients[port])) == 6)
    for primary, replica in zip(ports[:3], ports[3:], strict=True):
        clients[replica].execute_command("CLUSTER", "REPLICATE", ids[primary])
    for port in ports:
        wait_until(lambda port=port: is_whole(clients[port]))
    for primary in ports[:3]:
        wait_until(
            lambda primary=primary: (
                clients[primary].info("replication").get("slave0", {}).get("state") == "online"
            )
        )
    for client in clients.values():
        client.close()
    return nodes, f"redis+cluster://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}"


def known(client):
    nodes = client.execute_command("CLUSTER", "NODES").splitlines()
    return [node for node in nodes if "handshake" not in node]


def is_whole(client):
    info = client.execute_command("CLUSTER", "INFO").split()
    return {"cluster_state:ok", "cluster_known_nodes:6"} <= set(info)


def test_a_primary_of_a_cluster_ends_in_the_middle_of_a_run(cluster, run, tmp_path, wait_until):
    """Its replica takes its slots; the workers go on there, and each id is stored once."""
    nodes, url = cluster
    dataset = questions(tmp_path / "questions.jsonl")
    with server_module.connect(url) as client:
        fleet = Fleet(url, client, run, tmp_path)
        assert enqueue_dataset(dataset, fleet.keys, client).added == len(JOBS)
        holder = client.get_node_from_key(fleet.keys.jobs).port
        workers = [fleet.start("--until-empty", *OPTIONS) for _ in range(2)]
        wait_until(lambda: fleet.status().done >= 4)
        nodes[holder].send_signal(signal.SIGKILL)
        wait_until(lambda: moved(client, fleet.keys.jobs, holder))
        enqueue_dataset(dataset, fleet.keys, client)
        for worker in workers:
            assert worker.wait() == 0, fleet.logs()
        fleet.finish(*OPTIONS)
        assert_each_once(fleet, JOBS)
        assert fleet.status().finished
        fleet.end()


def test_what_repeats_nothing_repeats_nothing_in_a_cluster_either(cluster):
    """Redirections apart: a server that redirects has done nothing."""
    *_, url = cluster
    with connect_exact(url) as client:
        assert client.retry.get_retries() == 0
        for node in client.get_nodes():
            settings = node.redis_connection.connection_pool.connection_kwargs
            assert settings["retry"].get_retries() == 0
            assert settings["socket_timeout"] == server_module.REQUEST_TIMEOUT_S


def moved(client, key, holder):
    with contextlib.suppress(redis.RedisError):
        client.xlen(key)
        return client.get_node_from_key(key).port != holder
    return False


def test_one_server_of_a_cluster_is_no_server_for_a_run(cluster):
    """The URL's form is named."""
    nodes, _ = cluster
    with (
        connect_exact(f"redis://127.0.0.1:{next(iter(nodes))}/0") as client,
        pytest.raises(redis.RedisError) as caught,
    ):
        [client.xlen(f"halp:{{{number}}}:jobs") for number in range(100)]
    assert "redis+cluster://host:port" in str(server_module.explained(caught.value, "redis://h"))
