"""The Lua scripts of the Redis engines: what a server has to do at once.

They are plain Redis 6.2: keys are named by the caller, and no list is unpacked that could be longer than Lua's stack.
"""

from typing import Final

from gsession_django.redis.commands import Script

# A session in one string.

_REPLACE: Final = """
if ARGV[3] == '' then
    redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
elseif tonumber(ARGV[3]) > 0 then
    redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
else
    redis.call('UNLINK', KEYS[1])
end
return 1
"""
# Stores the new session if the old one is what was read, itself or its digest, and otherwise answers what there is.
REPLACE_STRING = Script(
    """
local stored = redis.call('GET', KEYS[1])
if not stored then return 0 end
if ARGV[1] ~= stored and ARGV[1] ~= '*' and ARGV[1] ~= redis.sha1hex(stored) then return stored end
"""
    + _REPLACE
)
# The same for one that ends in a stamp, without a look at the rest of it.
REPLACE_STAMPED = Script(
    """
if redis.call('GETRANGE', KEYS[1], -#ARGV[1], -1) ~= ARGV[1] then return redis.call('GET', KEYS[1]) or 0 end
"""
    + _REPLACE
)
MOVE_STRING = Script("""
local moved = redis.pcall('RENAMENX', KEYS[1], KEYS[2])
if type(moved) == 'number' then return moved end
if redis.call('EXISTS', KEYS[1]) == 0 then return redis.call('EXISTS', KEYS[2]) end
return moved
""")
# A session in two hashes.

# Bytes of an encoded value from which on it is kept apart: about where sending it costs as much as a round trip.
_LARGE: Final = 16 * 1024
# Words that a script passes on in one call: Lua's stack takes some thousands.
_AT_ONCE: Final = 1000

_PRELUDE = f"""
local small, large = KEYS[1], KEYS[2]
local has_large = false
local function put_one(field, value)
    if #value > {_LARGE} and field ~= '' then -- whose mark would be the session's own
        local now = redis.call('TIME')
        redis.call('HSET', large, field, value)
        redis.call('HSET', small, '\\255' .. field, now[1] .. '.' .. now[2])
        redis.call('HDEL', small, field)
        has_large = true
    else
        redis.call('HSET', small, field, value)
        if has_large and redis.call('HDEL', large, field) == 1 then
            redis.call('HDEL', small, '\\255' .. field)
        end
    end
end
local function put(first, last)
    for start = first, last, {_AT_ONCE} do
        local stop, one_by_one = math.min(start + {_AT_ONCE - 1}, last), has_large
        for at = start + 1, stop, 2 do
            one_by_one = one_by_one or #ARGV[at] > {_LARGE}
        end
        if one_by_one then
            for at = start, stop, 2 do put_one(ARGV[at], ARGV[at + 1]) end
        else
            redis.call('HSET', small, unpack(ARGV, start, stop))
        end
    end
end
"""
# ARGV: the TTL, and for each field its name and the value.
CREATE_HASH = Script(
    _PRELUDE
    + """
if redis.call('EXISTS', small, large) > 0 then
    if redis.call('EXISTS', small) == 1 then return 0 end
    redis.call('UNLINK', large)
end
put(2, #ARGV)
redis.call('EXPIRE', small, ARGV[1])
if has_large then redis.call('EXPIRE', large, ARGV[1]) end
return 1
"""
)
# ARGV: the TTL; the digest of the expiry as it was read, or '*' to renew the TTL in any case; whether the session was
# cleared; the number of values to merge, and for each its field, the digest of what it was read as (or the mark, byte
# 0xff first, of a large value that was not read), and the value; the number of other values, and for each its field and
# the value; the fields to remove.
APPLY_HASH = Script(
    _PRELUDE
    + """
local known = redis.call('HMGET', small, '\\255', '_session_expiry')
if not known[1] then return 0 end
has_large = redis.call('EXISTS', large) == 1
if has_large then redis.call('HGET', large, '') end -- an error if it is no hash, before anything is written
local function digest(stored)
    return stored and redis.sha1hex(stored) or ''
end
local merged, conflicts = 4 + 3 * ARGV[4], {}
for at = 5, merged, 3 do
    local stored, known = redis.call('HGET', small, ARGV[at]) or redis.call('HGET', large, ARGV[at]), ARGV[at + 1]
    local same
    if known:byte() == 255 then
        same = redis.call('HGET', small, '\\255' .. ARGV[at]) == known:sub(2)
    else
        same = digest(stored) == known
    end
    if not same then
        table.insert(conflicts, ARGV[at])
        table.insert(conflicts, stored)
    end
end
if #conflicts > 0 then return conflicts end
local renew = ARGV[2] == '*' or digest(known[2]) == ARGV[2]
if renew and tonumber(ARGV[1]) <= 0 then
    redis.call('UNLINK', small, large)
    return 1
end
if ARGV[3] == '1' then
    redis.call('UNLINK', small, large)
    redis.call('HSET', small, '\\255', '')
    has_large = false
end
for at = 5, merged, 3 do put_one(ARGV[at], ARGV[at + 2]) end
local others = merged + 1 + 2 * ARGV[merged + 1]
put(merged + 2, others)
for at = others + 1, #ARGV do
    redis.call('HDEL', small, ARGV[at])
    if has_large and redis.call('HDEL', large, ARGV[at]) == 1 then
        redis.call('HDEL', small, '\\255' .. ARGV[at])
    end
end
if renew then redis.call('EXPIRE', small, ARGV[1]) end
if has_large then
    local left = redis.call('PTTL', small)
    if left >= 0 then redis.call('PEXPIRE', large, left) else redis.call('PERSIST', large) end
end
return 1
"""
)
TOUCH_HASH = Script("""
if redis.call('EXPIRE', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('EXPIRE', KEYS[2], ARGV[1])
return 1
""")
# ARGV: the seconds for which KEYS[5] keeps a copy of the large values, for requests that have not read them yet.
MOVE_HASH = Script("""
if redis.call('EXISTS', KEYS[1]) == 0 then return redis.call('EXISTS', KEYS[3]) end
if redis.call('RENAMENX', KEYS[1], KEYS[3]) == 0 then return 0 end
if redis.call('EXISTS', KEYS[2]) == 1 then
    redis.call('COPY', KEYS[2], KEYS[5], 'REPLACE')
    redis.call('EXPIRE', KEYS[5], ARGV[1])
    redis.call('RENAME', KEYS[2], KEYS[4])
else
    redis.call('UNLINK', KEYS[4])
end
return 1
""")
# KEYS[3] has the large values of a session that was moved a moment ago.
READ_HASH = Script(
    "return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]), redis.call('HGETALL', KEYS[3])}",
    reads=True,
)

# Moving a session in a cluster: it has been copied to the new id, and leaves the old one here.

# ARGV: the new id; the seconds for which it is remembered that the session went there, in KEYS[2] (or [3]), so that a
# second try of the same finds out; the digest of what was copied. If there is something else by now, it is returned,
# with the TTL that is left.
LEAVE_STRING = Script("""
local stored = redis.call('GET', KEYS[1])
if not stored then return redis.call('GET', KEYS[2]) == ARGV[1] and 1 or 0 end
if redis.sha1hex(stored) ~= ARGV[3] then return {stored, redis.call('PTTL', KEYS[1])} end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
redis.call('UNLINK', KEYS[1])
return 1
""")
# The same, with the fields of both hashes that were copied, and the digest of the value of each. The large values stay
# in KEYS[4] for as long.
LEAVE_HASH = Script("""
local small, large = KEYS[1], KEYS[2]
local number = redis.call('HLEN', small)
if number == 0 then return redis.call('GET', KEYS[3]) == ARGV[1] and 1 or 0 end
local same = number + redis.call('HLEN', large) == (#ARGV - 2) / 2
for at = 3, #ARGV, 2 do
    if not same then break end
    local stored = redis.call('HGET', small, ARGV[at]) or redis.call('HGET', large, ARGV[at])
    same = stored and redis.sha1hex(stored) == ARGV[at + 1]
end
if not same then
    return {{redis.call('HGETALL', small), redis.call('HGETALL', large)}, redis.call('PTTL', small)}
end
redis.call('SET', KEYS[3], ARGV[1], 'EX', ARGV[2])
redis.call('UNLINK', small)
if redis.call('EXISTS', large) == 1 then
    redis.call('RENAME', large, KEYS[4])
    redis.call('EXPIRE', KEYS[4], ARGV[2])
end
return 1
""")

# Whose sessions: the ids of a user's sessions in a sorted set, by the milliseconds at which each was added.

_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
# Each time that so many more ids are in the set, those of sessions that have expired are to be removed.
_MANY: Final = 100
# ARGV: the id, and the seconds that the set is to live at least. Answers 1 if ids are to be removed.
ADD_TO_USER = Script(
    _NOW
    + f"""
local added = redis.call('ZADD', KEYS[1], now, ARGV[1])
if redis.call('PTTL', KEYS[1]) < ARGV[2] * 1000 then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return added == 1 and redis.call('ZCARD', KEYS[1]) % {_MANY} == 0 and 1 or 0
"""
)
# Answers the ids and when each was added, in a row, and the time.
READ_USER = Script(_NOW + "return {redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'), now}", reads=True)
# ARGV: the ids to remove, each with the time at which it was added. One that was added again since then stays.
CLEAN_USER = Script("""
for at = 1, #ARGV, 2 do
    if redis.call('ZSCORE', KEYS[1], ARGV[at]) == ARGV[at + 1] then redis.call('ZREM', KEYS[1], ARGV[at]) end
end
""")
# KEYS: those of a session, and last that of the set. ARGV: the id.
END_OF_USER = Script("""
redis.call('UNLINK', unpack(KEYS, 1, #KEYS - 1))
redis.call('ZREM', KEYS[#KEYS], ARGV[1])
""")

# One at a time. ARGV: the token of the holder, and the milliseconds that the lock holds.

LOCK = Script("""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""")
UNLOCK = Script("if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('UNLINK', KEYS[1]) end")
