-- Store a member's data, or remove it, and remove what has expired, a few at a time.
--
-- KEYS  1 data (hash: of each member), 2 its expiry (sorted set)
-- ARGV  1 the time or "", 2 the member, 3 "1" to store or "" to remove, 4 the data, 5 seconds for which it is kept
--
-- Returns 1 if the data was another one before, else 0.

local _, now = clock(ARGV[1])
local member = ARGV[2]
local expired = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.6f', now), 'LIMIT', 0, 100)
expired[#expired + 1] = (tonumber(redis.call('ZSCORE', KEYS[2], member) or 0) <= now) and member or nil
for _, gone in ipairs(expired) do
  redis.call('HDEL', KEYS[1], gone)
  redis.call('ZREM', KEYS[2], gone)
end
local before = redis.call('HGET', KEYS[1], member)
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], member)
  redis.call('ZREM', KEYS[2], member)
  return before and 1 or 0
end
redis.call('HSET', KEYS[1], member, ARGV[4])
redis.call('ZADD', KEYS[2], string.format('%.6f', now + tonumber(ARGV[5])), member)
return before == ARGV[4] and 0 or 1
