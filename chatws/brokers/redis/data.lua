-- KEYS  as of set_data.lua; ARGV  1 the time or ""
-- Returns {member, data, until when it is kept, member, …} without what has expired.

local _, now = clock(ARGV[1])
local result = {}
local kept = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. string.format('%.6f', now), '+inf', 'WITHSCORES')
for i = 1, #kept, 2 do
  result[#result + 1] = kept[i]
  result[#result + 1] = redis.call('HGET', KEYS[1], kept[i]) or ''
  result[#result + 1] = kept[i + 1]
end
return result
