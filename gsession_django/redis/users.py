"""Whose sessions: for each user a sorted set of session ids, by the time at which each was added.

The set of the user 7 is at the key that a session with the id ``user/7`` would have. No session has an id with a slash.
"""

from itertools import chain
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from gsession_django.redis.commands import Batch, Command, Operation, Spread, seconds
from gsession_django.redis.scripts import ADD_TO_USER, CLEAN_USER, END_OF_USER, READ_USER

if TYPE_CHECKING:
    from gsession_django.redis.storage import BaseRedisStorage

# Milliseconds for which an id may be there before its session is.
_YOUNG: Final = 60_000


def sessions_of(storage: "BaseRedisStorage", user_id: str) -> Operation[list[str]]:
    """Do what ``Storage.sessions_of`` says, in the order in which the sessions were added.

    A round trip to the set, one to ask which sessions exist (in a cluster one to each node that has some), and one more
    if ids are removed.
    """
    key = _key_of(storage, user_id)
    ((found, now),) = yield Batch(READ_USER((key,)))
    if not found:
        return []
    added = dict(zip((each.decode() for each in found[::2]), found[1::2], strict=True))
    there = yield Spread(*(("EXISTS", storage._key(session_id)) for session_id in added))
    ended = {
        session_id: time
        for (session_id, time), exists in zip(added.items(), there, strict=True)
        if not exists and float(time) < now - _YOUNG
    }
    if ended:
        yield Batch(CLEAN_USER((key,), *chain.from_iterable(ended.items())))
    return [session_id for session_id in added if session_id not in ended]


def add_to_user(storage: "BaseRedisStorage", user_id: str, session_id: str, ttl: int) -> Operation[None]:
    """Do what ``Storage.add_to_user`` says. The set lives at least as long as the id is to be listed."""
    command = ADD_TO_USER((_key_of(storage, user_id),), session_id, seconds(ttl))
    if storage._changed((yield storage._change(command))):
        yield from sessions_of(storage, user_id)


def remove_from_user(storage: "BaseRedisStorage", user_id: str, session_id: str, ended: bool) -> Operation[None]:
    """Do what ``Storage.remove_from_user`` says: in one round trip, or where a cluster's session ends in two."""
    key = _key_of(storage, user_id)
    command: Command = ("ZREM", key, session_id)
    if ended and storage.client.entry.is_cluster:
        yield from storage._remove_all(session_id)
    elif ended:
        command = END_OF_USER((*storage._keys(session_id), key), session_id)
    storage._changed((yield storage._change(command)))


def _key_of(storage: "BaseRedisStorage", user_id: str) -> str:
    return storage._key(f"user/{quote(user_id, safe='', errors='surrogatepass')}")
