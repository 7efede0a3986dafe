-- What every script begins with.

-- Redis 6 can be told to replicate scripts instead of what they do, which would not allow to ask for the time.
redis.replicate_commands()

-- A number in full: Lua's own way is good for 14 digits.
local function text(number) return string.format('%.0f', number) end

-- The time as text and as a number, in seconds since 1970: the given one, or Redis' own for "".
local function clock(given)
  if given == '' then
    local t = redis.call('TIME')
    given = t[1] .. '.' .. string.format('%06d', tonumber(t[2]))
  end
  return given, tonumber(given)
end
