"""`entries`: a stream from its first entry on, a page at a time, so that memory stays flat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, cast

import redis

_PAGE: Final = 256
"""Entries a request; each may be some MiB."""


class Entry(NamedTuple):
    """One entry of a stream, its fields as bytes."""

    entry_id: str
    fields: dict[bytes, bytes]


def entries(
    client: redis.Redis,
    key: str,
    limit: int | None = None,
    *,
    after: str | None = None,
    last: str | None = None,
) -> Iterator[Entry]:
    """Oldest first, at most `limit`; those above the id `after`, up to the id `last`.

    Entries that were read may be deleted meanwhile. Raises what redis-py raises.
    """
    left = limit
    start = "-" if after is None else f"({after}"
    while left is None or left > 0:
        count = _PAGE if left is None else min(_PAGE, left)
        page = cast(
            "list[tuple[bytes, dict[bytes, bytes]]]",
            client.xrange(key, min=start, max=last or "+", count=count),
        )
        for entry_id, fields in page:
            yield Entry(entry_id.decode("ascii"), fields)
        if len(page) < count:
            return
        start = "(" + page[-1][0].decode("ascii")
        left = None if left is None else left - len(page)


def last_entry_id(client: redis.Redis, key: str) -> str | None:
    """The id of the newest entry; None where there is none."""
    newest = cast("list[tuple[bytes, object]]", client.xrevrange(key, count=1))
    return newest[0][0].decode("ascii") if newest else None


def text(fields: dict[bytes, bytes], name: str) -> str:
    """A field as text: empty where it is not there, U+FFFD for what is not UTF-8."""
    return fields.get(name.encode("ascii"), b"").decode("utf-8", "replace")
