"""`entries`: a stream, a page at a time and without the images in it, so that memory stays flat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple, cast

import redis

from halp_producer.job import IMAGE_DATA

_PAGE: Final = 256
"""Entries a request."""

_PAGE_BYTES: Final = 1 << 20
"""After so much the server ends a page, images included: it has all of a page in memory at once."""

# One entry at a time, so that the server never holds more than a page and one entry.
_READ: Final = """#!lua flags=no-writes
-- KEYS: a stream. ARGV: XRANGE or XREVRANGE, from, to, the most entries, the most bytes, the name
-- of the field that stays here. Returns whether the end was reached, and for each entry its id, its
-- other fields, and how many bytes that one has (-1: there is none).
local from, found, bytes = ARGV[2], {}, 0
while #found < tonumber(ARGV[4]) and bytes < tonumber(ARGV[5]) do
  local entry = redis.call(ARGV[1], KEYS[1], from, ARGV[3], 'COUNT', 1)[1]
  if not entry then return {1, found} end
  local fields, size = {}, -1
  for i = 1, #entry[2], 2 do
    local name, value = entry[2][i], entry[2][i + 1]
    bytes = bytes + #name + #value
    if name == ARGV[6] then
      size = #value
    else
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
  end
  found[#found + 1] = {entry[1], fields, size}
  from = '(' .. entry[1]
end
return {0, found}
"""


class Entry(NamedTuple):
    """One entry of a stream, its fields as bytes.

    image_bytes: size of the image inside it, which is not read; None where there is none.
    """

    entry_id: str
    fields: dict[bytes, bytes]
    image_bytes: int | None = None


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
    start = "-" if after is None else f"({after}"
    return _entries(client, key, "XRANGE", start, last or "+", limit)


def newest_entries(client: redis.Redis, key: str, limit: int) -> list[Entry]:
    """The last ones, newest first, at most `limit`. Raises what redis-py raises."""
    return list(_entries(client, key, "XREVRANGE", "+", "-", limit))


def _entries(
    client: redis.Redis, key: str, command: str, start: str, end: str, limit: int | None
) -> Iterator[Entry]:
    read = client.register_script(_READ)
    left = limit
    while left is None or left > 0:
        count = _PAGE if left is None else min(_PAGE, left)
        is_end, page = cast(
            "tuple[int, list[tuple[bytes, list[bytes], int]]]",
            read(keys=[key], args=[command, start, end, count, _PAGE_BYTES, IMAGE_DATA]),
        )
        for entry_id, flat, size in page:
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            yield Entry(entry_id.decode("ascii"), fields, size if size >= 0 else None)
        if is_end:
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


def of_one_stream(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """(entry id, fields) of what XREAD or XREADGROUP found on a single stream, if anything."""
    # A mapping with RESP3 (lists of entries inside one more list), pairs with RESP2.
    lists = (
        [part for parts in answer.values() for part in parts]
        if isinstance(answer, dict)
        else [part for _, part in answer or ()]
    )
    return [entry for part in lists for entry in part]
