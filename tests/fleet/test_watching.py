"""What a running worker tells: health for a supervisor, metrics for Prometheus."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fleet import make_job

pytestmark = pytest.mark.slow


def health(fleet, *options):
    return subprocess.run(
        [
            *(sys.executable, "-m", "halp_worker", "health"),
            *("--redis-url", fleet.url, "--run", fleet.keys.run, *options),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_worker_is_healthy_while_it_polls_and_not_when_it_has_left(fleet, wait_until):
    """Exit codes 0 and 1, each with a sentence."""
    assert health(fleet).returncode == 1
    worker = fleet.start("--lease-seconds", "1")
    wait_until(lambda: health(fleet).returncode == 0)
    worker.signal(signal.SIGTERM)
    worker.wait()
    done = health(fleet)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_worker_that_hangs_is_not_healthy_although_its_heart_beats(fleet, wait_until, gate):
    """The poll counts, not the heartbeat thread."""
    fleet.enqueue(make_job(0))
    worker = fleet.start(*gate.options, "--lease-seconds", "1")
    wait_until(lambda: "extracting" in worker.log.read_text())
    wait_until(lambda: health(fleet, "--max-age-seconds", "1").returncode == 1)
    assert worker.is_alive


def test_metrics_are_what_happened(fleet, wait_until):
    """Jobs by fate, failures by reason, stages, batches, tokens, backlog, in one fetch."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    jobs = [make_job(n, "POISON reject" if n == 3 else None) for n in range(10)]
    fleet.enqueue(*jobs, make_job(10, "POISON large"))
    fleet.start(
        *("--metrics-port", str(port), "--flush-seconds", "0.2", "--lease-seconds", "1"),
    )
    wait_until(lambda: fleet.status().done == 10)

    def fetched():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                text = answer.read().decode()
        except urllib.error.URLError:
            return {}
        return {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    wait_until(lambda: fetched().get(("halp_jobs_total", "done")) == 10)
    wait_until(lambda: fetched()[("halp_backlog_jobs",)] == 0)
    found = fetched()
    assert found["halp_jobs_total", "failed"] == 1
    assert found["halp_failures_total", "image_missing"] == 1
    assert found[("halp_lease_losses_total",)] == 0
    assert found[("halp_out_of_memory_total",)] >= 1
    assert found[("halp_prompt_tokens_total",)] == 100
    assert found[("halp_answer_tokens_total",)] == 10
    assert found[("halp_batch_jobs_count",)] >= 3
    for stage in ("read", "prepare_wait", "extract", "flush", "acknowledge"):
        assert found["halp_stage_seconds_count", stage] > 0
    assert found[("halp_last_poll_timestamp_seconds",)] > 1_600_000_000


def test_a_lost_lease_is_counted_and_logged(fleet, wait_until):
    """What another worker took over shows in the metrics of the one that lost it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fleet.enqueue(make_job(0))
    zombie = fleet.start(
        *("--lease-seconds", "0.3", "--at", "extract:after:1:STOP", "--metrics-port", str(port))
    )
    wait_until(lambda: zombie.is_stopped)
    fleet.finish()
    zombie.signal(signal.SIGCONT)
    wait_until(lambda: "its result is discarded" in zombie.log.read_text())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert "halp_lease_losses_total 1.0" in answer.read().decode()
