"""A language model as the judge, behind a real server of this machine that fails in many ways."""

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from halp_probe.errors import ProbeError
from halp_probe.judging.endpoint import (
    EndpointFailed,
    EndpointSettings,
    ask_endpoint,
    forget,
    is_loopback,
    unfinished_path,
)
from halp_probe.judging.prompt import PROMPT, UNREADABLE, check_prompt, filled, label_of
from halp_probe.judging.unfinished import UnfinishedBusy, opened_unfinished
from halp_probe.judging.verdict import Kind, Label, Question
from halp_probe.labels import read_labels
from halp_store import open_store

KEY = "sk-a-very-secret-key"

QUESTIONS = tuple(
    Question(f"q{number}", "Is there a dog?", "no", "There is none.") for number in range(8)
)


def completion(content, model="served-1"):
    """The JSON that an endpoint answers with."""
    message = {"role": "assistant", "content": content}
    return json.dumps({"model": model, "choices": [{"index": 0, "message": message}]})


RIGHT = completion('{"label": "right", "reason": "the same"}')


class Endpoint:
    """A real server. answer(number of the request, its body) -> (status, body, headers)."""

    def __init__(self):
        self.requests, self.keys = [], []
        self.answer = lambda number, body: (200, RIGHT, {})
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner._lock:
                    owner.requests.append({"path": self.path, **body})
                    owner.keys.append(self.headers.get("Authorization"))
                    number = len(owner.requests)
                reply = owner.answer(number, body)
                if reply is None:
                    self.close_connection = True
                    return
                status, text, headers = reply
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                data = text.encode()
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with suppress(OSError):  # whoever asked was killed, or has not waited
                    self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def server():
    """Listens until the test ends."""
    one = Endpoint()
    thread = threading.Thread(target=one.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield one
    one.server.shutdown()
    thread.join()
    one.server.server_close()


@pytest.fixture
def ask(server, tmp_path, monkeypatch):
    """`ask(questions, **settings)` of `server`, with the key and hardly a pause."""
    monkeypatch.setenv("HALP_JUDGE_KEY", KEY)

    def ask(questions=QUESTIONS, told=None, **settings):
        usual = {"pause_s": 0.001, "concurrency": 2, "timeout_s": 5.0}
        one = EndpointSettings(server.url, "judge-1", **(usual | settings))
        return ask_endpoint(questions, one, tmp_path / "run1.labels" / "llm" / "one", told)

    return ask


def test_a_model_is_asked_about_each_answer_once(ask, server):
    """At temperature 0, with the key in its header and the texts in the prompt."""
    told = []
    found = ask(told=lambda *now: told.append(now))
    assert {one.label for one in found.verdicts.values()} == {Label.RIGHT}
    assert list(found.verdicts) == [one.question_id for one in QUESTIONS]
    assert found.verdicts["q0"].note == "the same"
    assert found.verdicts["q0"].kind is Kind.YES_NO
    assert len(server.requests) == len(QUESTIONS)
    one = server.requests[0]
    assert (one["path"], one["model"], one["temperature"]) == (
        "/v1/chat/completions",
        "judge-1",
        0,
    )
    assert one["messages"] == [{"role": "user", "content": filled(PROMPT, QUESTIONS[0])}]
    assert "There is none." in one["messages"][0]["content"]
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert told[-1] == (8, 8)


def test_the_table_says_which_model_answered(ask, server):
    """Its own name may be another than was asked for; no key is among it."""
    server.answer = lambda number, body: (
        (200, RIGHT, {}) if number > 1 else (200, completion("{}", "other"), {})
    )
    found = ask()
    assert found.about["served_by"] == {"served-1": 7, "other": 1}
    assert found.about["prompt"] == PROMPT
    assert found.about["model"] == "judge-1"
    assert found.about["endpoint"] == server.url
    assert KEY not in json.dumps(found.about)


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ('{"label": "wrong"}', Label.WRONG),
        (' {"label": "abstained", "reason": 7}\n', Label.ABSTAINED),
        ('```json\n{"label": "right"}\n```', Label.RIGHT),
        ('<think>{"label": "wrong"}</think>\n{"label": "right"}', Label.RIGHT),
        ('{"label": "unjudged", "reason": "no"}', Label.UNJUDGED),
    ],
)
def test_a_reply_is_one_json_object(reply, label):
    """Alone, in a code fence, or after a thought."""
    said, rule, _ = label_of(reply)
    assert (said, rule) == (label, f"model: {label}")


@pytest.mark.parametrize(
    "reply",
    [
        *("right", "The answer is right.", '"right"', '["right"]', '{"label": "Right!"}', "{"),
        *('{"label": null}', '{"label": ["right"]}', "", "[" * 100_000, None),
        'It is {"label": "right"}',
    ],
)
def test_a_verdict_is_not_guessed_from_prose(reply):
    """What is no such object is unjudged, and kept, shortened, for people."""
    label, rule, note = label_of(reply)
    assert (label, rule) == (Label.UNJUDGED, UNREADABLE)
    assert 0 < len(note) <= 300


def test_what_needs_no_model_is_not_sent_to_one(ask, server):
    """No truth, no answer, or none of the model's own."""
    rows = (
        Question("a", "What?", "", "dog"),
        Question("b", "What?", "dog", " "),
        Question("c", "What?", "dog", "", "abstained"),
        Question("d", "What?", "dog", "cat"),
    )
    found = ask(rows).verdicts
    assert len(server.requests) == 1
    assert [found[one].label for one in "abcd"] == [
        *(Label.UNJUDGED, Label.UNJUDGED, Label.ABSTAINED, Label.RIGHT)
    ]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(ask, server, status):
    """Until it answers."""
    server.answer = lambda number, body: (
        (status, "busy", {"Retry-After": "0"}) if number % 3 else (200, RIGHT, {})
    )
    found = ask(concurrency=1)
    assert {one.label for one in found.verdicts.values()} == {Label.RIGHT}
    assert len(server.requests) == 24


@pytest.mark.parametrize("body", ["<html>", "[]", "{}", '{"choices": []}', '{"choices": [{}]}'])
def test_what_is_no_completion_is_asked_for_again_and_then_said(ask, server, body):
    """A page of a proxy is no verdict."""
    server.answer = lambda number, _: (200, body, {})
    with pytest.raises(EndpointFailed, match="no verdict in 6 tries: is no chat completion"):
        ask(concurrency=1)


def test_a_connection_that_breaks_and_a_reply_that_is_late_are_tried_again(ask, server):
    """Both are over some time."""
    release = threading.Event()

    def answer(number, body):
        if number == 1:
            return None
        if number == 2:
            release.wait(5)
        return 200, RIGHT, {}

    server.answer = answer
    found = ask(QUESTIONS[:1], timeout_s=0.3)
    release.set()
    assert found.verdicts["q0"].label is Label.RIGHT
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "status 400: bad"),
        (401, "read from the environment: HALP_JUDGE_KEY"),
        (404, "status 404"),
        (302, "points elsewhere"),
    ],
)
def test_what_a_further_try_does_not_mend_ends_at_once(ask, server, status, said):
    """With the server's words."""
    server.answer = lambda number, body: (status, "bad", {"Location": server.url})
    with pytest.raises(EndpointFailed, match=said):
        ask(concurrency=1)
    assert len(server.requests) == 1


def test_the_key_is_nowhere_but_in_its_header(ask, server, tmp_path):
    """Also where the server repeats it, in an error, a reply or the model's name."""
    server.answer = lambda number, body: (401, f"unknown key {KEY}", {})
    with pytest.raises(EndpointFailed) as caught:
        ask()
    assert KEY not in str(caught.value)
    assert "unknown key ***" in str(caught.value)
    server.answer = lambda number, body: (200, completion(f"key {KEY}", KEY), {})
    found = ask()
    assert KEY not in repr(found)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_a_key_that_is_no_header_is_not_shown(ask, monkeypatch):
    """The library's own message would."""
    monkeypatch.setenv("HALP_JUDGE_KEY", f"{KEY}\nmore")
    with pytest.raises(EndpointFailed) as caught:
        ask()
    assert KEY not in str(caught.value)


def test_a_run_that_failed_goes_on_where_it_was(ask, server):
    """What was judged is not asked again."""
    server.answer = lambda number, body: (200, RIGHT, {}) if number < 6 else (400, "no credit", {})
    with pytest.raises(EndpointFailed, match="5 of 8 verdicts are kept"):
        ask(concurrency=1)
    server.answer = lambda number, body: (200, RIGHT, {})
    assert len(ask(concurrency=1).verdicts) == 8
    assert len(server.requests) == 6 + 3
    assert ask().about["served_by"] == {"served-1": 8}
    assert len(server.requests) == 9


def test_a_line_that_a_kill_cut_short_is_asked_again(ask, server, tmp_path):
    """At every byte of it; the lines before are kept."""
    ask(concurrency=1)
    (path,) = (tmp_path / "run1.labels" / "llm").iterdir()
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(start, len(whole), 7):
        path.write_bytes(whole[:cut])
        before = len(server.requests)
        assert len(ask(concurrency=1).verdicts) == 8
        assert len(server.requests) == before + 1
        assert path.read_bytes() == whole


def test_an_answer_that_changed_is_asked_about_again(ask, server):
    """The store grew, or a row was repaired."""
    ask()
    other = Question("q0", "Is there a dog?", "no", "Two of them.")
    ask((other, *QUESTIONS[1:]))
    assert len(server.requests) == 9


def test_two_runs_of_one_judge_do_not_ask_twice(tmp_path):
    """The second is told to wait."""
    path = tmp_path / "llm" / "x"
    with (
        opened_unfinished(path),
        pytest.raises(UnfinishedBusy, match="another run"),
        opened_unfinished(path),
    ):
        pass
    forget(path)
    forget(path)
    assert not path.exists()


@pytest.mark.parametrize("changed", ["url", "model", "prompt", "store"])
def test_verdicts_of_another_judge_or_store_are_not_taken(make_store, tmp_path, changed):
    """Each has a file of its own."""
    usual = {"url": "https://host/v1", "model": "m", "prompt": PROMPT}
    stores = [open_store(make_store([{"answer": "a"}], name)) for name in ("a.zarr", "b.zarr")]
    more = {} if changed == "store" else {changed: usual[changed] + "x"}
    paths = {
        unfinished_path(tmp_path, "llm", EndpointSettings(**usual), stores[0]),
        unfinished_path(
            tmp_path, "llm", EndpointSettings(**(usual | more)), stores[changed == "store"]
        ),
    }
    assert len(paths) == 2
    assert paths.pop() != unfinished_path(tmp_path, "other", EndpointSettings(**usual), stores[0])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "http://host/v1"}, "--allow-http"),
        ({"url": "http://localhost.evil.org/v1"}, "--allow-http"),
        ({"url": "ftp://host/v1"}, "expected https://HOST/v1"),
        ({"url": "host/v1"}, "expected https://HOST/v1"),
        ({"url": "https://[::1/v1"}, "expected https://HOST/v1"),
        ({"url": f"https://user:{KEY}@host/v1"}, "not shown here"),
        ({"url": f"https://host/v1?key={KEY}"}, "not shown here"),
        ({"model": " "}, "--judge-model"),
        ({"concurrency": 0}, "--concurrency"),
        ({"prompt": "{question} {answer}"}, "there is no {ground_truth}"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, said):
    """Before anything is sent; what may be a password is not repeated."""
    with pytest.raises(ProbeError) as caught:
        EndpointSettings(**({"url": "https://host/v1", "model": "m"} | settings)).check()
    assert said in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.0.1", "::1"])
def test_this_machine_may_be_asked_in_the_open(host):
    """Nothing leaves it."""
    assert is_loopback(host)
    shown = f"[{host}]" if ":" in host else host
    EndpointSettings(f"http://{shown}:1/v1", "m").check()
    EndpointSettings("http://host/v1", "m", allow_http=True).check()


def test_what_an_answer_says_is_never_a_place_in_the_prompt():
    """Each place is filled once, and braces of JSON stay."""
    one = Question("q", "{answer}", "{question}", '{ground_truth} {"a": 1}')
    assert filled("{question}|{ground_truth}|{answer}|{x}{}", one) == (
        '{answer}|{question}|{ground_truth} {"a": 1}|{x}{}'
    )
    check_prompt(PROMPT, "here")


def test_no_proxy_and_no_netrc_replaces_the_key(ask, server, monkeypatch, tmp_path):
    """The environment of this machine may have both."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password other\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    ask(QUESTIONS[:1])
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.slow
def test_a_command_that_is_killed_asks_nothing_twice(server, make_store, wait_until):
    """Killed in the middle, for good; there is no table before every answer is judged."""
    rows = [
        {"question": f"Is there a dog, {number}?", "truth": "no", "answer": "No."}
        for number in range(20)
    ]
    path = make_store(rows)
    release = threading.Event()

    def answer(number, body):
        if number > 10:
            release.wait(60)
        return 200, RIGHT, {}

    server.answer = answer
    command = [
        *(sys.executable, "-m", "halp_probe", "label", str(path), "--judge", "endpoint"),
        *("--endpoint", server.url, "--judge-model", "m", "--name", "llm", "--concurrency", "2"),
    ]
    environment = {**os.environ, "HALP_JUDGE_KEY": KEY}
    running = subprocess.Popen(command, env=environment)
    kept = path.with_name("run1.labels") / "llm"
    wait_until(lambda: len(server.requests) == 12)
    wait_until(lambda: sum(one.read_bytes().count(b"\n") for one in kept.iterdir()) == 10)
    running.kill()
    running.wait()
    assert [one.suffix for one in kept.iterdir()] == [".unfinished"]
    release.set()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    asked = [one["messages"][0]["content"] for one in server.requests]
    assert len(asked) == 12 + 10
    assert len(set(asked)) == 20
    found = read_labels(open_store(path), "llm")
    assert [one.label for one in found.verdicts.values()] == [Label.RIGHT] * 20
    assert found.about["options"]["prompt"] == PROMPT
    assert [one.name for one in kept.iterdir()] == ["000001"]
    for one in path.with_name("run1.labels").rglob("*"):
        assert one.is_dir() or KEY.encode() not in one.read_bytes()
    assert KEY not in done.stdout + done.stderr
