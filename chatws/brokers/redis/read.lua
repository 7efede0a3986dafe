-- Events with offsets above one, in order, up to a number and about a number of bytes.
--
-- KEYS  1 the history's head (hash), 2 its events (stream)
-- ARGV  1 epoch that the caller knows, 2 the offset, 3 events and 4 bytes that are enough
--
-- Returns nil when the history is another one, else {"1" at its end or "0", offset, header, body, offset, …}.

local head = redis.call('HMGET', KEYS[1], 'epoch', 'last_offset')
if head[1] ~= ARGV[1] then return false end
local result, offset = {'0'}, ARGV[2]
local left, bytes, page = tonumber(ARGV[3]), tonumber(ARGV[4]), 16
while left > 0 and bytes > 0 do
  local from = text(tonumber(offset) + 1) .. '-0'
  local count_limit = math.min(left, page)
  local entries = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', count_limit)
  for _, entry in ipairs(entries) do
    offset = string.match(entry[1], '^%d+')
    local count = #result
    result[count + 1], result[count + 2], result[count + 3] = offset, entry[2][2], entry[2][4]
    left, bytes = left - 1, bytes - #entry[2][4]
    if bytes <= 0 then break end
  end
  if #entries < count_limit and bytes > 0 then
    result[1] = '1'
    break
  end
end
return result
