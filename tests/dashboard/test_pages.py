"""What each address answers, asked of a real server over a real store."""

import io
import json
import re
import time

import pytest
from PIL import Image

from halp_producer import Job, RunKeys
from halp_producer.activity import WorkerActivity
from halp_producer.enqueue import enqueue_jobs

from .conftest import NO_SERVER, write_picture, write_rows

STRANGE = ("..", "a/../b", "q ü?#&%2f", "line\nbreak", "<b>q</b>", "'\"", " ", "/")
"""Ids that a path, a query or a shell would like to read otherwise."""


@pytest.fixture(scope="module")
def site(serve_site, tmp_path_factory):
    """120 questions on a picture, one on none, and those with strange ids."""
    folder = tmp_path_factory.mktemp("site")
    sha256 = write_picture(folder / "images", "a.png")
    usual = {
        "question_text": "Is there a kettle?",
        "image": "a.png",
        "image_sha256": sha256,
        "ground_truth": "No",
        "answer": "No.",
        "metadata": '{"kind": "existence"}',
    }
    rows = [{"question_id": f"q{number:03d}", **usual} for number in range(120)]
    rows += [{**usual, "question_id": one} for one in STRANGE]
    rows += [{**usual, "question_id": "lost", "image": "../lost.png", "answer": "Yes"}]
    write_rows(folder / "s.zarr", rows)
    return serve_site(folder / "s.zarr", image_root=folder / "images")


def test_a_page_of_questions_is_fifty_rows_in_order_of_id(site):
    """With how many there are, for the pages before and after."""
    answer = site.get("/api/questions", {"offset": 50}).json
    ids = sorted([*(f"q{number:03d}" for number in range(120)), *STRANGE, "lost"])
    assert [one["question_id"] for one in answer["rows"]] == ids[50:100]
    assert (answer["total"], answer["searched"], answer["of"]) == (129, 129, 129)
    assert set(answer["rows"][0]) == {
        *("question_id", "question_text", "ground_truth", "answer", "image", "verdict"),
        *("rule", "note"),
    }


def test_questions_are_found_by_text_verdict_and_condition(site):
    """Each alone; tests of `Search` have the rest."""
    assert site.ids(text="q01") == [f"q{number:03d}" for number in range(10, 20)]
    assert site.ids(verdict="wrong") == ["lost"]
    assert len(site.ids(where="metadata.kind=existence")) == 50
    assert site.ids(where="metadata.kind=colour") == []


@pytest.mark.parametrize("question_id", ["q007", *STRANGE])
def test_a_question_is_found_by_its_id_whatever_it_holds(site, question_id):
    """It travels as a parameter, since no path survives `..`."""
    one = site.get("/api/question", {"id": question_id}).json
    assert one["question_id"] == question_id
    assert one["verdict"] == "right"
    assert one["rule"]
    assert one["metadata"] == {"kind": "existence"}
    assert one["arrays"]["query_token"]["shape"] == [3, 8]
    assert one["arrays"]["query_token"]["norms"] == pytest.approx([8**0.5 / 2] * 3)
    assert one["arrays"]["vision_encoder"]["norms"] == pytest.approx([6**0.5 / 2])
    names = {}
    exec(one["commands"]["python"], names)  # noqa: S102 - what the page tells people to run
    assert names["record"].question_id == question_id


def test_a_picture_is_given_by_question_id(site):
    """A thumbnail and a large one, both JPEG."""
    for size, wide in (("thumbnail", 192), ("large", 400)):
        answer = site.get("/api/picture", {"id": "..", "size": size})
        assert answer.headers["content-type"] == "image/jpeg"
        with Image.open(io.BytesIO(answer.body)) as picture:
            assert picture.size[0] == wide


def test_a_picture_outside_the_root_is_refused(site):
    """Although a stored row names it."""
    answer = site.get("/api/picture", {"id": "lost"})
    assert answer.status == 404
    assert "outside the root" in answer.json["error"]


@pytest.mark.parametrize(
    ("path", "params", "status", "says"),
    [
        ("/api/question", {"id": "q999"}, 404, "no row for question id"),
        ("/api/question", {}, 400, "expected a question id"),
        ("/api/picture", {"id": "/etc/passwd"}, 404, "no row for question id"),
        ("/api/picture", {"id": "q001", "size": "../x"}, 400, "thumbnail, large"),
        ("/api/questions", {"offset": "-1"}, 400, "whole number"),
        ("/api/questions", {"verdict": "maybe"}, 400, "right or wrong or abstained"),
        ("/api/questions", {"where": "nothing=1"}, 400, "no column"),
        ("/api/questions", {"where": "answer~x"}, 400, "no regular expressions"),
        ("/static/../pages.py", {}, 404, ""),
        ("/static/%2e%2e/pages.py", {}, 404, ""),
    ],
)
def test_what_is_wrong_is_a_status_and_a_sentence(site, path, params, status, says):
    """Never a traceback."""
    answer = site.get(path, params)
    assert answer.status == status
    assert says in answer.body.decode()
    assert "Traceback" not in answer.body.decode()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_but_reading_is_answered(site, method):
    """GET and HEAD alone."""
    for path in ("/", "/api/questions", "/api/picture", "/static/app.js"):
        assert site.get(path, method=method).status == 405


def test_head_is_answered_without_a_body(site):
    """As for every page."""
    answer = site.get("/api/status", method="HEAD")
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize("path", ["/", "/api/status", "/static/app.js", "/healthz", "/nothing"])
def test_every_answer_forbids_what_is_not_from_here(site, path):
    """Also errors."""
    headers = site.get(path).headers
    policy = headers["content-security-policy"].split("; ")
    assert policy[0] == "default-src 'none'"
    assert not {"unsafe-inline", "unsafe-eval", "*", "data:"} & set(" ".join(policy).split())
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in headers


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere(site):
    """What the policy forbids would not run, and is not there."""
    page = site.get("/").body.decode()
    assert "://" not in page
    assert "<style" not in page
    assert " style=" not in page
    assert not re.search(r"\son\w+=", page)
    assert page.count("<script") == page.count('<script type="module" src="/static/')


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "evil.example:80"])
def test_a_name_that_is_not_ours_is_refused(site, host):
    """A page of somebody else cannot point its own name here (DNS rebinding)."""
    for path in ("/", "/api/status", "/api/picture", "/static/app.js"):
        assert site.get(path, headers={"Host": host}).status == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9999", "127.0.0.1:1", "[::1]:8050"])
def test_our_own_names_and_addresses_are_answered(site, host):
    """With any port: it may have come through a tunnel."""
    assert site.get("/api/status", headers={"Host": host}).status == 200


@pytest.mark.parametrize("site_of", ["cross-site", "same-site"])
def test_a_page_of_somebody_else_starts_nothing(site, site_of):
    """Its browser says where a request comes from."""
    headers = {"Sec-Fetch-Site": site_of}
    assert site.get("/api/questions", headers=headers).status == 403
    assert site.get("/api/picture", {"id": "q001"}, headers=headers).status == 403
    assert site.get("/", headers=headers).status == 200  # a link to the page


def test_without_a_server_the_store_is_shown_all_the_same(site, wait_until):
    """And the page is told why there is no fleet."""
    wait_until(lambda: "no server at" in site.get("/api/status").json["server"]["problem"])
    status = site.get("/api/status").json
    assert status["status"] is None
    assert status["store"]["rows"] == 129
    assert site.get("/healthz").json == {"ok": True}


def test_a_store_that_is_not_there_yet_shows_up(serve_site, tmp_path, wait_until):
    """First a sentence, then rows, without a restart."""
    path = tmp_path / "s.zarr"
    site = serve_site(path)
    assert "there is no store yet" in site.get("/api/status").json["store"]["problem"]
    assert "there is no store yet" in site.get("/api/questions").json["error"]
    write_rows(path, [{"question_id": "q1"}])
    wait_until(lambda: site.get("/api/status").json["store"]["rows"] == 1)
    write_rows(path, [{"question_id": "q0"}])
    wait_until(lambda: site.get("/api/questions").json["total"] == 2)
    assert site.ids() == ["q0", "q1"]


def test_what_is_no_store_is_said(serve_site, tmp_path):
    """It will not become one by waiting."""
    (tmp_path / "notes.txt").write_text("mine")
    problem = serve_site(tmp_path).get("/api/status").json["store"]["problem"]
    assert "not a store" in problem


def test_a_damaged_row_is_an_error_with_its_segment(serve_site, tmp_path):
    """Others are still shown."""
    path = tmp_path / "s.zarr"
    write_rows(path, [{"question_id": "q1"}])
    site = serve_site(path)
    (segment,) = (path / "segments").iterdir()
    for chunk in (segment / "query_token").glob("c*"):
        chunk.write_bytes(chunk.read_bytes()[:-1])
    answer = site.get("/api/question", {"id": "q1"})
    assert answer.status == 500
    assert segment.name in answer.json["error"]
    assert site.ids() == ["q1"]


def test_the_fleet_is_what_the_server_says(serve_site, client, server, run, tmp_path, wait_until):
    """Counts, workers, failures with their reasons; then a gap while the server is away."""
    keys = RunKeys(run)
    site = serve_site(tmp_path / "s.zarr", run=run, redis_url=server.url)
    wait_until(lambda: "no run" in site.get("/api/status").json["server"]["problem"])
    jobs = [
        Job(question_id=f"q{n}", image="a.png", question="?", ground_truth="") for n in range(5)
    ]
    enqueue_jobs(client, keys, jobs)
    now_ms = int(1000 * time.time())
    said = WorkerActivity(
        worker="w1", host="h", pid=1, device="cpu", model="m", state="working",
        started_ms=now_ms, seen_ms=now_ms, rows_per_second=2.5,
    )  # fmt: skip
    client.hset(keys.workers, "w1", said.model_dump_json())
    client.hincrby(keys.counts, "failed", 1)
    client.hincrby(keys.counts, "enqueued", 1)
    letter = {"question_id": "q9", "reason": "image_missing", "error": "image not found: x.png"}
    client.xadd(keys.failed, {**letter, "attempts": "1", "traceback": "secret", "image_data": "x"})
    wait_until(lambda: site.get("/api/status").json["failures"])
    answer = site.get("/api/status").json
    status = answer["status"]
    assert (status["enqueued"], status["waiting"], status["failed"]) == (6, 5, 1)
    assert status["workers"][0]["activity"]["device"] == "cpu"
    assert status["workers"][0]["state"] == "working"
    assert {"rows_per_second", "seconds_left", "progress"} < set(status)
    (failure,) = answer["failures"]
    assert letter.items() <= failure.items()
    assert "traceback" not in failure
    points = site.get("/api/throughput").json["points"]
    assert points[-1]["left"] == 5
    assert points[-1]["workers"] == 1
    assert json.dumps(answer).find(NO_SERVER) < 0
