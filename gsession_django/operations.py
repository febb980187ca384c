"""What Django asks of a session, as calls of Storage methods.

Each operation uses the method that does it at once, if the storage has it, and is composed of the others if not. What
is composed holds a lock on the session's id in this process. Between processes, a write that lands between the last
read and the call after it is lost.
"""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

from gsession_django.engine import UNABLE, Engine, Operation
from gsession_django.saving import Saving
from gsession_django.serializers import DecodeError, logger
from gsession_django.session_map import EXPIRY_KEY, SessionMap
from gsession_django.values import MISSING

# What a session of this site lives, in seconds; asked for only where a session is read.
Age = Callable[[], int]

RESERVED_KEY: Final = "_gsession"
"""What a per-key storage is given to keep where a session has no pairs. No user ever sees it."""
MOVING_KEY: Final = RESERVED_KEY + "_moving."
"""Begins the keys that a session has only while it is moved here (``moving/steps.py``). No user ever sees them."""
BEGUN: Final = "begun"
"""The value of such a key. The session may have ended at the source. Until somebody has looked there, it counts as
missing."""


# Reading.


def load(engine: Engine, session_id: str, age: Age, moving: bool = False) -> Operation:
    """Return what is stored, as a SessionMap, or ``None``. Raises ``DecodeError`` if it cannot be read.

    `moving` is for who moves sessions: one that is being moved here is returned then, with the pairs that say so.
    """
    found = yield "get_session", session_id, age(), None
    if found is None:
        return None
    if found is UNABLE:
        raise engine.cannot_hold_a_session("get_session")
    if isinstance(found, SessionMap):
        session = found
    else:
        session = SessionMap(found)
        session.partial = not session and "get" in engine.able
    if keys := session.held(RESERVED_KEY):
        if _needs_a_pair(engine):
            session.hide(RESERVED_KEY)
        if not moving and (keys := list(filter(is_moving, keys))):
            if BEGUN in map(session.get, keys):
                return None
            for key in keys:
                session.hide(key)
    return session


def load_all(engine: Engine, session_id: str, age: Age, moving: bool = False) -> Operation:
    """The same, with all its pairs."""
    session = yield from load(engine, session_id, age, moving)
    if session is not None and session.lacks(None):
        session.learn((yield from _all_pairs(engine, session_id, moving)), complete=True)
    return session


def fetch(engine: Engine, session_id: str, session: SessionMap, key: str | None) -> Operation:
    """Bring the value of `key` into a session that is served key by key; with ``None`` all that there is."""
    if key is not None:
        value = yield from _one_value(engine, session_id, key)
        if value is not UNABLE and value is not None:
            session.learn({key: value})
            return
        if value is None and (key == EXPIRY_KEY or session.promises(key)):
            # Settled: Django never keeps None there, and no storage promises a value that is none.
            session.learn_absent(key)
            return
    try:
        session.learn((yield from _all_pairs(engine, session_id)), complete=True)
    except DecodeError as error:
        log_unreadable(engine, session_id, error)
        session.learn({}, complete=True)
        session.unreadable = not session.as_dict()


def size(engine: Engine, session_id: str) -> Operation:
    """Return the number of pairs that are stored."""
    number = yield "get_size", session_id
    if number is UNABLE:
        return len((yield from _all_pairs(engine, session_id)))
    reserved = yield "get", session_id, RESERVED_KEY
    return number if reserved is None else number - 1


def _one_value(engine: Engine, session_id: str, key: str) -> Operation:
    try:
        return (yield "get", session_id, key)
    except DecodeError as error:
        log_unreadable(engine, session_id, error)
        return None


def _all_pairs(engine: Engine, session_id: str, moving: bool = False) -> Operation:
    data: Mapping[str, Any] = yield from engine.need("get_map", session_id)
    return {key: value for key, value in data.items() if key != RESERVED_KEY and (moving or not is_moving(key))}


def is_moving(key: Any) -> bool:
    """Whether `key` is one that a session has only while it is being moved."""
    return isinstance(key, str) and key.startswith(MOVING_KEY)


def log_unreadable(engine: Engine, session_id: str, error: DecodeError) -> None:
    logger.warning("The session %r of %s cannot be read, and is left as it is: %s", session_id, engine.name, error)


def exists(engine: Engine, session_id: str, age: Age) -> Operation:
    """Return whether there is such a session, readable or not."""
    try:
        found = yield "exists", session_id
        return (yield from load(engine, session_id, age)) is not None if found is UNABLE else found
    except DecodeError:
        return True


# Writing.


def create(engine: Engine, session_id: str, session: SessionMap, ttl: int) -> Operation:
    """Store a new session; ``False`` when the id is taken, which only a storage that has ``create`` knows."""
    with session.saving() as save:
        try:
            stored = yield "create", session_id, session, ttl
        except DecodeError:  # the storage has looked, and there is one that it cannot read
            return False
        if stored is UNABLE:
            data = session.as_dict()
            yield from _write(engine, session_id, _pairs(engine, data), set(), data, ttl)
            stored = True
        if stored:
            session.saved(save)
            session.ttl_left = ttl
        return stored


def apply(engine: Engine, session_id: str, save: Saving, ttl: int, age: Age, ttl_of: Callable[[Any], int]) -> Operation:
    """Store what the request did to a session; ``False`` when it is gone.

    Args:
        engine: the engine.
        session_id: the session's id.
        save: the save under way.
        ttl: what the session lives from now on, in seconds.
        age: what a session of this site lives.
        ttl_of: makes a TTL of the value that Django keeps in a session for ``set_expiry()``.

    Raises:
        DecodeError: what is stored now cannot be read, and so not be merged with; nothing was stored.
    """
    session = save.session
    # A composed move copies the session and then removes it. Between the two no other request may save it.
    there = (yield "apply", session_id, session, ttl) if "move" in engine.able else UNABLE
    if there is UNABLE:
        there = yield from _alone(engine, session_id, _apply(engine, session_id, session, ttl, age, ttl_of))
    if there:
        session.saved(save)
        session.ttl_left = ttl
    return there


def _apply(
    engine: Engine, session_id: str, session: SessionMap, ttl: int, age: Age, ttl_of: Callable[[Any], int]
) -> Operation:
    there = yield "apply", session_id, session, ttl
    if there is UNABLE:
        there = yield from _compose_apply(engine, session_id, session, ttl, age, ttl_of)
    return there


def _compose_apply(
    engine: Engine, session_id: str, session: SessionMap, ttl: int, age: Age, ttl_of: Callable[[Any], int]
) -> Operation:
    current: SessionMap | None = yield from load(engine, session_id, age)
    if current is None:
        return False
    changed, removed = session.changed, session.removed
    by_pairs = current.partial
    if by_pairs and (session.cleared or (removed and "remove" not in engine.able)):
        # It must be known as a whole to be cleared, or to be written anew where nothing removes one pair.
        current.learn((yield from _all_pairs(engine, session_id)), complete=True)
    if current.partial:
        # Only a dict is merged with what is stored; of anything else the last one saved wins.
        for key, value in changed.items():
            stored = (yield from _one_value(engine, session_id, key)) if isinstance(value, dict) else None
            changed[key] = session.merged_value(key, MISSING if stored is None or stored is UNABLE else stored)
        whole = session.as_dict() | changed
        expiry = yield from _one_value(engine, session_id, EXPIRY_KEY)
        known: Mapping[str, Any] = {} if expiry is None or expiry is UNABLE else {EXPIRY_KEY: expiry}
    else:
        if session.cleared:
            removed = current.keys() - changed.keys()
        whole = session.merged_onto(current)
        changed = {key: whole[key] for key in changed}
        known = current
    if not session.renews_ttl(known):
        ttl = ttl_of(known.get(EXPIRY_KEY))
    if removed and not changed and (current.partial or not whole):
        changed = _pairs(engine, {})
    if removed and "remove" not in engine.able and (by_pairs or "set_session" not in engine.able):
        yield from engine.need("remove_all", session_id)
        changed, removed = _pairs(engine, whole), set()
    yield from _write(engine, session_id, changed, removed, whole, ttl)
    if removed and by_pairs and "remove" not in engine.able:  # as it turned out just now
        return (yield from _compose_apply(engine, session_id, session, ttl, age, ttl_of))
    return True


def touch(engine: Engine, session_id: str, save: Saving, ttl: int, age: Age) -> Operation:
    """Renew the TTL of a session that did not change; ``False`` when it is gone."""
    session = save.session
    if ttl <= 0:  # It ends without us; if it has not, another request has prolonged it.
        return (yield from exists(engine, session_id, age))
    try:
        there = yield "update_ttl", session_id, ttl
        if there is UNABLE and "apply" in engine.able:
            there = yield "apply", session_id, session, ttl
            if there is not UNABLE:
                session.saved(save)
        if there is UNABLE:
            there = yield from _alone(engine, session_id, _compose_touch(engine, session_id, ttl, age))
    except DecodeError as error:
        log_unreadable(engine, session_id, error)
        return True
    session.ttl_left = ttl
    return there is not False


def _compose_touch(engine: Engine, session_id: str, ttl: int, age: Age) -> Operation:
    by_pairs = "set_session" not in engine.able
    current = yield from (load_all if by_pairs else load)(engine, session_id, age)
    if current is None:
        return False
    data = current.as_dict()
    yield from _write(engine, session_id, _pairs(engine, data) if by_pairs else {}, set(), data, ttl)
    return True


def move(engine: Engine, session_id: str, new_id: str, ttl: int, age: Age, ttl_of: Callable[[Any], int]) -> Operation:
    """Give the stored session a new id; ``False`` when it is gone."""
    moved = yield "move", session_id, new_id, ttl
    if moved is UNABLE:
        moved = yield from _alone(engine, session_id, _compose_move(engine, session_id, new_id, age, ttl_of))
    return moved


def _compose_move(engine: Engine, session_id: str, new_id: str, age: Age, ttl_of: Callable[[Any], int]) -> Operation:
    """Copy the session, and again what another process saved meanwhile, until nobody did; then remove the old one."""
    copied = yield from load_all(engine, session_id, age)
    if copied is None:
        return False
    ttl = ttl_of(copied.get(EXPIRY_KEY))
    if not (yield from create(engine, new_id, SessionMap(copied.as_dict()), ttl)):
        return False
    while (current := (yield from load_all(engine, session_id, age))) is not None:
        meanwhile = SessionMap(copied.as_dict())
        for key in copied.keys() - current.keys():
            del meanwhile[key]
        meanwhile.update(current)
        if not meanwhile.has_changes():
            yield from engine.need("remove_all", session_id)
            return True
        # Without the lock of the new id, which nobody else knows yet.
        yield from _apply(engine, new_id, meanwhile, ttl_of(current.get(EXPIRY_KEY)), age, ttl_of)
        copied = current
    yield from engine.need("remove_all", new_id)  # it has been ended, and the copy ends with it
    return False


def remove(engine: Engine, session_id: str) -> Operation:
    """Remove a session."""
    yield from _alone(engine, session_id, engine.need("remove_all", session_id))


def _pairs(engine: Engine, data: dict[str, Any]) -> dict[str, Any]:
    """Return the pairs to store of a session: never none where a medium without pairs would forget the session."""
    return data or ({RESERVED_KEY: True} if _needs_a_pair(engine) else {})


def _needs_a_pair(engine: Engine) -> bool:
    return "get" in engine.able or "set_session" not in engine.able


def _write(
    engine: Engine,
    session_id: str,
    changed: dict[str, Any],
    removed: AbstractSet[str],
    whole: dict[str, Any],
    ttl: int,
) -> Operation:
    """Store a session with the methods of gsession: the pairs that changed, and then what is known of the whole."""
    stored = False
    if changed:
        stored = (yield "set_map", session_id, changed, ttl) is not UNABLE
        if not stored:
            for key, value in changed.items():
                stored = (yield "set", session_id, key, value, ttl) is not UNABLE
    for key in removed:
        yield "remove", session_id, key
    if (yield "set_session", session_id, whole, ttl) is UNABLE and not stored:
        yield from engine.need("set_map", session_id, _pairs(engine, whole), ttl)


def _alone(engine: Engine, session_id: str, operation: Operation) -> Operation:
    """Carry out an operation with the id to itself, in this process."""
    if (turn := engine.locks.acquire(session_id)) is not None:
        try:
            yield turn
        except BaseException:
            engine.locks.give_up(turn)
            raise
    try:
        return (yield from operation)
    finally:
        engine.locks.release(session_id)
