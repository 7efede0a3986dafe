-- KEYS  as of lease.lua; ARGV  1 the time or ""
-- Returns the users held by any node whose lease has not expired.

local _, now = clock(ARGV[1])
local limit = string.format('%.6f', now)
if redis.call('ZCOUNT', KEYS[1], '-inf', limit) == 0 then return redis.call('HKEYS', KEYS[2]) end
local seen, result = {}, {}
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. limit, '+inf')) do
  for _, user in ipairs(redis.call('HKEYS', KEYS[3] .. node)) do
    if not seen[user] then
      seen[user] = true
      result[#result + 1] = user
    end
  end
end
return result
