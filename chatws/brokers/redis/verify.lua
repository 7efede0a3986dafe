-- Check that this is still the history that the caller knows, and begin a new epoch in the same step if it is not, so
-- that all nodes agree on the epoch. The history is lost when it has no head, when it ends before the caller's last
-- offset, or when it holds another batch there (a lagging replica was promoted and has been written to since).
--
-- KEYS  1 the history's head (hash), 2 its events (stream)
-- ARGV  1 epoch ("" when the caller knows none yet), 2 last offset and 3 last_batch_id (or "") that the caller knows;
--       4 the epoch that begins if one has to; 5 the id of the sync marker, or "" for none; 6 the channel; 7 the time or ""
--
-- The sync marker is published as an empty batch. Its sender receives every batch from the marker on.
-- Returns epoch, sequence number, last offset, last_batch_id.

local time = clock(ARGV[7])
local head = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'last_offset', 'last_batch_id')
local epoch, seq, last, last_batch_id = head[1], tonumber(head[2] or 0), tonumber(head[3] or 0), head[4] or ''
local known = tonumber(ARGV[2])
local lost = not epoch
if epoch and epoch == ARGV[1] then
  if last < known then
    lost = true
  elseif ARGV[3] == '' then
    lost = false
  elseif last == known then
    lost = last_batch_id ~= ARGV[3]
  else
    local id = text(known) .. '-0'
    local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
    lost = entry ~= nil and string.match(entry[2][2], ' (%S+)$') ~= ARGV[3]
  end
end
if lost then
  redis.call('UNLINK', KEYS[2])
  epoch, seq, last, last_batch_id = ARGV[4], seq + 1, 0, ''
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', text(seq), 'last_offset', '0', 'last_batch_id', '',
    'size', '0', 'oldest', '')
end
if lost or ARGV[5] ~= '' then
  redis.call('PUBLISH', ARGV[6], '["' .. epoch .. '",' .. text(seq) .. ',' .. text(last) .. ',' .. time .. ',"'
    .. ARGV[5] .. '",[]]\n')
end
return {epoch, text(seq), text(last), last_batch_id}
