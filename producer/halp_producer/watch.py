"""`looks` looks at a run each second; `screen` shows each look, as the place it goes to wants it.

Knows how to go on while the server is away. What is shown is decided in `fleet_view.py` and
`wording.py`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TextIO

import redis

from halp_producer.fleet_view import fleet_view
from halp_producer.keys import RunKeys
from halp_producer.look import Look, Lookout
from halp_producer.outages import is_outage
from halp_producer.problem import in_short
from halp_producer.status import UnknownRunError, run_status
from halp_producer.wording import duration, watch_line

if TYPE_CHECKING:
    from rich.console import RenderableType

EVERY_S: Final = 1.0
"""Each look is one script on the server."""

_LINE_EVERY_S: Final = 5.0
"""A log of a night stays readable."""

_SILENT_S: Final = 4.0
"""An answer that takes longer is worth a word: the server hangs, or the network does."""

Show = Callable[[Look], None]


def looks(
    client: redis.Redis,
    keys: RunKeys,
    *,
    until_forgotten: bool,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Look]:
    """A look each second, for ever; while the server is away, the last one with the problem.

    The first reading raises UnknownRunError, and what redis-py raises; later ones what is no
    outage. until_forgotten: whether a server that comes back without the run is an end, too.
    """
    lookout = Lookout()
    look = lookout.look(run_status(client, keys), clock())
    answered_s = clock()
    while True:
        yield look
        sleep(EVERY_S)
        try:
            look = lookout.look(run_status(client, keys), clock())
            answered_s = clock()
        except UnknownRunError:
            if until_forgotten:
                raise
            look = replace(look, problem="the server has forgotten the run: enqueue it again")
        except redis.RedisError as error:
            if not is_outage(error):
                raise
            away = duration(clock() - answered_s)
            reason = in_short(str(error).rstrip("."), 60)
            look = replace(look, problem=f"server away for {away}, trying again ({reason})")


@contextmanager
def screen(stream: TextIO, hint: str) -> Iterator[Show]:
    """What shows looks there: a view that stays on a terminal, else a line now and then."""
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream)
    if not stream.isatty() or console.is_dumb_terminal:
        yield PlainLines(stream)
        return
    view = View(hint)
    with Live(
        get_renderable=lambda: view.picture(*console.size),
        console=console,
        refresh_per_second=1 / EVERY_S,
        redirect_stdout=False,
    ):
        console.show_cursor(True)  # who ends it by a signal gets the terminal back as it was
        yield view


class View:
    """The last look, drawn by rich's own thread: it goes on while a reading takes long."""

    def __init__(self, hint: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._hint, self._clock = hint, clock
        self._last: tuple[Look, float] | None = None

    def __call__(self, look: Look) -> None:
        self._last = look, self._clock()

    def picture(self, width: int, height: int) -> RenderableType:
        if self._last is None:
            return ""
        look, shown_s = self._last
        silent_s = self._clock() - shown_s
        if silent_s > _SILENT_S and not look.problem:
            problem = f"the server has not answered for {duration(silent_s)}"
            look = replace(look, problem=problem)
        return fleet_view(look, width=width, height=height, hint=self._hint)


class PlainLines:
    """A line every few seconds, and one at once where a problem comes or goes."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._due_s = -float("inf")
        self._had_problem = False

    def __call__(self, look: Look) -> None:
        is_news = bool(look.problem) != self._had_problem
        if is_news or self._clock() >= self._due_s:
            self._due_s = self._clock() + _LINE_EVERY_S
            self._had_problem = bool(look.problem)
            print(watch_line(look), file=self._stream, flush=True)


class JsonLines:
    """Each look as one JSON object in a line: the fields of the status, and of the look."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, look: Look) -> None:
        fields = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            **look.found.model_dump(mode="json"),
            "seconds_left": look.seconds_left,
            "problem": look.problem,
        }
        print(json.dumps(fields), file=self._stream, flush=True)
