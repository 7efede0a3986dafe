-- See Broker.exchange_webhooks.
--
-- KEYS  1 the beginning of the keys of the queue (webhooks.lua)
-- ARGV  1 the time or "", 2 the name of a new queue, 3 the epoch of the history, 4 owner, 5 seconds, 6 name, 7 acked,
--       8 after, 9 limit, 10 reset_done, 11 numbers
--
-- Returns nothing if another node is the sender. Otherwise {name, first number, reset, queued, newest position, dropped by
-- priority …, up to limit + 1 events of each priority …}.

local _, now = clock(ARGV[1])
local base, head = KEYS[1], KEYS[1] .. 'head'
local owner, limit = ARGV[4], tonumber(ARGV[9])

local function field(name) return redis.call('HGET', head, name) or '' end
local function number(name) return tonumber(redis.call('HGET', head, name) or '0') end

if field('name') == '' or field('epoch') ~= ARGV[3] then
  redis.call('HSET', head, 'name', ARGV[2], 'epoch', ARGV[3])
  redis.call('HINCRBY', head, 'resets', '1')
end
local name = field('name')
local known = ARGV[6] == name
if known and ARGV[7] ~= '0' then
  for priority = 0, 2 do redis.call('ZREMRANGEBYSCORE', base .. priority, '-inf', ARGV[7]) end
end
if tonumber(ARGV[10]) > number('resets_done') then redis.call('HSET', head, 'resets_done', ARGV[10]) end
if field('owner') ~= '' and field('owner') ~= owner and number('until') > now then return nil end
if tonumber(ARGV[5]) == 0 then
  redis.call('HSET', head, 'owner', '')
  return nil
end
local first = math.max(number('seq') + 1, math.floor(now * 1000000))
redis.call('HSET', head, 'owner', owner, 'until', string.format('%.6f', now + tonumber(ARGV[5])),
  'seq', text(first + tonumber(ARGV[11]) - 1))
local resets, queued, events = number('resets'), 0, {}
for priority = 0, 2 do
  queued = queued + redis.call('ZCARD', base .. priority)
  local after = '(' .. (known and ARGV[8] or '0')
  for _, event in ipairs(redis.call('ZRANGEBYSCORE', base .. priority, after, '+inf', 'LIMIT', '0', text(limit + 1))) do
    events[#events + 1] = event
  end
end
local reset = resets > number('resets_done') and resets or 0
local result = {name, text(first), text(reset), queued, text(number('position')),
  number('dropped_0'), number('dropped_1'), number('dropped_2')}
for _, event in ipairs(events) do result[#result + 1] = event end
return result
