-- Append a batch of drafts to the history, all of it or none, and publish it to every node.
--
-- KEYS  1 the history's head (hash), 2 its events (stream), then the idempotency key of each draft that has one
-- ARGV  1 epoch, 2 last offset and 3 last batch id (or "") that the caller knows; 4 the id of this batch;
--       5 the time, or "" for Redis' own; 6 events, 7 seconds and 8 bytes to keep (0: no limit);
--       9 the channel; 10 seconds for which a key counts; 11 bytes up to which a batch travels whole;
--       12 "1" if the caller will WAIT for replicas;
--       13 "KIND:BYTES …", one for each draft (kind: 1 if transient, plus 2 if it has a key), or "KIND:BYTES:SECONDS" if
--       its key counts for so many seconds longer; then their bodies
--
-- Returns JSON: null when this is not the history that the caller knows, else
-- [sequence number, last offset before, time, whether there is more to trim, [index, offset, time of each duplicate …]]
--
-- Redis rejects a script for lack of memory at its first write only, so that write comes before all others.

local HEADER = 13
local time, now = clock(ARGV[5])
local events, seconds, size_limit = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local head = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'last_offset', 'last_batch_id', 'size', 'oldest')
local epoch = head[1]
if epoch ~= ARGV[1] then return 'null' end
local seq, last, last_batch_id, size, oldest = tonumber(head[2]), tonumber(head[3]), head[4], tonumber(head[5]), head[6]
local known = tonumber(ARGV[2])
if last < known or (last == known and ARGV[3] ~= '' and last_batch_id ~= ARGV[3]) then return 'null' end

local before = last
local offsets, lengths, bodies, kinds, duplicates = {}, {}, {}, {}, {}
local index, key, bytes, stored = 0, 2, 0, 0
for kind, data_size, extra in string.gmatch(ARGV[HEADER], '(%d):(%d+):?(%d*)') do
  index = index + 1
  local transient = kind == '1' or kind == '3'
  local duplicate = false
  if kind == '2' or kind == '3' then
    key = key + 1
    local first = redis.call('GET', KEYS[key])
    if first then
      local offset, first_time, first_epoch = string.match(first, '^(%d+) (%S+) (%S+)$')
      if offset and now - tonumber(first_time) < tonumber(ARGV[10]) then
        duplicate = true
        if first_epoch ~= epoch then offset = '0' end
        duplicates[#duplicates + 1] = (index - 1) .. ',' .. offset .. ',' .. first_time
      end
    end
    if not duplicate then
      local offset = transient and '0' or text(last + 1)
      local key_time, key_seconds = time, ARGV[10]
      if extra ~= '' then
        -- a key that counts for longer has a later time
        key_time = string.format('%.6f', now + tonumber(extra))
        key_seconds = text(tonumber(key_seconds) + tonumber(extra))
      end
      redis.call('SET', KEYS[key], offset .. ' ' .. key_time .. ' ' .. epoch, 'EX', key_seconds)
    end
  end
  if not duplicate then
    local body = ARGV[HEADER + index]
    local offset = '0'
    if not transient then
      last = last + 1
      offset = text(last)
      stored = stored + 1
      size = size + tonumber(data_size)
      redis.call('XADD', KEYS[2], offset .. '-0', 'h', time .. ' ' .. data_size .. ' ' .. ARGV[4], 'e', body)
    end
    bytes = bytes + #body
    offsets[#offsets + 1] = offset
    lengths[#offsets] = #body
    bodies[#offsets] = body
  end
end

if #offsets > 0 then
  seq = seq + 1
  local whole = bytes <= tonumber(ARGV[11])
  local entries = {}
  for i = 1, #offsets do
    if whole or offsets[i] == '0' then
      entries[i] = offsets[i] .. ',' .. lengths[i]
    else
      entries[i] = offsets[i] .. ',-1'
      bodies[i] = ''
    end
  end
  if stored > 0 then
    last_batch_id = ARGV[4]
    if oldest == '' then oldest = time end
  end
  redis.call('HSET', KEYS[1], 'seq', text(seq), 'last_offset', text(last), 'last_batch_id', last_batch_id,
    'size', text(size), 'oldest', oldest)
  redis.call('PUBLISH', ARGV[9], '["' .. epoch .. '",' .. text(seq) .. ',' .. text(before) .. ',' .. time .. ',"'
    .. ARGV[4] .. '",[' .. table.concat(entries, ',') .. ']]\n' .. table.concat(bodies))
end

if #offsets == 0 and index > 0 and ARGV[12] == '1' then
  -- WAIT covers the connection's last write, so this write follows that of the event that the reply acknowledges
  redis.call('HSET', KEYS[1], 'seq', text(seq))
end

-- Trimming. Each event is read once, when it is dropped. A call drops at most 64 for age alone, to bound its cost.
local more = false
if stored > 0 or index == 0 then
  local count = redis.call('XLEN', KEYS[2])
  local length, allowance, aged, page = count, 1000 + 2 * stored, 64, 2
  local done = count == 0
  local from = '-'
  local function over() return (events > 0 and count > events) or (size_limit > 0 and size > size_limit) end
  local function old(t) return seconds > 0 and t ~= '' and tonumber(t) < now - seconds end
  if not over() and not old(oldest) then done = true end
  while not done do
    local entries = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', page)
    for _, entry in ipairs(entries) do
      local entry_time, entry_size = string.match(entry[2][2], '^(%S+) (%d+)')
      oldest = entry_time
      if over() then
        if allowance == 0 then more, done = true, true break end
        allowance = allowance - 1
      elseif aged > 0 and old(entry_time) then
        aged = aged - 1
      else
        done = true
        break
      end
      count = count - 1
      size = size - tonumber(entry_size)
      oldest = ''
      from = text(tonumber(string.match(entry[1], '^%d+')) + 1) .. '-0'
    end
    if count == 0 then done = true end
    if page < 128 then page = page * 2 end
  end
  if count < length then
    redis.call('XTRIM', KEYS[2], 'MAXLEN', text(count))
    redis.call('HSET', KEYS[1], 'size', text(size), 'oldest', oldest)
  end
end
return '[' .. text(seq) .. ',' .. text(before) .. ',' .. time .. ',' .. (more and 'true' or 'false') .. ',['
  .. table.concat(duplicates, ',') .. ']]'
