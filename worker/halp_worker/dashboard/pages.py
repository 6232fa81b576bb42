"""`build_app`: what each address answers. All of it is read only.

Question ids come as a query parameter: an id may hold slashes or be `..`, which no path survives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import wraps
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from halp_probe.judging.verdict import Label
from halp_producer.letters import DeadLetter
from halp_producer.look import Look
from halp_producer.wording import progress_text, state_text
from halp_store.errors import DamagedSegment, StoreError, UnknownQuestion
from halp_store.fields import UnknownField
from halp_store.query import FilterError
from halp_store.view import View
from halp_worker.dashboard.catalogue import Catalogue
from halp_worker.dashboard.fleet import Fleet
from halp_worker.dashboard.guard import Guard
from halp_worker.dashboard.pictures import SIDES, NoPicture, Pictures
from halp_worker.dashboard.rows import about, listed, whole
from halp_worker.dashboard.search import SearchBusy, Searches, Wanted

STATIC: Final = Path(__file__).parent / "static"

PAGE_ROWS: Final = 50

_PICTURE_SECONDS: Final = 300
"""How long a browser may keep a picture."""


class _Refused(Exception):  # noqa: N818 - as in `halp_worker.fates`
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def build_app(
    fleet: Fleet, catalogue: Catalogue, pictures: Pictures, names: Collection[str]
) -> Starlette:
    """names: host names that the server goes by; see `Guard`."""
    api = _Api(fleet, catalogue, pictures)
    return Starlette(
        routes=[
            Route("/", _index),
            Route("/healthz", _healthz),
            Route("/api/status", api.status),
            Route("/api/throughput", api.throughput),
            Route("/api/questions", api.questions),
            Route("/api/question", api.question),
            Route("/api/picture", api.picture),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, names=names)],
    )


async def _index(_: Request) -> Response:
    return FileResponse(STATIC / "index.html")


async def _healthz(_: Request) -> Response:
    """That this process answers; server and store may be away, the page says so itself."""
    return JSONResponse({"ok": True})


_Endpoint = Callable[["_Api", Request], Response]


def _explained(endpoint: _Endpoint) -> _Endpoint:
    """Errors that are foreseen become a status and `{"error": sentence}`."""

    @wraps(endpoint)
    def answer(self: _Api, request: Request) -> Response:
        try:
            return endpoint(self, request)
        except _Refused as error:
            return _error(error.status, error)
        except UnknownQuestion as error:
            return _error(404, error)
        except NoPicture as error:
            return _error(404, error)
        except (FilterError, UnknownField) as error:
            return _error(400, error)
        except SearchBusy as error:
            return _error(503, error)
        except DamagedSegment as error:
            self.catalogue.doubt()
            return _error(500, error)
        except (StoreError, OSError) as error:
            return _error(500, error)

    return answer


def _error(status: int, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=status)


class _Api:
    """Those that are `async` read memory only; the others read a disk, on threads."""

    def __init__(self, fleet: Fleet, catalogue: Catalogue, pictures: Pictures) -> None:
        self.catalogue = catalogue
        self._fleet, self._pictures = fleet, pictures
        self._searches = Searches()

    async def status(self, _: Request) -> Response:
        reading, shown = self._fleet.reading, self.catalogue.now()
        look, view = reading.look, shown.view
        return JSONResponse(
            {
                "now_s": time.time(),
                "run": self._fleet.run,
                "server": {
                    "url": self._fleet.server,
                    "problem": reading.problem,
                    "read_s": reading.read_s,
                },
                "status": _status(look) if look else None,
                "failures": [_failure(one) for one in reading.letters],
                "store": {
                    "path": self.catalogue.where,
                    "problem": shown.problem,
                    "rows": len(view) if view is not None else None,
                    "changes": shown.changes,
                    "segments": shown.segments,
                    "generation": shown.generation,
                    "about": about(view) if view is not None else None,
                },
                "pictures": self._pictures.are_shown,
            }
        )

    async def throughput(self, _: Request) -> Response:
        points = [one._asdict() for one in self._fleet.throughput()]
        return JSONResponse({"now_s": time.time(), "points": points})

    @_explained
    def questions(self, request: Request) -> Response:
        asked = request.query_params
        view = self._view()
        offset = _whole_number(asked.get("offset", "0"), "offset")
        wanted = Wanted(
            text=asked.get("text", "").strip(),
            conditions=tuple(one for one in asked.getlist("where") if one.strip()),
            verdict=_verdict(asked.get("verdict", "")),
        )
        if wanted.is_everything:
            # No list of all ids is made, and nothing is read but the rows of the page.
            ids, searched, of = view.ids[offset : offset + PAGE_ROWS], len(view), view
            total = len(view)
        else:
            search = self._searches.look(view, wanted, anew=asked.get("anew") == "1")
            ids, searched, of = (
                tuple(search.ids[offset : offset + PAGE_ROWS]),
                search.searched,
                search.view,
            )
            total = len(search.ids)
        return JSONResponse(
            {
                "total": total,
                "offset": offset,
                "page_rows": PAGE_ROWS,
                "searched": searched,
                "of": len(of),
                "newer_rows": len(view) - len(of),
                "rows": listed(of, ids),
            }
        )

    @_explained
    def question(self, request: Request) -> Response:
        view = self._view()
        return JSONResponse(whole(view, view[_id(request)]))

    @_explained
    def picture(self, request: Request) -> Response:
        size = request.query_params.get("size", "large")
        if size not in SIDES:
            raise _Refused(400, f"size: expected one of {', '.join(SIDES)}, got {size!r}")
        columns = self._view()[[_id(request)]].read(["image", "image_sha256"])
        image, sha256 = (str(columns[name][0]) for name in ("image", "image_sha256"))
        return Response(
            self._pictures.jpeg(image, sha256, SIDES[size]),
            media_type="image/jpeg",
            headers={"Cache-Control": f"private, max-age={_PICTURE_SECONDS}"},
        )

    def _view(self) -> View:
        shown = self.catalogue.now()
        if shown.view is None:
            raise _Refused(404, shown.problem or "there is no store")
        return shown.view


def _status(look: Look) -> dict[str, Any]:
    """As `halp-producer status --json`, and what a person is told of it."""
    found = look.found
    return {
        **found.model_dump(mode="json"),
        "workers": [
            {**one.model_dump(mode="json"), "state": state_text(one)} for one in found.workers
        ],
        "rows_per_second": look.rows_per_second,
        "seconds_left": look.seconds_left,
        "progress": progress_text(look),
    }


def _failure(letter: DeadLetter) -> dict[str, Any]:
    """Without what a job carries along: its traceback, a picture inside it."""
    names = {"entry_id", "question_id", "question", "image", "reason", "error", "attempts"}
    return letter.model_dump(mode="json", include=names | {"worker", "failed_ms"})


def _id(request: Request) -> str:
    question_id = request.query_params.get("id")
    if question_id is None:
        raise _Refused(400, "id: expected a question id, got none")
    return question_id


def _whole_number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise _Refused(400, f"{name}: expected a whole number, got {text!r}")
    return int(text)


def _verdict(text: str) -> Label | None:
    if text and text not in list(Label):
        raise _Refused(400, f"verdict: expected {' or '.join(Label)}, got {text!r}")
    return Label(text) if text else None
