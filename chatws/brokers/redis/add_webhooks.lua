-- KEYS  1 the beginning of the keys of the queue (webhooks.lua)
-- ARGV  1 the time or "", 2 most events in the queue, 3 "1" to make a reset due; then kinds and data in turn

local _, now = clock(ARGV[1])
local events = {}
for i = 4, #ARGV do events[#events + 1] = ARGV[i] end
add_webhooks(KEYS[1], tonumber(ARGV[2]), now, events)
if ARGV[3] == '1' then redis.call('HINCRBY', KEYS[1] .. 'head', 'resets', '1') end
return 0
