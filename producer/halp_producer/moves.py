"""What people move: failed jobs back or out, and jobs from the stream to the failed ones.

Knows the keys of a run and nothing of what it prints. Each move is one script, so that a job is
in one place at every instant and enqueued = waiting + delayed + in flight + done + failed holds
after it if it held before. Each may run twice: what has gone already is left as it is.

A run may hold what enqueueing never counted (an entry that another program added, or a second
letter of one question): moving it never takes a counted job along, and dropping it mends the sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Final, cast

import redis

from halp_producer.enqueue import CHUNK_BYTES, CHUNK_JOBS
from halp_producer.job import MAX_ID_BYTES
from halp_producer.keys import (
    DELAYED,
    ENQUEUED,
    FAILED,
    FAILED_FOR,
    GROUP,
    LETTER_FIELDS,
    RunKeys,
)
from halp_producer.pages import last_entry_id
from halp_producer.results import RESULTS_KEPT

CANCELLED: Final = "cancelled"
"""The reason of a letter that `cancel` wrote."""

CANCELLED_ERROR: Final = "cancelled by halp-producer cancel"

_MOST_FIELDS: Final = 1000
"""Of an entry, that are taken along; Lua cannot pass on 4000, and no job has ten."""

_ENTRY: Final = """
local function entry_at(key, id)
  return redis.call('XRANGE', key, id, id)[1]
end
local function field_of(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end
-- The entry that the job of this question has on the stream, or had; nil for an unknown question.
local function known_entry(known, question_id)
  local stored = question_id and redis.call('HGET', known, question_id)
  if not stored then return nil end
  return string.match(stored, '^(%d+%-%d+) ') or '0-1', string.match(stored, ' (%S+)$') or ''
end
local function count_failed(counts, field, field_for, reason, by)
  redis.call('HINCRBY', counts, field, by)
  if redis.call('HINCRBY', counts, field_for .. reason, by) == 0 then
    redis.call('HDEL', counts, field_for .. reason)
  end
end
-- A letter's own fields come last: an entry that is no job may have had some of that name before.
local function reason_of(fields)
  for i = #fields - 1, 1, -2 do
    if fields[i] == 'reason' then return fields[i + 1] end
  end
  return ''
end
"""

# XADD comes first and without allow-oom: the server asks for memory only before a script's first
# write, so that a refusal leaves no trace of the chunk.
_RETRY: Final = (
    _ENTRY
    + """
-- KEYS: jobs, known, counts, failed. ARGV: the count fields of failed and (what they start with) of
-- reasons, how many fields an entry may have, how many names follow, names of the fields only
-- letters have; then letter ids. Returns a sign for each.
local jobs, known, counts, failed = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local most, width = tonumber(ARGV[3]), tonumber(ARGV[4])
local of_letter = {}
for i = 5, 4 + width do of_letter[ARGV[i]] = true end
local signs = {}
for at = 5 + width, #ARGV do
  local letter = entry_at(failed, ARGV[at])
  local add, sign = {'XADD', jobs, '*'}, '-'
  if letter then
    local fields = letter[2]
    for i = 1, math.min(#fields, 2 * most), 2 do
      if not of_letter[fields[i]] then
        add[#add + 1] = fields[i]
        add[#add + 1] = fields[i + 1]
      end
    end
    local question_id = field_of(fields, 'question_id')
    local entry, hash = known_entry(known, question_id)
    if #add == 3 then
      sign = '0'
    elseif entry and entry_at(jobs, entry) then
      sign = '='
    else
      local added = redis.call(unpack(add))
      redis.call('XDEL', failed, ARGV[at])
      count_failed(counts, ARGV[1], ARGV[2], reason_of(fields), -1)
      if entry then redis.call('HSET', known, question_id, added .. ' ' .. hash) end
      sign = '+'
    end
  end
  signs[#signs + 1] = sign
end
return signs
"""
)

# A question is forgotten only if it is known and its job is not on the stream: then the letter is
# its job. Any other letter is one more than was ever enqueued, and only it goes.
_DROP: Final = (
    "#!lua flags=allow-oom\n"
    + _ENTRY
    + """
-- KEYS: jobs, known, counts, failed. ARGV: the count fields of failed, (what they start with) of
-- reasons and of enqueued, letter ids. Returns a sign for each.
local jobs, known, counts, failed = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local signs = {}
for at = 4, #ARGV do
  local letter = entry_at(failed, ARGV[at])
  if letter then
    local question_id = field_of(letter[2], 'question_id')
    local entry = known_entry(known, question_id)
    local forgotten = entry and not entry_at(jobs, entry)
    redis.call('XDEL', failed, ARGV[at])
    count_failed(counts, ARGV[1], ARGV[2], reason_of(letter[2]), -1)
    if forgotten then
      redis.call('HDEL', known, question_id)
      redis.call('HINCRBY', counts, ARGV[3], -1)
    end
  end
  signs[#signs + 1] = letter and '+' or '-'
end
return signs
"""
)

_CANCEL_ENTRY: Final = (
    "#!lua flags=allow-oom\n"
    + _ENTRY
    + """
-- KEYS: jobs, known, counts, failed, delayed, attempts, results. ARGV: group, the consumer of
-- delayed jobs, the count fields of failed and (what they start with) of reasons, how many fields
-- an entry may have, reason, error, how many results are kept, the longest id in bytes; then more.
local jobs, known, counts, failed, delayed, attempts, results = unpack(KEYS)
local clock = redis.call('TIME')
local now = clock[1] .. string.format('%03d', math.floor(clock[2] / 1000))
local function cancel(entry)
  local id, fields = entry[1], entry[2]
  local pending = redis.pcall('XPENDING', jobs, ARGV[1], id, id, 1)
  local holder = pending.err == nil and pending[1] and pending[1][2] or ''
  if holder == ARGV[2] then holder = '' end
  local add, bytes = {'XADD', failed, '*'}, 0
  for i = 1, math.min(#fields, 2 * tonumber(ARGV[5])) do
    add[#add + 1] = fields[i]
    bytes = bytes + #fields[i]
  end
  for _, one in ipairs({'reason', ARGV[6], 'error', ARGV[7], 'traceback', '',
                        'attempts',
                        string.match(redis.call('HGET', attempts, id) or '0', '^%d+') or '0',
                        'worker', holder, 'failed_ms', now}) do
    add[#add + 1] = one
  end
  redis.call(unpack(add))
  redis.call('XACK', jobs, ARGV[1], id)
  redis.call('XDEL', jobs, id)
  redis.call('ZREM', delayed, id)
  redis.call('HDEL', attempts, id)
  count_failed(counts, ARGV[3], ARGV[4], ARGV[6], 1)
  redis.call('XADD', results, 'MAXLEN', '~', ARGV[8], '*',
             'question_id', string.sub(field_of(fields, 'question_id') or '', 1, tonumber(ARGV[9])),
             'fate', 'failed', 'reason', ARGV[6], 'error', ARGV[7])
  return bytes
end
"""
)
"""Whoever holds the entry finds it lost at its next script, which all ask whether it is theirs."""

_CANCEL: Final = (
    _CANCEL_ENTRY
    + """
-- ARGV further: question ids. Returns a sign for each.
local signs = {}
for at = 10, #ARGV do
  local id = known_entry(known, ARGV[at])
  local entry, sign = id and entry_at(jobs, id), '?'
  if entry and field_of(entry[2], 'question_id') == ARGV[at] then
    cancel(entry)
    sign = '+'
  elseif id then
    sign = '-'
  end
  signs[#signs + 1] = sign
end
return signs
"""
)

_CANCEL_FIRST: Final = (
    _CANCEL_ENTRY
    + """
-- ARGV further: the last entry id to take, the most entries, the most bytes. Returns how many.
local taken, bytes = 0, 0
while taken < tonumber(ARGV[11]) and bytes < tonumber(ARGV[12]) do
  local entry = redis.call('XRANGE', jobs, '-', ARGV[10], 'COUNT', 1)[1]
  if not entry then break end
  bytes = bytes + cancel(entry)
  taken = taken + 1
end
return taken
"""
)


_CANCEL_ARGUMENTS: Final[list[str | int]] = [
    *(GROUP, DELAYED, FAILED, FAILED_FOR, _MOST_FIELDS, CANCELLED, CANCELLED_ERROR),
    *(RESULTS_KEPT, MAX_ID_BYTES),
]


class Move(StrEnum):
    """What became of one of those that were to be moved.

    moved: it is where it was to go. gone: it was not where it was to come from (any more).
    on_the_stream: a letter whose question is on the stream as well; left. empty: a letter that
    has no field of a job; left. unknown: nothing of that name was ever enqueued.
    """

    MOVED = "moved"
    GONE = "gone"
    ON_THE_STREAM = "on_the_stream"
    EMPTY = "empty"
    UNKNOWN = "unknown"


_SIGNS: Final = {
    b"+": Move.MOVED,
    b"-": Move.GONE,
    b"=": Move.ON_THE_STREAM,
    b"0": Move.EMPTY,
    b"?": Move.UNKNOWN,
}


def retry_letters(client: redis.Redis, keys: RunKeys, letter_ids: Sequence[str]) -> list[Move]:
    """Failed jobs back to the end of the stream, each as a new entry without attempts.

    All in one step: pass at most CHUNK_JOBS ids of letters. One result for each, in order. Safe to
    repeat. Raises what redis-py raises; `redis.OutOfMemoryError` means that nothing was moved.
    """
    arguments: list[str | int] = [
        *(FAILED, FAILED_FOR, _MOST_FIELDS, len(LETTER_FIELDS), *LETTER_FIELDS)
    ]
    return _signs(client, _RETRY, _letter_keys(keys), arguments, letter_ids)


def drop_letters(client: redis.Redis, keys: RunKeys, letter_ids: Sequence[str]) -> list[Move]:
    """Failed jobs forgotten, as if they had never been enqueued; also on a full server.

    A letter that is no job of this run (its question is not known, or is on the stream) goes alone.
    Otherwise as `retry_letters`.
    """
    return _signs(client, _DROP, _letter_keys(keys), [FAILED, FAILED_FOR, ENQUEUED], letter_ids)


def cancel_jobs(client: redis.Redis, keys: RunKeys, question_ids: Sequence[str]) -> list[Move]:
    """Waiting, delayed and in-flight jobs to the failed ones; also on a full server.

    A job whose commit is under way may be stored all the same. All in one step: pass at most
    CHUNK_JOBS ids. One result for each, in order. Safe to repeat. Raises what redis-py raises.
    """
    return _signs(client, _CANCEL, _cancel_keys(keys), _CANCEL_ARGUMENTS, question_ids)


def cancel_all(client: redis.Redis, keys: RunKeys) -> Iterator[int]:
    """Cancels everything that is on the stream now, a chunk a step; yields how many each had.

    What is enqueued meanwhile stays. Safe to repeat; raises what redis-py raises.
    """
    last = last_entry_id(client, keys.jobs)
    if last is None:
        return
    script = client.register_script(_CANCEL_FIRST)
    arguments = [*_CANCEL_ARGUMENTS, last, CHUNK_JOBS, CHUNK_BYTES]
    while count := cast(int, script(keys=_cancel_keys(keys), args=arguments)):
        yield count


def _letter_keys(keys: RunKeys) -> list[str]:
    return [keys.jobs, keys.known, keys.counts, keys.failed]


def _cancel_keys(keys: RunKeys) -> list[str]:
    return [*_letter_keys(keys), keys.delayed, keys.attempts, keys.results]


def _signs(
    client: redis.Redis, text: str, keys: list[str], arguments: list[str | int], ids: Sequence[str]
) -> list[Move]:
    if not ids:
        return []
    script = client.register_script(text)
    return [_SIGNS[one] for one in cast("list[bytes]", script(keys=keys, args=[*arguments, *ids]))]
