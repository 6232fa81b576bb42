"""What Prometheus fetches from a worker."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from halp_worker.fates import FatalError, Reason
from halp_worker.metrics import FATES, STAGES, Metrics


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def fetch(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        return {
            family.name: family
            for family in text_string_to_metric_families(response.read().decode())
        }


def test_every_fate_reason_and_stage_is_there_from_the_start():
    """A rate over a series that appears late would miss its first jobs."""
    metrics = Metrics()
    reasons = [value(metrics, "halp_failures_total", reason=reason) for reason in Reason]
    assert reasons == [0] * len(Reason)
    assert [value(metrics, "halp_jobs_total", fate=fate) for fate in FATES] == [0] * len(FATES)
    assert [value(metrics, "halp_stage_seconds_count", stage=stage) for stage in STAGES] == [
        0
    ] * len(STAGES)


def test_what_is_told_is_what_is_fetched():
    """Every number that a worker tells comes out under its documented name."""
    metrics = Metrics()
    metrics.describe(worker="w1", run="r", model="m", device="cuda:1")
    metrics.count("done", 3)
    metrics.count("failed")
    metrics.failed(Reason.URL_FAILED)
    metrics.lease_lost(2)
    metrics.out_of_memory()
    metrics.abstained(4)
    metrics.batch(8)
    metrics.tokens(1000, 64)
    metrics.backlog(17)
    metrics.in_hand(5)
    metrics.polled()
    with metrics.serve("127.0.0.1", 0) as port:
        fetched = fetch(port)
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in fetched.values()
        for sample in family.samples
    }
    expected = {
        ("halp_worker_info", "cuda:1", "m", "r", "w1"): 1,
        ("halp_jobs_total", "done"): 3,
        ("halp_jobs_total", "failed"): 1,
        ("halp_failures_total", "url_failed"): 1,
        ("halp_lease_losses_total",): 2,
        ("halp_out_of_memory_total",): 1,
        ("halp_abstained_total",): 4,
        ("halp_batch_jobs_sum",): 8,
        ("halp_prompt_tokens_total",): 1000,
        ("halp_answer_tokens_total",): 64,
        ("halp_backlog_jobs",): 17,
        ("halp_in_hand_jobs",): 5,
    }
    assert {key: samples[key] for key in expected} == expected
    assert abs(samples[("halp_last_poll_timestamp_seconds",)] - time.time()) < 60


def test_a_stage_that_raises_is_timed_too():
    """The slow failures are the ones to see."""
    metrics = Metrics()
    with pytest.raises(ValueError, match="no"), metrics.stage("extract"):
        raise ValueError("no")
    assert value(metrics, "halp_stage_seconds_count", stage="extract") == 1


def test_unknown_words_are_refused():
    """A slip of the pen does not become a series of its own."""
    metrics = Metrics()
    with pytest.raises(KeyError):
        metrics.count("finished")
    with pytest.raises(KeyError), metrics.stage("lunch"):
        pass


def test_two_workers_of_one_process_do_not_add_up():
    """Each has its own registry."""
    first, second = Metrics(), Metrics()
    first.count("done")
    assert value(second, "halp_jobs_total", fate="done") == 0


def test_the_server_ends_with_its_block():
    """No thread and no open port are left behind."""
    before = threading.active_count()
    with Metrics().serve("127.0.0.1", 0) as port:
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    with pytest.raises(urllib.error.URLError):
        fetch(port)


def test_a_port_in_use_is_said_in_one_sentence():
    """It names the place and what to do."""
    with (
        Metrics().serve("127.0.0.1", 0) as port,
        pytest.raises(FatalError, match=f"127.0.0.1:{port}: address already in use; each worker"),
        Metrics().serve("127.0.0.1", port),
    ):
        pass


def test_metrics_need_neither_torch_nor_the_server():
    """Counting costs its own library and nothing else."""
    code = "import sys, halp_worker.metrics; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"torch", "redis", "numpy", "zarr"} & set(loaded)
