"""The Lua scripts of the worker: every move of a job that a worker makes, each in one step.

Each acts only on entries that are pending for the asking worker: XACK and XCLAIM have no owner
check, and without one a worker that was slow could finish or steal what is another's by now.
`allow-oom`: work must go on when the server is full. Each may run twice, after a reply was lost:
the second time finds nothing of ours, or sets what is set.
"""

from __future__ import annotations

from typing import Final

_HEAD: Final = """#!lua flags=allow-oom
local function unless_gone(reply)
  if reply.err == nil then return reply end
  if string.find(reply.err, 'NOGROUP') or string.find(reply.err, 'no such key') then return {} end
  error(reply)
end

local function owned(jobs, group, me, id)
  return #unless_gone(redis.pcall('XPENDING', jobs, group, id, id, 1, me)) > 0
end

local function now_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end

local function of(consumer, label)
  for i = 1, #consumer, 2 do
    if consumer[i] == label then return consumer[i + 1] end
  end
end

local function started(attempts, id)
  return string.match(redis.call('HGET', attempts, id) or '0', '^(%d+) ?(%S*) ?(.*)$')
end

local function set_started(attempts, id, times, who, refused)
  if times == '0' and refused == '' then
    redis.call('HDEL', attempts, id)
  else
    local value = times .. ' ' .. who .. ' ' .. refused
    redis.call('HSET', attempts, id, (string.gsub(value, ' +$', '')))
  end
end

local function has(places, place)
  return string.find(' ' .. places .. ' ', ' ' .. place .. ' ', 1, true) ~= nil
end

local function places_alive(workers, alive_ms)
  local places, told = {}, redis.call('HGETALL', workers)
  local now, within = now_ms(), tonumber(alive_ms)
  for i = 2, #told, 2 do
    local readable, activity = pcall(cjson.decode, told[i])
    if readable and type(activity) == 'table' and type(activity.place) == 'string' then
      local is_leaving = activity.state == 'stopped' or activity.state == 'stopping'
      if not is_leaving and math.abs(now - (tonumber(activity.seen_ms) or 0)) <= within then
        places[#places + 1] = activity.place
      end
    end
  end
  return places
end

local function is_open(places, refused, mine)
  for _, place in ipairs(places) do
    if place ~= '' and place ~= mine and not has(refused, place) then return true end
  end
  return false
end
"""
"""`of`: a field of one consumer, as XINFO CONSUMERS lists them.
`started`: how often, and by whom if that worker has not given it back: whoever works on it next
must fence that one, however many had it in between and whichever replies were lost. Third, the
places that refused it, with a blank between two.
`places_alive`: where the run's workers are that were seen lately and do not leave.
`is_open`: whether one of these places has not refused it and is not mine.
`owned` is also false where the stream or its group is gone; what else the server refuses (a
command that this user may not use, a key of another type) is an error, never a lost lease."""

OWN: Final = (
    _HEAD
    + """
-- What is pending for me: a lost reply leaves entries there that `>` never returns.
-- KEYS: jobs, attempts. ARGV: group, me, first id of the page, count.
-- Returns {id, fields, attempts, who was at work or me} for each; an entry that was deleted leaves
-- the list.
local found = {}
local page = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], '+', ARGV[4], ARGV[2])
for _, pending in ipairs(page) do
  local id = pending[1]
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  if entry then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'JUSTID')
    local times, who = started(KEYS[2], id)
    found[#found + 1] = {id, entry[2], times, who ~= '' and who or ARGV[2]}
  else
    redis.call('XACK', KEYS[1], ARGV[1], id)
    redis.call('HDEL', KEYS[2], id)
  end
end
return found
"""
)

TAKE: Final = (
    _HEAD
    + """
-- Delayed jobs that are due, then those whose lease is over; new ones where there are neither. What
-- my place refused (it is due at -1) is left to other places while there is one that did not.
-- KEYS: jobs, delayed, attempts, workers. ARGV: group, me, the consumer of delayed jobs, slots,
-- lease in ms, idle ms after which a delayed job is taken even if the sorted set forgot it, my
-- place, ms within which a worker was seen that is alive, how many refused jobs are looked at.
-- Returns {id, fields, attempts, who was at work} for each; if nobody was, the latter is the one
-- whose lease was over, the consumer of delayed jobs for one that was given back, and '' for one
-- whose last attempt ended in order.
local jobs, delayed, attempts, workers = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, me, parked, slots = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local place, alive_ms, most = ARGV[7], ARGV[8], ARGV[9]
local taken = {}

local function take(id, from)
  redis.call('ZREM', delayed, id)
  local entry = redis.call('XCLAIM', jobs, group, me, 0, id)[1]
  if entry then
    local times, who = started(attempts, id)
    taken[#taken + 1] = {id, entry[2], times, who ~= '' and who or from}
  else  -- it was deleted while it was pending
    redis.call('XACK', jobs, group, id)
    redis.call('HDEL', attempts, id)
  end
end

local function take_due(id, from)
  if owned(jobs, group, parked, id) then take(id, from) else redis.call('ZREM', delayed, id) end
end

redis.call('XPENDING', jobs, group)  -- NOGROUP, where the stream or its group is gone
local due = redis.call('ZRANGEBYSCORE', delayed, 0, string.format('%.0f', now_ms()),
                       'WITHSCORES', 'LIMIT', 0, slots)
for i = 1, #due, 2 do
  take_due(due[i], due[i + 1] == '0' and parked or '')
end
if #taken < slots then
  local offered = redis.call('ZRANGEBYSCORE', delayed, '-inf', '(0', 'LIMIT', 0, most)
  local places = #offered > 0 and places_alive(workers, alive_ms)
  for _, id in ipairs(offered) do
    local _, _, refused = started(attempts, id)
    local is_mine = not has(refused, place) or not is_open(places, refused, place)
    if #taken < slots and is_mine then take_due(id, parked) end
  end
end
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', jobs, group)) do
  local name, left = of(consumer, 'name'), slots - #taken
  if of(consumer, 'pending') > 0 and left > 0 then
    local idle = name == parked and ARGV[6] or ARGV[5]
    local over = redis.call('XPENDING', jobs, group, 'IDLE', idle, '-', '+', left, name)
    for _, pending in ipairs(over) do
      take(pending[1], name)
    end
  end
end
if #taken == 0 then
  local new = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', slots, 'STREAMS', jobs, '>')
  for _, entry in ipairs(new and new[1][2] or {}) do
    taken[#taken + 1] = {entry[1], entry[2], '0', ''}
  end
end
return taken
"""
)

BEGIN: Final = (
    _HEAD
    + """
-- Work starts: the lease is renewed and the number of this attempt is set.
-- KEYS: jobs, attempts, counts.
-- ARGV: group, me, the epoch's field, then entry id and number for each.
-- Returns the epoch, then the ids that were not ours.
local answer = {redis.call('HGET', KEYS[3], ARGV[3]) or ''}
for i = 4, #ARGV, 2 do
  if owned(KEYS[1], ARGV[1], ARGV[2], ARGV[i]) then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
    local _, _, refused = started(KEYS[2], ARGV[i])
    set_started(KEYS[2], ARGV[i], ARGV[i + 1], ARGV[2], refused)
  else
    answer[#answer + 1] = ARGV[i]
  end
end
return answer
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
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
"""
)

ACK: Final = (
    _HEAD
    + """
-- KEYS: jobs, counts, attempts, results. ARGV: group, me, count field, how many results are kept,
-- then for each entry its id, the size of its message, and that many names and values.
-- Returns the ids that were not ours.
local lost, at = {}, 5
while at <= #ARGV do
  local id, size = ARGV[at], tonumber(ARGV[at + 1])
  if owned(KEYS[1], ARGV[1], ARGV[2], id) then
    redis.call('XACK', KEYS[1], ARGV[1], id)
    redis.call('XDEL', KEYS[1], id)
    redis.call('HINCRBY', KEYS[2], ARGV[3], 1)
    redis.call('HDEL', KEYS[3], id)
    redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[4], '*', unpack(ARGV, at + 2, at + 1 + size))
  else
    lost[#lost + 1] = id
  end
  at = at + 2 + size
end
return lost
"""
)

FAIL: Final = (
    _HEAD
    + """
-- KEYS: jobs, counts, failed, attempts, results. ARGV: group, me, count field, entry id, reason,
-- error, traceback, what the count field of a reason starts with, how many results are kept, the
-- error for the message, the longest id in bytes. Returns the id if it was not ours.
local id, question_id = ARGV[4], ''
if not owned(KEYS[1], ARGV[1], ARGV[2], id) then return {id} end
local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
local letter = {'XADD', KEYS[3], '*'}
for i, value in ipairs(entry and entry[2] or {}) do
  if i > 2000 then break end  -- far more than a job has, and all that unpack can hold
  letter[#letter + 1] = value
  if i % 2 == 1 and value == 'question_id' then question_id = entry[2][i + 1] end
end
for _, value in ipairs({'reason', ARGV[5], 'error', ARGV[6], 'traceback', ARGV[7],
                        'attempts', (started(KEYS[4], id)),
                        'worker', ARGV[2], 'failed_ms', string.format('%.0f', now_ms())}) do
  letter[#letter + 1] = value
end
redis.call(unpack(letter))
redis.call('XACK', KEYS[1], ARGV[1], id)
redis.call('XDEL', KEYS[1], id)
redis.call('HINCRBY', KEYS[2], ARGV[3], 1)
redis.call('HINCRBY', KEYS[2], ARGV[8] .. ARGV[5], 1)
redis.call('HDEL', KEYS[4], id)
redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[9], '*',
           'question_id', string.sub(question_id, 1, tonumber(ARGV[11])), 'fate', 'failed',
           'reason', ARGV[5], 'error', ARGV[10])
return {}
"""
)

DELAY: Final = (
    _HEAD
    + """
-- Not by me, not now: for another attempt later, or (without delay: due at 0) for anybody at once,
-- or (with a place that refuses it: due at -1) for other places at once.
-- KEYS: jobs, delayed, attempts. ARGV: group, me, the consumer of delayed jobs, delay in ms, the
-- place or '', then entry id and number of attempts for each. Returns the ids that were not ours.
local lost, place = {}, ARGV[5]
local due = ARGV[4] == '0' and '0' or string.format('%.0f', now_ms() + ARGV[4])
if place ~= '' then due = '-1' end
for i = 6, #ARGV, 2 do
  local id = ARGV[i]
  if owned(KEYS[1], ARGV[1], ARGV[2], id) then
    local _, _, refused = started(KEYS[3], id)
    if place ~= '' and not has(refused, place) then
      refused = refused == '' and place or refused .. ' ' .. place
    end
    redis.call('ZADD', KEYS[2], due, id)
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, id, 'JUSTID')
    set_started(KEYS[3], id, ARGV[i + 1], '', refused)
  else
    lost[#lost + 1] = id
  end
end
return lost
"""
)

OPEN: Final = (
    _HEAD
    + """
-- KEYS: attempts, workers. ARGV: my place, ms within which a worker was seen that is alive, entry
-- ids. Returns those that a worker of another place has not refused.
local open, places = {}, places_alive(KEYS[2], ARGV[2])
for i = 3, #ARGV do
  local _, _, refused = started(KEYS[1], ARGV[i])
  if is_open(places, refused, ARGV[1]) then open[#open + 1] = ARGV[i] end
end
return open
"""
)

LEAVE: Final = (
    _HEAD
    + """
-- KEYS: jobs. ARGV: group, me. XGROUP DELCONSUMER drops what a consumer holds: only with nothing.
local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if held.err and not string.find(held.err, 'NOGROUP') then return held end
if held.err or #held > 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
"""
)

BEAT: Final = (
    _HEAD
    + """
-- Tells the run what a worker does, and forgets workers that are gone and hold nothing.
-- KEYS: jobs, workers. ARGV: group, me, what to tell, the consumer of delayed jobs, ms after which
-- a worker that was not seen is gone.
-- A worker's clock may be a day off: its times are moved so that it was seen now, by this clock.
local now = now_ms()
local told_now = cjson.decode(ARGV[3])
local behind = now - told_now.seen_ms
for _, name in ipairs({'started_ms', 'polled_ms', 'seen_ms'}) do
  if told_now[name] ~= 0 then told_now[name] = told_now[name] + behind end
end
redis.call('HSET', KEYS[2], ARGV[2], cjson.encode(told_now))
local gone_before, never_after = now - ARGV[5], now + ARGV[5]
local consumers = unless_gone(redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1]))
local holds = {}
for _, consumer in ipairs(consumers) do
  local name, pending = of(consumer, 'name'), of(consumer, 'pending')
  local is_idle = of(consumer, 'idle') > tonumber(ARGV[5])
  holds[name] = pending > 0
  if pending == 0 and name ~= ARGV[4] and name ~= ARGV[2] and is_idle then
    -- One that has a heartbeat is judged by it: before 7.2 a blocked reader counts as idle.
    if redis.call('HEXISTS', KEYS[2], name) == 0 then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], name)
    end
  end
end
local told = redis.call('HGETALL', KEYS[2])
for i = 1, #told, 2 do
  local readable, activity = pcall(cjson.decode, told[i + 1])
  local seen = readable and type(activity) == 'table' and tonumber(activity.seen_ms) or 0
  local is_gone = seen < gone_before or seen > never_after  -- the latter: by another clock
  if is_gone and not holds[told[i]] and told[i] ~= ARGV[2] then
    if holds[told[i]] == false then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], told[i])
    end
    redis.call('HDEL', KEYS[2], told[i])
  end
end
return 1
"""
)
