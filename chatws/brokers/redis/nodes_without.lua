-- The nodes that hold a lease of the agents and none of another space.
--
-- KEYS  1 nodes of the agents, 2 nodes of the space (sorted sets: until when each counts); ARGV  1 the time or ""

local _, now = clock(ARGV[1])
local result = {}
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.6f', now), '+inf')) do
  local expires_at = redis.call('ZSCORE', KEYS[2], node)
  if not expires_at or tonumber(expires_at) <= now then result[#result + 1] = node end
end
return result
