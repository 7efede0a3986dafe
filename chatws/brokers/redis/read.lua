-- Events with offsets above one, in order, until there are enough of them or of their bytes.
--
-- KEYS  1 the log's head (hash), 2 its events (stream)
-- ARGV  1 epoch that the caller knows, 2 the offset, 3 events and 4 bytes that are enough
--
-- Returns nil when the log is another one, else {"1" at the end of the log or "0", offset, header, body, offset, …}.

local head = redis.call('HMGET', KEYS[1], 'epoch', 'last')
if head[1] ~= ARGV[1] then return false end
local found, offset = {'0'}, ARGV[2]
local left, bytes, page = tonumber(ARGV[3]), tonumber(ARGV[4]), 16
while left > 0 and bytes > 0 do
  local from = text(tonumber(offset) + 1) .. '-0'
  local asked = math.min(left, page)
  local entries = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', asked)
  for _, entry in ipairs(entries) do
    offset = string.match(entry[1], '^%d+')
    local count = #found
    found[count + 1], found[count + 2], found[count + 3] = offset, entry[2][2], entry[2][4]
    left, bytes = left - 1, bytes - #entry[2][4]
    if bytes <= 0 then break end
  end
  if #entries < asked and bytes > 0 then
    found[1] = '1'
    break
  end
end
return found
