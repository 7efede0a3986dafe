-- Every script begins with this.

-- Redis 6 can be configured to replicate scripts instead of their effects, which forbids TIME in a script that writes.
redis.replicate_commands()

-- A number with all its digits: Lua prints 14.
local function text(number) return string.format('%.0f', number) end

-- The time as text and as a number, in seconds since 1970: the given one, or Redis' own for "".
local function clock(given)
  if given == '' then
    local t = redis.call('TIME')
    given = t[1] .. '.' .. string.format('%06d', tonumber(t[2]))
  end
  return given, tonumber(given)
end
