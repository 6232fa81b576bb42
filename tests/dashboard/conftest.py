"""Small stores with pictures behind them, and the page over them, really served."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import numpy as np
import pytest
from PIL import Image

from halp_store.features import FeatureBatch
from halp_store.layout import TEXT_COLUMNS, Layout
from halp_store.writer import StoreWriter
from halp_worker.dashboard.serving import DashboardSettings, served

NO_SERVER = "redis://127.0.0.1:1/0"
"""Nothing listens there."""

LAYOUT = Layout(
    layers=(0, 3, 5),
    positions=("vision_token", "query_token"),
    hidden_size=8,
    vision_hidden_size=6,
    source_dtype="bfloat16",
    fingerprint={"model": {"id": "small", "revision": "abc"}},
)


def make_rows(rows: Sequence[dict[str, str]]) -> FeatureBatch:
    """Texts as given, the others by id; numbers that follow from their place."""
    usual = dict.fromkeys(TEXT_COLUMNS, "") | {"metadata": "{}", "finish_reason": "stop"}
    full = [usual | {"content_hash": f"hash {one['question_id']}"} | one for one in rows]
    count = len(rows)
    return FeatureBatch(
        LAYOUT,
        {name: tuple(one[name] for one in full) for name in TEXT_COLUMNS},
        {
            name: np.full((count, *shape), 7) + (100 if name == "prompt_tokens" else 0)
            for name, (_, shape) in LAYOUT.integer_columns().items()
        },
        {
            name: np.full((count, *shape), 0.5, np.float32)
            for name, (_, shape) in LAYOUT.vector_columns().items()
        },
    )


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """One more segment; makes the store if there is none."""
    writer = StoreWriter.open(path, LAYOUT, worker="worker", provenance={})
    writer.append(make_rows(rows))
    writer.flush()


def write_picture(folder: Path, name: str, colour: str = "teal", side: int = 400) -> str:
    """Its SHA-256."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side // 2), colour).save(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Answer(NamedTuple):
    """What an address gave. headers: names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Site:
    """A dashboard that is served; asks it as a browser would, or worse."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(
        self,
        path: str,
        params: dict[str, Any] | Sequence[tuple[str, Any]] = (),
        *,
        headers: dict[str, str] | None = None,
        method: str = "GET",
    ) -> Answer:
        where = urlsplit(self.address)
        query = urlencode(params)
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=30)
        try:
            connection.request(method, f"{path}?{query}" if query else path, headers=headers or {})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def ids(self, **params: Any) -> list[str]:
        """Of the first page of a search."""
        return [one["question_id"] for one in self.get("/api/questions", params).json["rows"]]


@pytest.fixture(scope="session")
def serve_site(wait_until_session: Callable[..., None]) -> Iterator[Callable[..., Site]]:
    """`serve_site(store, image_root=..., run=..., redis_url=...)`: waits for the store to show."""
    with ExitStack() as stack:

        def serve(store: Path, **changes: Any) -> Site:
            settings = {
                "store": str(store),
                "image_root": None,
                "run": "default",
                "redis_url": NO_SERVER,
                "host": "127.0.0.1",
                "port": 0,
                "allow_remote": False,
            }
            site = Site(stack.enter_context(served(DashboardSettings(**settings | changes))))
            opening = "the store is being opened"
            wait_until_session(lambda: site.get("/api/status").json["store"]["problem"] != opening)
            return site

        yield serve


@pytest.fixture(scope="session")
def wait_until_session() -> Callable[..., None]:
    """As `wait_until`, for fixtures that live as long as the session."""
    import time

    def wait(condition: Callable[[], object], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.01)

    return wait
