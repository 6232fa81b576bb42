"""The Lua scripts of the worker. Each checks ownership and acts in one step.

XACK has no owner check: without these, a worker that was slow could remove an entry that is
another's by now. `allow-oom`: finishing work must go on when the server is full. The streams'
deleted entries keep its length equal to what is left.
"""

from __future__ import annotations

from typing import Final

OWNED: Final = """
local function owned(jobs, group, me, id)
  local pending = redis.pcall('XPENDING', jobs, group, id, id, 1, me)
  return pending.err == nil and #pending > 0
end
"""
"""Also false where the stream or its group is gone."""

_HEAD: Final = "#!lua flags=allow-oom\n" + OWNED

ACK: Final = (
    _HEAD
    + """
-- KEYS: jobs, counts. ARGV: group, me, count field, entry ids. Returns the ids that were not ours.
local lost = {}
for i = 4, #ARGV do
  if owned(KEYS[1], ARGV[1], ARGV[2], ARGV[i]) then
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
    redis.call('XDEL', KEYS[1], ARGV[i])
    redis.call('HINCRBY', KEYS[2], ARGV[3], 1)
  else
    table.insert(lost, ARGV[i])
  end
end
return lost
"""
)

REJECT: Final = (
    _HEAD
    + """
-- KEYS: jobs, counts, failed. ARGV: group, me, count field, entry id, reason, error.
-- Returns 1, or 0 if the entry was not ours.
if not owned(KEYS[1], ARGV[1], ARGV[2], ARGV[4]) then return 0 end
local entry = redis.call('XRANGE', KEYS[1], ARGV[4], ARGV[4])[1]
local fields = entry and entry[2] or {}
local now = redis.call('TIME')
for _, field in ipairs({'reason', ARGV[5], 'error', ARGV[6], 'worker', ARGV[2],
                        'failed_ms', now[1] .. string.format('%03d', math.floor(now[2] / 1000))}) do
  table.insert(fields, field)
end
redis.call('XADD', KEYS[3], '*', unpack(fields))
redis.call('XACK', KEYS[1], ARGV[1], ARGV[4])
redis.call('XDEL', KEYS[1], ARGV[4])
redis.call('HINCRBY', KEYS[2], ARGV[3], 1)
return 1
"""
)

RENEW: Final = (
    _HEAD
    + """
-- KEYS: jobs. ARGV: group, me, entry ids. Returns the ids that were not ours.
-- JUSTID: a renewal is not a delivery.
local lost = {}
for i = 3, #ARGV do
  if owned(KEYS[1], ARGV[1], ARGV[2], ARGV[i]) then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
  else
    table.insert(lost, ARGV[i])
  end
end
return lost
"""
)
