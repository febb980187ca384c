"""How a session is moved: in steps, so that one that is broken off at any point is completed by whoever comes next.

While a session is being moved it has a pair more at the target, of a key that begins with ``MOVING_KEY`` and belongs to
this one copy of it. No user ever sees the pair.

1. It is read at the source.
2. It is created at the target, if there is none, with the pair: ``begun``.
3. One looks whether the source still has it. If not, and the target still says ``begun``, it was signed out meanwhile:
   the copy is removed.
4. The pair becomes ``certain``, if the copy is still there.
5. It is removed at the source.
6. The pair is taken away.

If there is one at the target already, it says how far somebody else has come, and the move is taken over from there.
So several that move one session at once do no harm:

* Nobody removes it at the source before the copy is certain. So a copy that is ``begun``, of a session that the source
  does not have, is of one that has ended. Whoever ends a session does so at the source first.
* A copy may be made late, by one who has read the session before it was moved by another and then ended. Steps that
  others still have before them belong to the copy before that one: as each has a key of its own, they do not make the
  late copy look certain or complete.
* Only step 2 sets a TTL, as the session may be in use by the time that a straggler takes steps 4 and 6.

The target may refuse one session, as too large for instance. An error does not tell whether it is about the session or
about the target: MySQL and Redis close the connection on what is too large. So a step is tried twice, and after each
failure the target has to take a small session that is nobody's. If it does not, it is away, and the error is raised. If
it does both times, the session is :class:`Refused`: it stays at the source, and a copy that is ``begun`` is removed. No
other process can have made that copy certain, as the target refuses it to each of them.
"""

import math
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured

from gsession_django.core.driving import UNABLE, Operation
from gsession_django.core.engine import Engine
from gsession_django.core.pairs import EXPIRY_KEY
from gsession_django.core.reading import Lifetimes
from gsession_django.core.reserved import RESERVED_PREFIX, UNFINISHED
from gsession_django.core.session_map import SessionMap
from gsession_django.moving.source import Found, Source
from gsession_django.serializers import DecodeError, decode, encode

MOVING_KEY: Final = RESERVED_PREFIX + "moving."
"""Begins the keys that a session has only while it is moved to its engine."""
CERTAIN: Final = "certain"
"""The counterpart of ``UNFINISHED``: the session is at the target, whatever becomes of it at the source."""

Pairs = Mapping[str, str]
"""The pairs of a session at the target that say how far its move has come; none when it is complete."""

# Equal to no expiry that a session can have: see _mark().
_NO_EXPIRY: Final = "unknown"
# A second one finds the id free that was taken; if it is still both taken and not to be loaded, nobody can read it.
_ATTEMPTS: Final = 3
# Seconds that a session lives which is made to see what the target does with it.
_PROBE_TTL: Final = 60
# What a server says of a session at most: it may quote all of it.
_REASON_LENGTH: Final = 300


class Outcome(Enum):
    """What became of a session that was to be moved."""

    MOVED = auto()
    """It is at the target, and complete."""
    SKIPPED = auto()
    """The target has another session of its own under this id, which was left as it is, and so was the source's."""
    ENDED = auto()
    """It ended meanwhile, at the source or at the target."""


@dataclass(frozen=True, slots=True)
class Refused:
    """What became of a session that the target does not take: it is at the source, as it was, and only there.

    Attributes:
        reason: what the target says.
    """

    reason: str


def move(engine: Engine, source: Source, batch: Mapping[str, tuple[str, Found]], lifetimes: Lifetimes) -> Operation:
    """Move sessions. For all of them it is one call of the source's ``present`` and one of its ``remove``.

    What raises in between, and what kills the process, leaves a state that the next move, or :func:`finish`, completes.

    Args:
        engine: the target. Its storage must have ``create`` and ``apply``, or this is ``ImproperlyConfigured``.
        source: where the sessions are.
        batch: for each of the source's refs the session's id at the target, and what was read at the source.
        lifetimes: what sessions of this site live.

    Returns:
        An :class:`Outcome` for each ref, or :class:`Refused`.
    """
    moving, others, refused = yield from _begin_all(engine, batch, lifetimes)
    outcomes = yield from finish(engine, source, moving, lifetimes)
    # Where the source has none any more, it is the same session, and in use since somebody else has moved it.
    differ = (yield partial(source.present, others)) if others else set()
    return outcomes | refused | {ref: Outcome.SKIPPED if ref in differ else Outcome.MOVED for ref in others}


def copy(engine: Engine, source: Source, batch: Mapping[str, tuple[str, Found]], lifetimes: Lifetimes) -> Operation:
    """Copy sessions: like :func:`move`, but for steps 4 and 5, so that the source stays as it is."""
    moving, others, refused = yield from _begin_all(engine, batch, lifetimes)
    outcomes = yield from finish(engine, source, moving, lifetimes, keep=True)
    return outcomes | refused | dict.fromkeys(others, Outcome.SKIPPED)


def foresee(engine: Engine, batch: Mapping[str, tuple[str, Found]], lifetimes: Lifetimes) -> Operation:
    """Return what :func:`move` or :func:`copy` would do with each session now, as far as reading tells.

    Nothing is changed.
    """
    outcomes: dict[str, Outcome | Refused] = {}
    for ref, (session_id, found) in batch.items():
        session = yield from _tried(partial(_load, engine, session_id, lifetimes), partial(_look, engine, lifetimes))
        if isinstance(session, Refused):
            outcomes[ref] = session
        else:
            skipped = session is not None and _is_another(session, found)
            outcomes[ref] = Outcome.SKIPPED if skipped else Outcome.MOVED
    return outcomes


def probe(engine: Engine, meanwhile: Callable[[str], Any] | None = None) -> Operation:
    """Let the target have a session that is nobody's, for a moment.

    Args:
        engine: the target.
        meanwhile: called with the session's id while it is there.

    Returns:
        What `meanwhile` returns. Without it the session is changed once, and all that :func:`move` needs was done.
    """
    session_key = yield "new", _PROBE_TTL
    session_id = engine.id_of(secrets.token_hex(16) if session_key is UNABLE else session_key)
    yield from engine.create(session_id, SessionMap({}), _PROBE_TTL)
    try:
        if meanwhile is not None:
            return (yield partial(meanwhile, session_id))
        yield from _mark(engine, session_id, {MOVING_KEY: CERTAIN}, _PROBE_TTL, UNFINISHED)
    finally:
        yield from engine.remove(session_id)


def finish(
    engine: Engine, source: Source, moving: Mapping[str, tuple[str, Pairs]], lifetimes: Lifetimes, keep: bool = False
) -> Operation:
    """Take over moves, from step 3 on: what :func:`move` does with sessions that are at the target.

    Args:
        engine, source, lifetimes: as for :func:`move`.
        moving: for each ref the session's id at the target, and its pairs there: see :func:`pairs_of`.
        keep: whether the source stays as it is.

    Returns:
        An :class:`Outcome` for each ref, or :class:`Refused`.
    """
    outcomes: dict[str, Outcome | Refused] = dict.fromkeys(moving, Outcome.ENDED)
    ttl = lifetimes.get_session_cookie_age()
    begun = [ref for ref, (_, pairs) in moving.items() if UNFINISHED in pairs.values()]
    there: set[str] = (yield partial(source.present, begun)) if begun else set()
    staying: dict[str, tuple[str, Pairs]] = {}
    for ref, (session_id, pairs) in moving.items():
        if ref in begun and ref not in there:
            session = yield from _load(engine, session_id, lifetimes)
            if session is None:
                continue
            pairs = pairs_of(session)
            if UNFINISHED in pairs.values():
                yield from engine.remove(session_id)
                continue
        elif ref in begun and not keep:
            certain = yield from _tried(
                partial(_mark, engine, session_id, pairs, ttl, CERTAIN),
                partial(probe, engine),
            )
            if isinstance(certain, Refused):
                yield from _withdraw(engine, session_id, pairs, lifetimes)
                outcomes[ref] = certain
                continue
            if not certain:
                continue
        staying[ref] = session_id, pairs
    if staying and not keep:
        yield partial(source.remove, list(staying))
    for ref, (session_id, pairs) in staying.items():
        complete = not pairs or (
            yield from _tried(
                partial(_mark, engine, session_id, pairs, ttl, None),
                partial(probe, engine),
            )
        )
        if isinstance(complete, Refused) and keep:
            yield from _withdraw(engine, session_id, pairs, lifetimes)
            outcomes[ref] = complete
        elif complete:  # with a pair that the target does not let go of as well: nobody sees it
            outcomes[ref] = Outcome.MOVED
    return outcomes


def pairs_of(session: SessionMap) -> Pairs:
    """Return the pairs that say how far the move of a session has come that was loaded with ``moving``."""
    return {key: session.get(key) for key in session.held(MOVING_KEY)}


def reason_of(error: Exception) -> str:
    """Return what an error says, in one line."""
    text, _, _ = " ".join(str(error).split()).partition(" DETAIL: ")  # in which PostgreSQL quotes the session
    return f"{type(error).__name__}: {text[:_REASON_LENGTH].rstrip('.')}"


def _is_another(session: SessionMap, found: Found) -> bool:
    """Whether the target has a session of its own, rather than one that is being moved, or a copy of what was read."""
    return not pairs_of(session) and session.as_dict() != decode(encode(found.data))


def _begin_all(engine: Engine, batch: Mapping[str, tuple[str, Found]], lifetimes: Lifetimes) -> Operation:
    """Take step 2. Return those to go on with, for :func:`finish`, the refs whose id another session has, and those
    that are refused.
    """
    moving: dict[str, tuple[str, Pairs]] = {}
    others: list[str] = []
    refused: dict[str, Refused] = {}
    for ref, (session_id, found) in batch.items():
        made: dict[str, str] = {}
        begun = yield from _tried(partial(_begin, engine, session_id, found, made, lifetimes), partial(probe, engine))
        if isinstance(begun, Refused):
            yield from _withdraw(engine, session_id, made, lifetimes)
            refused[ref] = begun
        elif begun is None:
            others.append(ref)
        else:
            moving[ref] = session_id, begun
    return moving, others, refused


def _begin(engine: Engine, session_id: str, found: Found, made: dict[str, str], lifetimes: Lifetimes) -> Operation:
    """Take step 2 for one session. Return the pairs of its copy, or ``None`` if another session has its id.

    `made` takes in the pairs of each copy that this tries to make. Where there are some already, an earlier attempt has
    failed, and may have left a part of the session.
    """
    if made:
        yield from _withdraw(engine, session_id, made, lifetimes, found)
    for _ in range(_ATTEMPTS):
        pairs: Pairs = {MOVING_KEY + secrets.token_hex(8): UNFINISHED}
        made.update(pairs)
        if (yield from _create(engine, session_id, found, pairs)):
            return pairs
        session = yield from _load(engine, session_id, lifetimes)
        if session is not None:
            return None if _is_another(session, found) else pairs_of(session)
    if not (yield from engine.exists(session_id, lifetimes)):
        raise ValueError("its create() answers that the id is taken, and there is no session with this id")
    return None


def _tried(attempt: Callable[[], Operation], check: Callable[[], Operation]) -> Operation:
    """Return what `attempt` does; :class:`Refused` if it fails twice, and `check` never, by which the target is there.

    Otherwise what it raises is raised.
    """
    for _ in range(2):
        try:
            return (yield from attempt())
        except ImproperlyConfigured:
            raise
        except Exception as error:  # each storage has its own
            refused = Refused(reason_of(error))
            if not (yield from _succeeds(check)):
                raise
    return refused


def _succeeds(check: Callable[[], Operation]) -> Operation:
    try:
        yield from check()
    except Exception:
        return False
    return True


def _look(engine: Engine, lifetimes: Lifetimes) -> Operation:
    """Look for a session that nobody has."""
    yield from _load(engine, engine.id_of(secrets.token_hex(16)), lifetimes)


def _withdraw(
    engine: Engine, session_id: str, pairs: Pairs, lifetimes: Lifetimes, unless: Found | None = None
) -> Operation:
    """Remove the copy of a session that the target refuses, if it has one of these pairs and is still ``begun``.

    With `unless` it stays if it is all of that session, with a TTL: then only the reply was lost.
    """
    with suppress(Exception):  # what cannot be looked at is not this copy
        session = yield from _load(engine, session_id, lifetimes)
        if session is None or all(session.get(key) != UNFINISHED for key in pairs):
            return
        if unless is not None and session.ttl_left is not None:
            whole = decode(encode({**unless.data, **pairs_of(session)}))
            if session.as_dict() == whole:
                return
        yield from engine.remove(session_id)


def _load(engine: Engine, session_id: str, lifetimes: Lifetimes) -> Operation:
    """Return a session at the target, with the pairs that say how far its move has come; ``None`` if none can be read.

    A session that cannot be read is left alone, and keeps its id.
    """
    try:
        return (yield from engine.load_all(session_id, lifetimes, reserved=True))
    except DecodeError as error:
        engine.log_unreadable(session_id, error)
        return None


def _create(engine: Engine, session_id: str, found: Found, pairs: Pairs) -> Operation:
    session = SessionMap({**pairs, **found.data})  # so that what is stored of it first says that it is no session yet
    try:
        created = yield "create", session_id, session, math.ceil(found.ttl_left)
    except DecodeError:
        return False
    if created is UNABLE:
        raise _cannot_take_sessions(engine, "create")
    return created


def _mark(engine: Engine, session_id: str, pairs: Pairs, ttl: int, value: str | None) -> Operation:
    """Set the pairs to `value`, or take them away; ``False`` when the session is gone.

    Nothing else of it changes. An expiry that it does not have is the way to tell ``apply`` to leave its TTL alone.
    """
    session = SessionMap({EXPIRY_KEY: _NO_EXPIRY, **pairs})
    for key in pairs:
        if value is None:
            del session[key]
        else:
            session[key] = value
    try:
        applied = yield "apply", session_id, session, ttl
    except DecodeError:
        return False
    if applied is UNABLE:
        raise _cannot_take_sessions(engine, "apply")
    return applied


def _cannot_take_sessions(engine: Engine, lacking: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(
        f"No session can be moved to {engine.name}: its storage needs create() and apply(), and has no {lacking}(). "
        "Give it one, or move the sessions to another engine."
    )
