"""`RunAccount`: where each question of a run is, by id; for comparing a run with a store.

Knows the keys of a run; refuses to know stores. Ids are held in memory, contents are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast

import redis

from halp_producer.keys import RunKeys
from halp_producer.pages import entries, text
from halp_producer.status import require_run

_PAGE: Final = 1000
"""Known questions a request."""


@dataclass(frozen=True)
class RunAccount:
    """Every question of a run, and where it was.

    known: question id -> content hash, of everything enqueued and not dropped.
    failed: question id -> reason, of the newest letter where there are more.
    queued: question ids that were waiting, delayed or in flight.

    A known question that is neither queued nor failed is done. Entries and letters without an id
    are left out; those with an id that was never enqueued are in `failed` and `queued` alone.
    """

    known: dict[str, str]
    failed: dict[str, str]
    queued: frozenset[str]


def run_account(client: redis.Redis, keys: RunKeys) -> RunAccount:
    """Reads a run in pages. Raises UnknownRunError, and what redis-py raises.

    The run may go on meanwhile: known questions are read first, then the stream, then the letters,
    then what was added to the stream since. So a question that fails meanwhile is in `queued`, in
    `failed` or in both, and one that is retried meanwhile is found too. One that is done meanwhile
    may be in `queued` though it is stored; one that was enqueued meanwhile may be in `queued` and
    not in `known`; one that was dropped meanwhile may be in `known` alone, as if it were done.
    Read the store after this, not before.
    """
    require_run(client, keys)
    known = _known(client, keys)
    queued: set[str] = set()
    newest = _queued(client, keys, None, queued)
    failed = {}
    for letter in entries(client, keys.failed):
        if question_id := text(letter.fields, "question_id"):
            failed[question_id] = text(letter.fields, "reason")
    _queued(client, keys, newest, queued)
    return RunAccount(known=known, failed=failed, queued=frozenset(queued))


def _known(client: redis.Redis, keys: RunKeys) -> dict[str, str]:
    known: dict[str, str] = {}
    cursor = 0
    while True:
        cursor, page = cast(
            "tuple[int, dict[bytes, bytes]]", client.hscan(keys.known, cursor, count=_PAGE)
        )
        for name, value in page.items():
            _, _, content = value.decode("utf-8", "replace").partition(" ")
            known[name.decode("utf-8", "replace")] = content
        if cursor == 0:
            return known


def _queued(client: redis.Redis, keys: RunKeys, after: str | None, found: set[str]) -> str | None:
    """Adds the ids on the stream above the entry `after` to `found`; the last entry read."""
    for entry in entries(client, keys.jobs, after=after):
        after = entry.entry_id
        if question_id := text(entry.fields, "question_id"):
            found.add(question_id)
    return after
