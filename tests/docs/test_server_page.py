"""The ACL lines of docs/server.md are enough for a whole run, and allow no more than one uses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import redis
from typer.testing import CliRunner

from halp_producer.account import run_account
from halp_producer.cli import app
from halp_producer.keys import RunKeys
from halp_producer.results import read_results
from halp_producer.server import connect, connect_exact
from halp_worker.cli import app as worker_app
from halp_worker.devices import Gpu, take_gpu

sys.path.insert(0, str(Path(__file__).parents[1] / "fleet"))  # the workers import `stand_in`

from fleet import Fleet, make_job

PAGE = (Path(__file__).parents[2] / "docs" / "server.md").read_text()
LINES = re.findall(r"^ACL SETUSER (halp-\w+) on >PASSWORD (.+)$", PAGE, re.MULTILINE)

NOT_USED_HERE = {"select", "hexists"}
"""Of other databases; and where a consumer of an older worker was idle for ten minutes."""


@pytest.fixture
def urls(own):
    """User -> URL, on a server where nobody else is let in without a password."""
    with redis.Redis.from_url(own.url) as admin:
        for user, rules in LINES:
            admin.execute_command("ACL", "SETUSER", user, "on", ">p", *rules.split())
        admin.config_resetstat()
    return {user: own.url.replace("//", f"//{user}:p@") for user, _ in LINES}


@pytest.mark.slow
def test_the_acl_lines_are_enough_for_a_run_and_no_more(own, urls, run, tmp_path):
    """Producer, workers that store, retry and fail, moves of jobs and letters, results, health."""
    assert set(urls) == {"halp-producer", "halp-worker"}
    dataset, keys = tmp_path / "d.jsonl", RunKeys(run)
    names = ("question_id", "image", "question", "ground_truth")
    jobs = [make_job(number) for number in range(8)]
    jobs += [make_job(8, "POISON retry"), make_job(9, "POISON reject"), make_job(10)]
    dataset.write_text(
        "".join(json.dumps({name: getattr(job, name) for name in names}) + "\n" for job in jobs)
    )

    def producer(*command, code=0):
        arguments = [*command, "--run", run, "--redis-url", urls["halp-producer"]]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output
        return result.output

    producer("enqueue", str(dataset))
    producer("cancel", "q10")
    with connect(urls["halp-producer"]) as client:
        fleet = Fleet(urls["halp-worker"], client, run, tmp_path)
        try:
            fleet.finish("--batch-size", "2")
        finally:
            fleet.end()
        assert run_account(client, keys).failed
        assert read_results(client, keys, block_ms=10).results
    assert "q9" in producer("failed", "list")
    producer("failed", "show", "q9")
    producer("failed", "retry", "q9")
    producer("cancel", "--all")
    producer("failed", "drop", "--all")
    producer("status", "--check")
    with connect_exact(urls["halp-worker"]) as client:
        gpus = (Gpu(0, f"{run}-a"), Gpu(1, f"{run}-b"))
        with take_gpu(client, "w", "h", gpus=gpus, lease_seconds=60, patience_seconds=0) as gpu:
            assert gpu.renew()
    health = ["health", "--run", run, "--redis-url", urls["halp-worker"]]
    assert "stopped" in CliRunner().invoke(worker_app, health).output
    with redis.Redis.from_url(own.url) as admin:
        log = admin.acl_log()
        used = {name.removeprefix("cmdstat_") for name in admin.info("commandstats")}
    refused = [one["object"] for one in log if one["object"].split("|")[0] != "client"]
    assert refused == []
    allowed = {rule[1:] for _, rules in LINES for rule in rules.split() if rule[0] == "+"}
    assert allowed - used <= NOT_USED_HERE
