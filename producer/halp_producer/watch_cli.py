"""What `status --watch` and `enqueue --wait` do, once the options are read."""

from __future__ import annotations

import sys
from contextlib import closing, nullcontext, suppress

from halp_producer.console import errors
from halp_producer.keys import RunKeys
from halp_producer.server import connect
from halp_producer.status import RunStatus
from halp_producer.watch import JsonLines, looks, screen
from halp_producer.wording import run_option


def watch_run(url: str, keys: RunKeys, *, as_json: bool) -> None:
    """On stdout, until Ctrl-C: the way to leave, and no error."""
    on_stdout = (
        nullcontext(JsonLines(sys.stdout))
        if as_json
        else screen(sys.stdout, "Ctrl-C leaves; the workers go on")
    )
    with (
        errors(url),
        closing(connect(url)) as client,
        suppress(KeyboardInterrupt),
        on_stdout as show,
    ):
        for look in looks(client, keys, until_forgotten=False):
            show(look)


def wait_for_run(url: str, keys: RunKeys) -> RunStatus:
    """On stderr, until every question of the run is done or failed, whoever enqueued it."""
    again = f"the jobs stay: halp-producer status{run_option(keys.run)} --watch shows them"
    with (
        errors(url, lambda: again),
        closing(connect(url)) as client,
        screen(sys.stderr, "Ctrl-C leaves; the jobs stay") as show,
    ):
        for look in looks(client, keys, until_forgotten=True):
            show(look)
            if look.found.finished and not look.problem:
                break
    return look.found
