"""What a host cannot read is not the job's fault: another host gets it, and the host stops."""

from __future__ import annotations

import signal

import pytest
from PIL import Image

from fleet import make_job
from halp_producer import Job
from halp_worker.host_health import HOST_FAULTS

pytestmark = pytest.mark.slow


@pytest.fixture
def images(tmp_path):
    """Image roots: a good one with a.png, an empty one."""
    good, empty = tmp_path / "good", tmp_path / "empty"
    good.mkdir()
    empty.mkdir()
    Image.new("RGB", (4, 4)).save(good / "a.png")
    return good, empty


def look(number, image="a.png"):
    return Job(question_id=f"q{number}", image=image, question="LOOK", ground_truth="yes")


def assert_nothing_charged(fleet, jobs):
    """All of them wait, as if nobody had ever started one."""
    status = fleet.status()
    assert (status.done, status.failed, status.in_flight) == (0, 0, 0), fleet.logs()
    assert status.waiting + status.delayed == jobs
    started = fleet.client.hvals(fleet.keys.attempts)
    assert {int(value.split()[0]) for value in started} <= {0}


def test_a_bad_worker_beside_a_good_one_fails_no_job(fleet, images, wait_until):
    """It stops with a sentence that names the option; the good one does all."""
    good, empty = images
    jobs = 300
    fleet.enqueue(*(look(n) for n in range(jobs)))
    bad = fleet.start("--image-root", str(empty))
    assert bad.wait() == 1, fleet.logs()
    sentence = bad.log.read_text().strip().splitlines()[-1]
    assert "--image-root" in sentence
    assert str(empty) in sentence
    assert_nothing_charged(fleet, jobs)
    again = fleet.start("--image-root", str(empty), "--batch-size", "1")
    worker = fleet.start("--image-root", str(good), "--until-empty")
    assert worker.wait() == 0, fleet.logs()
    status = fleet.status()
    assert (status.done, status.failed) == (jobs, 0), fleet.logs()
    assert fleet.client.hlen(fleet.keys.attempts) == 0
    again.signal(signal.SIGTERM)
    assert again.wait() in (0, 1)


def test_what_one_host_lacks_another_one_does(fleet, images, wait_until):
    """A host that reads most images leaves the others to a host that has them."""
    good, some = images
    for number in range(40):
        Image.new("RGB", (4, 4)).save(good / f"{number}.png")
        if number % 4:
            Image.new("RGB", (4, 4)).save(some / f"{number}.png")
    options = ("--batch-size", "2", "--batch-ms", "20", "--flush-seconds", "0.2")
    workers = [fleet.start("--image-root", str(root), *options) for root in (some, good)]
    wait_until(lambda: fleet.client.hlen(fleet.keys.workers) == 2)
    fleet.enqueue(*(look(number, f"{number}.png") for number in range(40)))
    wait_until(lambda: fleet.status().done == 40)
    for worker in workers:
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, fleet.logs()
    assert fleet.status().failed == 0, fleet.logs()
    assert fleet.client.hlen(fleet.keys.attempts) == 0


@pytest.mark.parametrize("hosts", [1, 2])
def test_what_no_host_has_fails_with_its_reason(fleet, images, tmp_path, hosts):
    """With the others in the store, and without a wait for hosts that are not there."""
    good, other = images
    Image.new("RGB", (4, 4)).save(other / "a.png")
    missing = range(3, 30, 10)
    fleet.enqueue(*(look(n, "none.png" if n in missing else "a.png") for n in range(30)))
    roots = (good, other)[:hosts]
    workers = [fleet.start("--image-root", str(root), "--until-empty") for root in roots]
    assert [worker.wait() for worker in workers] == [0] * hosts, fleet.logs()
    assert {name: one["reason"] for name, one in fleet.letters().items()} == {
        f"q{n}": "image_missing" for n in missing
    }
    assert {one["attempts"] for one in fleet.letters().values()} == {"1"}
    assert fleet.status().done == 27


def test_many_missing_images_are_the_jobs_fault_where_others_can_be_read(fleet, images):
    """A folder that was never downloaded fails its jobs, and does not stop the host."""
    good, _ = images
    missing = 3 * HOST_FAULTS
    jobs = [look(0), *(look(1 + n, f"none/{n}.png") for n in range(missing)), look(99)]
    fleet.enqueue(*jobs)
    fleet.finish("--image-root", str(good))
    status = fleet.status()
    assert (status.done, status.failed) == (2, missing), fleet.logs()


def test_a_host_whose_images_go_away_gives_its_jobs_back(fleet, images, wait_until):
    """It has read some before; now its mount is an empty folder."""
    good, _ = images
    fleet.enqueue(*(look(n) for n in range(4)))
    worker = fleet.start("--image-root", str(good), "--flush-rows", "1")
    wait_until(lambda: fleet.status().done == 4)
    (good / "a.png").unlink()
    fleet.enqueue(*(look(n) for n in range(4, 60)))
    assert worker.wait() == 1, fleet.logs()
    status = fleet.status()
    assert (status.done, status.failed, status.waiting + status.delayed) == (4, 0, 56)


def test_a_host_without_a_way_to_urls_leaves_them_to_others(fleet, images):
    """Whether it may not load them or cannot reach anybody."""
    good, _ = images
    urls = [look(n, f"http://127.0.0.1:9/{n}.png") for n in range(30)]
    fleet.enqueue(*urls)
    for options in ((), ("--allow-urls",)):
        worker = fleet.start("--image-root", str(good), *options)
        assert worker.wait() == 1, fleet.logs()
        assert "--image-root" in worker.log.read_text().strip().splitlines()[-1]
        assert_nothing_charged(fleet, 30)


def test_a_device_that_breaks_charges_its_batch_alone(fleet, wait_until):
    """What was fetched beside it is as new; the job that breaks it each time ends as poison."""
    fleet.enqueue(*(make_job(n, "POISON device" if n == 0 else None) for n in range(12)))
    first = fleet.start("--batch-size", "2", "--batch-ms", "50")
    assert first.wait() == 3, fleet.logs()
    started = fleet.client.hgetall(fleet.keys.attempts)
    assert len(started) == 2, started
    for _ in range(3):
        worker = fleet.start("--lease-seconds", "0.3", "--until-empty")
        if worker.wait() == 0:
            break
    assert {name: one["reason"] for name, one in fleet.letters().items()} == {"q0": "worker_died"}
    assert fleet.status().done == 11
