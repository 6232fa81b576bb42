"""`place_of`: where one question of a run is. Read in one step; changes nothing."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, cast

import redis

from halp_producer.keys import RunKeys

# Not the entry itself: there may be an image in it.
_READ: Final = """#!lua flags=no-writes
-- KEYS: jobs, known. ARGV: question id.
local stored = redis.call('HGET', KEYS[2], ARGV[1])
if not stored then return 'unknown' end
local id = string.match(stored, '^%d+%-%d+') or '0-1'
return #redis.call('XRANGE', KEYS[1], id, id) > 0 and 'queued' or 'ended'
"""


class Place(StrEnum):
    """queued: waiting, delayed or in flight. ended: done or failed. unknown: the run does not have
    this id (any more)."""

    QUEUED = "queued"
    ENDED = "ended"
    UNKNOWN = "unknown"


def place_of(client: redis.Redis, keys: RunKeys, question_id: str) -> Place:
    """Raises what redis-py raises."""
    script = client.register_script(_READ)
    return Place(cast(bytes, script(keys=[keys.jobs, keys.known], args=[question_id])).decode())
