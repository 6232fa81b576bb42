"""`status --watch` and `enqueue --wait`: at a terminal, in a pipe, over a restart of the server."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
from itertools import islice

import pytest
import redis
from rich.console import Console

from halp_producer.look import Look
from halp_producer.server import connect
from halp_producer.status import UnknownRunError
from halp_producer.watch import PlainLines, View, looks, screen

COMMAND = (sys.executable, "-m", "halp_producer")


@pytest.fixture
def dataset(tmp_path):
    """Three questions."""
    path = tmp_path / "questions.jsonl"
    rows = [
        {"question_id": f"q{n}", "image": "a.jpg", "question": "What?", "ground_truth": "x"}
        for n in range(3)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def working(bench, wait_until):
    """`working(outcomes)`: beside the test, the next jobs come to these ends, one after another."""
    threads = []

    def start(*outcomes):
        def work():
            wait_until(lambda: bench.client.xlen(bench.keys.jobs) == len(outcomes))
            for end in outcomes:
                (entry_id,) = bench.take()
                end(entry_id)

        threads.append(threading.Thread(target=work))
        threads[-1].start()

    yield start
    for one in threads:
        one.join()


# -- watching ----------------------------------------------------------------------------------


def test_a_terminal_gets_a_view_that_changes_until_ctrl_c(bench, server, wait_until, at_terminal):
    """Which ends it with 0 and leaves the cursor visible."""
    bench.enqueue("a", "b")
    watching = at_terminal(
        *COMMAND, "status", "--watch", "--run", bench.keys.run, "--redis-url", server.url
    )
    wait_until(lambda: "0 of 2" in watching.text)
    bench.done(bench.take()[0])
    wait_until(lambda: "50 %  1 of 2" in watching.text)
    bench.fail(bench.take()[0], "image_missing")
    wait_until(lambda: "failed for: 1 image_missing" in watching.text)
    wait_until(lambda: "nothing left to do" in watching.text)
    assert watching.process.poll() is None
    watching.press_ctrl_c()
    assert watching.wait() == 0
    assert watching.raw.rindex(b"\x1b[?25h") > watching.raw.rindex(b"\x1b[?25l")
    assert "Traceback" not in watching.text


def test_watching_goes_on_over_a_restart_of_the_server(own, run, dataset, wait_until, at_terminal):
    """It says so meanwhile, and shows the new numbers afterwards."""
    enqueue = (*COMMAND, "enqueue", str(dataset), "--run", run, "--redis-url", own.url)
    subprocess.run(enqueue, check=True, capture_output=True)
    watching = at_terminal(*COMMAND, "status", "--watch", "--run", run, "--redis-url", own.url)
    wait_until(lambda: "0 of 3" in watching.text)
    own.stop()
    wait_until(lambda: "server away for" in watching.text)
    own.start()
    with redis.Redis.from_url(own.url) as client:
        client.hincrby(f"halp:{{{run}}}:counts", "done", 1)
    wait_until(lambda: "1 of 3" in watching.text)
    watching.press_ctrl_c()
    assert watching.wait() == 0


def test_for_machines_each_look_is_a_line_of_json(bench, server, wait_until):
    """Every line has the same fields, also when the server has forgotten the run; Ctrl-C is 0."""
    bench.enqueue("a")
    process = subprocess.Popen(
        [*COMMAND, "status", "--watch", "--json", "--run", bench.keys.run, "--redis-url",
         server.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    first, second = (json.loads(process.stdout.readline()) for _ in range(2))
    assert (first["waiting"], first["problem"], first["seconds_left"]) == (1, "", None)
    assert first["time"] < second["time"]
    assert first["time"].endswith("Z")
    bench.client.delete(*bench.client.keys(f"halp:{{{bench.keys.run}}}:*"))
    last = second
    while not last["problem"]:
        last = json.loads(process.stdout.readline())
    assert "forgotten" in last["problem"]
    assert last.keys() == first.keys()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert all(json.loads(line)["run"] == bench.keys.run for line in output.splitlines())


def test_a_wrong_run_or_server_is_an_error_at_once(halp):
    """It is not waited for: that is a typing error."""
    shown = halp("status", "--watch")
    assert (shown.exit_code, "no run" in shown.stderr) == (1, True)
    shown = halp("status", "--watch", "--redis-url", "redis://127.0.0.1:1/0")
    assert (shown.exit_code, "no server at" in shown.stderr) == (1, True)


def test_checking_is_done_once(halp):
    """Not each second."""
    assert halp("status", "--watch", "--check").exit_code == 2


def test_a_change_of_the_run_is_seen_by_the_next_look(bench, server):
    """Each look is one reading."""
    bench.enqueue("a")
    with connect(server.url) as client:
        seen = looks(client, bench.keys, until_forgotten=True, sleep=lambda _: None)
        assert next(seen).found.waiting == 1
        bench.enqueue("b", "c")
        assert next(seen).found.waiting == 3
        bench.client.delete(*bench.client.keys(f"halp:{{{bench.keys.run}}}:*"))
        with pytest.raises(UnknownRunError):
            next(seen)


def test_what_is_no_outage_ends_the_watching(bench, server):
    """A key of another kind will not mend itself."""
    bench.enqueue("a")
    with connect(server.url) as client:
        seen = looks(client, bench.keys, until_forgotten=False, sleep=lambda _: None)
        next(seen)
        bench.client.delete(bench.keys.jobs)
        bench.client.set(bench.keys.jobs, "mine")
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            list(islice(seen, 2))


def test_a_server_that_does_not_answer_is_said_although_the_reading_waits(status):
    """The view is drawn beside the reading."""
    now = [100.0]
    view = View("", clock=lambda: now[0])
    console = Console(file=io.StringIO(), width=80)
    view(Look(status(), 1.0))
    console.print(view.picture(80, 24))
    assert "not answered" not in console.file.getvalue()
    now[0] = 110.0
    console.print(view.picture(80, 24))
    assert "the server has not answered for 10 s" in console.file.getvalue()


def test_a_pipe_gets_a_line_now_and_then_and_news_at_once(status):
    """Not one each second; a problem and its end are not waited for."""
    now, stream = [0.0], io.StringIO()
    lines = PlainLines(stream, clock=lambda: now[0])
    for second in range(12):
        now[0] = second
        lines(Look(status(), 2.0, "server away for 1 s" if second in (7, 8) else ""))
    shown = stream.getvalue().splitlines()
    assert len(shown) == 4
    assert all(one.startswith("run pilot: 100 enqueued = 60 waiting") for one in shown)
    assert ["away" in one for one in shown] == [False, False, True, False]


def test_what_forces_colours_makes_no_terminal_of_a_file(monkeypatch):
    """A CI that sets FORCE_COLOR gets lines all the same."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with screen(io.StringIO(), "") as show:
        assert isinstance(show, PlainLines)


# -- waiting -----------------------------------------------------------------------------------


def test_waiting_ends_with_0_when_everything_is_stored(halp, bench, working, dataset):
    """The last line of stdout says so."""
    working(bench.done, bench.done, bench.done)
    shown = halp("enqueue", dataset, "--wait")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines()[-1].endswith("0 in flight + 3 done + 0 failed")


def test_waiting_ends_with_1_when_something_failed(halp, bench, working, dataset):
    """It says how many, and where to look."""
    working(bench.done, bench.fail, bench.done)
    shown = halp("enqueue", dataset, "--wait", "--json")
    assert shown.exit_code == 1
    assert f"1 failed: halp-producer failed list --run {bench.keys.run}" in shown.stderr
    report = json.loads(shown.stdout)
    assert (report["added"], report["status"]["failed"]) == (3, 1)
    assert report["status"]["failed_by_reason"] == {"image-missing": 1}


def test_waiting_is_for_the_whole_run(halp, bench, working, dataset):
    """What somebody else enqueued too: it is one queue."""
    bench.enqueue("somebody's")
    working(*[bench.done] * 4)
    shown = halp("enqueue", dataset, "--wait")
    assert "4 done" in shown.stdout


def test_ctrl_c_while_waiting_leaves_the_jobs(bench, server, dataset, wait_until, at_terminal):
    """Exit code 130, and how to look again. Until then it says that nobody works on them."""
    options = ("--run", bench.keys.run, "--redis-url", server.url)
    waiting = at_terminal(*COMMAND, "enqueue", str(dataset), "--wait", *options)
    wait_until(lambda: "no worker is running: start one with halp-worker run" in waiting.text)
    waiting.press_ctrl_c()
    assert waiting.wait() == 130
    assert (
        f"the jobs stay: halp-producer status --run {bench.keys.run} --watch shows them"
        in waiting.text
    )
    assert bench.numbers()[1] == 3


def test_nothing_is_waited_for_when_nothing_was_enqueued(halp, tmp_path):
    """Bad lines end it as ever; a dry run with --wait is wrong usage."""
    path = tmp_path / "bad.jsonl"
    path.write_text("{\n")
    assert halp("enqueue", path, "--wait").exit_code == 1
    assert halp("enqueue", path, "--wait", "--dry-run").exit_code == 2
