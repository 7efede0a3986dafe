-- The queue of webhooks, for the scripts that append to it.
--
-- Keys begin with `base`: head (hash: name, epoch, owner, until, seq, position, resets, resets_done, dropped_0 …), and
-- 0, 1, 2: events by priority (sorted sets by position). A member is "position time_ms kind data".

local PRIORITIES = {activity = 0, contact_online = 1, contact_offline = 1}

-- Append events: kinds and data in turn. A queue with more than `limit` drops the oldest of the lowest priority.
local function add_webhooks(base, limit, now, events)
  local head = base .. 'head'
  local position = tonumber(redis.call('HGET', head, 'position') or '0')
  local time = text(math.floor(now * 1000))
  for i = 1, #events, 2 do
    position = position + 1
    local place = text(position)
    local priority = PRIORITIES[events[i]] or 2
    redis.call('ZADD', base .. priority, place, place .. ' ' .. time .. ' ' .. events[i] .. ' ' .. events[i + 1])
  end
  redis.call('HSET', head, 'position', text(position))
  local excess = -limit
  for priority = 0, 2 do excess = excess + redis.call('ZCARD', base .. priority) end
  for priority = 0, 2 do
    if excess > 0 then
      local dropped = #redis.call('ZPOPMIN', base .. priority, text(excess)) / 2
      if dropped > 0 then
        excess = excess - dropped
        redis.call('HINCRBY', head, 'dropped_' .. priority, text(dropped))
        redis.call('HINCRBY', head, 'resets', '1')
      end
    end
  end
end
