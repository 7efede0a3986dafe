-- A node lives, and these of its users have come, gone or changed; the users of dead nodes go.
--
-- KEYS  1 nodes (sorted set: until when each counts), 2 users (hash: how many nodes have each),
--       3 the users of this node (hash: tabs of each), without the node's name: the others' lie beside it
-- ARGV  1 the time or "", 2 the node, 3 seconds for which it counts; then user and tabs ("" when gone) in turn
--
-- Returns {users of this node, users of any, user and "1" or "0" of those for whom that makes a difference …}.

local _, now = clock(ARGV[1])
local node, mine = ARGV[2], KEYS[3] .. ARGV[2]
local order, before = {}, {}

local function note(user, was)
  if before[user] == nil then
    before[user] = was
    order[#order + 1] = user
  end
end

local function release(user)
  note(user, true)
  if redis.call('HINCRBY', KEYS[2], user, -1) <= 0 then redis.call('HDEL', KEYS[2], user) end
end

redis.call('ZADD', KEYS[1], string.format('%.6f', now + tonumber(ARGV[3])), node)
for i = 4, #ARGV, 2 do
  local user, tabs = ARGV[i], ARGV[i + 1]
  if tabs == '' then
    if redis.call('HDEL', mine, user) == 1 then release(user) end
  elseif redis.call('HSET', mine, user, tabs) == 1 then
    note(user, redis.call('HINCRBY', KEYS[2], user, 1) > 1)
  end
end
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now))) do
  if dead ~= node then
    for _, user in ipairs(redis.call('HKEYS', KEYS[3] .. dead)) do release(user) end
    redis.call('DEL', KEYS[3] .. dead)
    redis.call('ZREM', KEYS[1], dead)
  end
end
local found = {redis.call('HLEN', mine), redis.call('HLEN', KEYS[2])}
for _, user in ipairs(order) do
  local is = redis.call('HEXISTS', KEYS[2], user) == 1
  if is ~= before[user] then
    found[#found + 1] = user
    found[#found + 1] = is and '1' or '0'
  end
end
return found
