-- Renew a node's lease, apply the changes of its users, and remove the users of nodes whose lease has expired.
--
-- KEYS  1 nodes (sorted set: until when each counts), 2 users (hash: how many nodes have each),
--       3 the users of this node (hash: connection count of each), to which the node's name is appended,
--       4 the beginning of the keys of the queue of webhooks (webhooks.lua)
-- ARGV  1 the time or "", 2 the node, 3 seconds of its lease, 4 most events in the queue of webhooks, "0" without
--       webhooks, 5 what its events are of: "agent" or "contact"; then user and connection count ("" when gone) in turn
--
-- Returns {users of this node, users of any, user and "1" or "0" of those that came online or went offline …}.

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
for i = 6, #ARGV, 2 do
  local user, connections = ARGV[i], ARGV[i + 1]
  if connections == '' then
    if redis.call('HDEL', mine, user) == 1 then release(user) end
  elseif redis.call('HSET', mine, user, connections) == 1 then
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
local result, webhooks = {redis.call('HLEN', mine), redis.call('HLEN', KEYS[2])}, {}
for _, user in ipairs(order) do
  local is = redis.call('HEXISTS', KEYS[2], user) == 1
  if is ~= before[user] then
    result[#result + 1] = user
    result[#result + 1] = is and '1' or '0'
    webhooks[#webhooks + 1] = ARGV[5] .. (is and '_online' or '_offline')
    webhooks[#webhooks + 1] = user
  end
end
if ARGV[4] ~= '0' and #webhooks > 0 then add_webhooks(KEYS[4], tonumber(ARGV[4]), now, webhooks) end
return result
