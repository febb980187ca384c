"""Moves a session in steps. If one mover stops at any point, the next one completes the move.

During the move, the copy at the target has one more pair, which no user sees. Its key begins with ``MOVING_KEY`` and
belongs to this copy alone. The mover

1. reads the session at the source,
2. creates a copy at the target, if there is none, with the pair ``begun``,
3. looks for the session at the source. If it is gone, and the pair is still ``begun``, the visitor has signed out, and
   the mover removes the copy,
4. makes the pair ``certain``, if the copy is still there,
5. removes the session at the source,
6. removes the pair.

If the target already has a copy, the mover goes on from where its pair says. Several movers do no harm:

* No mover removes the session at the source before the copy is ``certain``, and a session ends at the source first. So
  if the source lacks the session of a ``begun`` copy, the session has ended.
* A late mover may create a copy after another has moved the session and it has ended. This copy has a key of its own,
  so the remaining steps of other movers do not make it look certain or complete.
* Only step 2 sets a TTL: when a late mover takes steps 4 and 6, the session may be in use.

The target may refuse a session, such as a large one. MySQL and Redis then close the connection, as in an outage. So the
mover tries a step twice, and after each failure it creates a small session at the target. If that fails too, the target
is down, and the mover raises the error. If not, the session is :class:`Refused`: it stays at the source, and the mover
removes a ``begun`` copy. No other mover can have made that copy certain, as the target refuses it to all of them.
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
from gsession_django.core.reserved import RESERVED_PREFIX, UNFINISHED, is_hidden
from gsession_django.core.session_map import SessionMap
from gsession_django.moving import ended_users
from gsession_django.moving.source import Found, Source
from gsession_django.serializers import DecodeError, decode, encode

MOVING_KEY: Final = RESERVED_PREFIX + "moving."
"""The prefix of the keys that a session has only while it is moved."""
CERTAIN: Final = "certain"
"""The value after ``UNFINISHED``: the session is at the target, whatever happens to it at the source."""

Pairs = Mapping[str, str]
"""The pairs of a copy that say how far its move has come; none when the move is complete."""

# No session has this expiry: see _mark().
_NO_EXPIRY: Final = "unknown"
# The id may be taken at one attempt and free at the next. After three, a session has it that nobody can read.
_ATTEMPTS: Final = 3
# The TTL of the small session that shows whether the target is up, in seconds.
_PROBE_TTL: Final = 60
# How many characters of an error are kept: a server may quote the whole session.
_REASON_LENGTH: Final = 300


class Outcome(Enum):
    """What happened to a session in a move."""

    MOVED = auto()
    """It is at the target, and complete."""
    SKIPPED = auto()
    """The target has another session under this id. Both stay as they are."""
    ENDED = auto()
    """It ended meanwhile, at the source or at the target."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The target does not take the session. It is only at the source, as it was.

    Attributes:
        reason: the target's error.
    """

    reason: str


def move(engine: Engine, source: Source, batch: Mapping[str, tuple[str, Found]], lifetimes: Lifetimes) -> Operation:
    """Move sessions. The source gets at most three calls for all of them.

    If an error or a kill ends it, the next move, or :func:`finish`, completes it.

    Args:
        engine: the target. Raises ``ImproperlyConfigured`` if its storage lacks ``create`` or ``apply``.
        source: where the sessions are.
        batch: by ref, the session's id at the target and the session itself.
        lifetimes: the site's lifetimes of sessions.

    Returns:
        By ref, an :class:`Outcome` or :class:`Refused`.
    """
    ended = yield from ended_users.take_out(engine, source, batch, lifetimes, keep=False)
    moving, others, refused = yield from _begin_all(engine, _without(ended, batch), lifetimes)
    outcomes = yield from finish(engine, source, moving, lifetimes)
    # If the source has lost it, another mover has moved this very session, and a visitor has changed it since.
    differ = (yield partial(source.present, others)) if others else set()
    outcomes |= {ref: Outcome.SKIPPED if ref in differ else Outcome.MOVED for ref in others}
    return outcomes | refused | dict.fromkeys(ended, Outcome.ENDED)


def copy(engine: Engine, source: Source, batch: Mapping[str, tuple[str, Found]], lifetimes: Lifetimes) -> Operation:
    """Copy sessions: :func:`move` without steps 4 and 5, so the source stays as it is."""
    ended = yield from ended_users.take_out(engine, source, batch, lifetimes, keep=True)
    moving, others, refused = yield from _begin_all(engine, _without(ended, batch), lifetimes)
    outcomes = yield from finish(engine, source, moving, lifetimes, keep=True)
    return outcomes | refused | dict.fromkeys(others, Outcome.SKIPPED) | dict.fromkeys(ended, Outcome.ENDED)


def _without(refs: set[str], batch: Mapping[str, tuple[str, Found]]) -> Mapping[str, tuple[str, Found]]:
    return {ref: each for ref, each in batch.items() if ref not in refs} if refs else batch


def foresee(engine: Engine, batch: Mapping[str, tuple[str, Found]], lifetimes: Lifetimes) -> Operation:
    """Return what :func:`move` or :func:`copy` would do with each session now. This only reads."""
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
    """Create a small session at the target, and remove it.

    Args:
        engine: the target.
        meanwhile: called with the session's id in between. Without it, this changes the session once, as a move does.

    Returns:
        The result of `meanwhile`.
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
    """Complete moves, from step 3 on.

    Args:
        engine, source, lifetimes: as for :func:`move`.
        moving: by ref, the session's id at the target, and its pairs there: see :func:`pairs_of`.
        keep: whether the source stays as it is.

    Returns:
        By ref, an :class:`Outcome` or :class:`Refused`.
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
        elif complete:  # also if the target has refused to remove the pair: nobody sees it
            outcomes[ref] = Outcome.MOVED
    return outcomes


def pairs_of(session: SessionMap) -> Pairs:
    """Return the pairs of the move of a session, which was loaded with ``reserved``."""
    return {key: session.get(key) for key in session.held(MOVING_KEY)}


def reason_of(error: Exception) -> str:
    """Return an error in one line."""
    text, _, _ = " ".join(str(error).split()).partition(" DETAIL: ")  # where PostgreSQL quotes the session
    return f"{type(error).__name__}: {text[:_REASON_LENGTH].rstrip('.')}"


def _is_another(session: SessionMap, found: Found) -> bool:
    """Whether the session at the target is neither in a move nor equal to the one at the source."""
    return not pairs_of(session) and _seen(session.as_dict()) != _seen(decode(encode(found.data)))


def _seen(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pairs that requests see."""
    return {key: value for key, value in data.items() if not is_hidden(key)}


def _begin_all(engine: Engine, batch: Mapping[str, tuple[str, Found]], lifetimes: Lifetimes) -> Operation:
    """Take step 2. Return the sessions for :func:`finish`, the refs whose id another session has, and the refused."""
    moving: dict[str, tuple[str, Pairs]] = {}
    others: list[str] = []
    refused: dict[str, Refused] = {}
    for ref, (session_id, found) in batch.items():
        made: dict[str, str] = {}
        begun = yield from _tried(partial(_begin, engine, session_id, found, made, lifetimes), partial(probe, engine))
        if isinstance(begun, Refused):
            yield from _withdraw(engine, session_id, made, lifetimes)
            yield from engine.was_not_created(session_id, found.data)
            refused[ref] = begun
        elif begun is None:
            others.append(ref)
        else:
            moving[ref] = session_id, begun
    return moving, others, refused


def _begin(engine: Engine, session_id: str, found: Found, made: dict[str, str], lifetimes: Lifetimes) -> Operation:
    """Take step 2 for one session. Return the pairs of its copy, or ``None`` if another session has its id.

    `made` collects the pairs of each attempt. If it already has some, an earlier attempt may have left a part of the
    session.
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
        raise ValueError("its create() says that the id is taken, but no session has it")
    return None


def _tried(attempt: Callable[[], Operation], check: Callable[[], Operation]) -> Operation:
    """Return what `attempt` returns, or :class:`Refused` if it fails twice.

    If `check` fails after a failure, the target is down, and this raises the error of `attempt`.
    """
    for _ in range(2):
        try:
            return (yield from attempt())
        except ImproperlyConfigured:
            raise
        except Exception as error:  # each storage raises its own
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
    """Load a session that does not exist."""
    yield from _load(engine, engine.id_of(secrets.token_hex(16)), lifetimes)


def _withdraw(
    engine: Engine, session_id: str, pairs: Pairs, lifetimes: Lifetimes, unless: Found | None = None
) -> Operation:
    """Remove the copy of a refused session, if it has one of these pairs and is still ``begun``.

    A copy that has all of `unless`, and a TTL, stays: only the reply of the target was lost.
    """
    with suppress(Exception):  # a session that cannot be loaded is not this copy
        session = yield from _load(engine, session_id, lifetimes)
        if session is None or all(session.get(key) != UNFINISHED for key in pairs):
            return
        if unless is not None and session.ttl_left is not None:
            whole = decode(encode({**unless.data, **pairs_of(session)}))
            if session.as_dict() == whole:
                return
        yield from engine.remove(session_id)


def _load(engine: Engine, session_id: str, lifetimes: Lifetimes) -> Operation:
    """Return a session at the target, with the pairs of its move; ``None`` if there is none, or nobody can read it."""
    try:
        return (yield from engine.load_all(session_id, lifetimes, reserved=True))
    except DecodeError as error:
        engine.log_unreadable(session_id, error)
        return None


def _create(engine: Engine, session_id: str, found: Found, pairs: Pairs) -> Operation:
    session = SessionMap({**pairs, **found.data})  # the pairs first: a part of the copy has to say that it is one
    ttl = math.ceil(found.ttl_left)
    yield from engine.will_create(session_id, session, ttl)
    try:
        created = yield "create", session_id, session, ttl
    except DecodeError:
        return False
    if created is UNABLE:
        raise _cannot_take_sessions(engine, "create")
    return created


def _mark(engine: Engine, session_id: str, pairs: Pairs, ttl: int, value: str | None) -> Operation:
    """Set the pairs to `value`, or remove them; ``False`` if the session is gone. Nothing else of it changes.

    ``apply`` leaves the TTL alone if another request has changed the expiry, so this pretends to know another one.
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
        f"Sessions cannot be moved to {engine.name}: its storage needs create() and apply(), and has no {lacking}(). "
        "Write it, or move the sessions to another engine."
    )
