-- KEYS  1 the history's head (hash), 2 its events (stream); ARGV  1 epoch that the caller knows
-- Returns nil when the history is another one, else the number of stored events and the last offset.

local head = redis.call('HMGET', KEYS[1], 'epoch', 'last_offset')
if head[1] ~= ARGV[1] then return false end
return {redis.call('XLEN', KEYS[2]), head[2]}
