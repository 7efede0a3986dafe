-- Is this still the log that the caller knows? If not, or if there is none yet, it starts anew: in the same step, so
-- that all nodes agree on the new epoch. It is not when it has no head, when it ends before what the caller has seen,
-- or when it holds something else at that place (a replica that lagged took over, and others have written since).
--
-- KEYS  1 the log's head (hash), 2 its events (stream)
-- ARGV  1 epoch ("" when the caller knows none yet), 2 last offset and 3 tip (or "") that the caller knows;
--       4 the epoch that begins if one has to; 5 a name for the greeting, or "" for none; 6 the channel; 7 the time or ""
--
-- The greeting goes through the channel like a batch, an empty one, and shows its sender from where on it hears all.
-- Returns epoch, sequence number, last offset, tip.

local time = clock(ARGV[7])
local head = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'last', 'tip')
local epoch, seq, last, tip = head[1], tonumber(head[2] or 0), tonumber(head[3] or 0), head[4] or ''
local known = tonumber(ARGV[2])
local lost = not epoch
if epoch and epoch == ARGV[1] then
  if last < known then
    lost = true
  elseif ARGV[3] == '' then
    lost = false
  elseif last == known then
    lost = tip ~= ARGV[3]
  else
    local place = text(known) .. '-0'
    local entry = redis.call('XRANGE', KEYS[2], place, place)[1]
    lost = entry ~= nil and string.match(entry[2][2], ' (%S+)$') ~= ARGV[3]
  end
end
if lost then
  redis.call('UNLINK', KEYS[2])
  epoch, seq, last, tip = ARGV[4], seq + 1, 0, ''
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', text(seq), 'last', '0', 'tip', '', 'size', '0', 'oldest', '')
end
if lost or ARGV[5] ~= '' then
  redis.call('PUBLISH', ARGV[6], '["' .. epoch .. '",' .. text(seq) .. ',' .. text(last) .. ',' .. time .. ',"'
    .. ARGV[5] .. '",[]]\n')
end
return {epoch, text(seq), text(last), tip}
