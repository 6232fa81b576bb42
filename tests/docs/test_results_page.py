"""The results page's examples run as they are written, against a real server and a consumer."""

from __future__ import annotations

import threading

from halp_producer import RunKeys, server
from halp_store.features import StoredRow, _seal_receipt
from halp_worker.consumer import Consumer
from halp_worker.delivery import row_key
from halp_worker.fates import Reason, Rejection

from .test_pages import run


def test_the_results_page_gets_its_answers(client, monkeypatch):
    """A stored question gives its answer, a failed one its reason."""
    keys = RunKeys("kitchens")
    client.delete(keys.jobs, keys.known, keys.counts, keys.results, keys.failed)
    monkeypatch.setattr(server, "connect", lambda url: client)

    def work() -> None:
        consumer = Consumer(client, keys, name="w1", lease_ms=60_000)
        found = []
        while len(found) < 2:
            found += consumer.read(2, 1000)
        kettle, dog = (one.job for one in found)
        consumer.ack(_seal_receipt((StoredRow(row_key(kettle), "seg", 0, "Yes."),)))
        consumer.fail(row_key(dog), Rejection(Reason.IMAGE_MISSING, "not there"))

    worker = threading.Thread(target=work)
    worker.start()
    names = run("results.md")
    worker.join()
    assert names["ended"] == {"k0": "Yes.", "k1": "image_missing"}
