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
"""

import math
import secrets
from collections.abc import Mapping
from enum import Enum, auto
from functools import partial
from typing import Final

from django.core.exceptions import ImproperlyConfigured

from gsession_django import operations
from gsession_django.engine import UNABLE, Engine, Operation
from gsession_django.moving.source import Found, Source
from gsession_django.operations import BEGUN, MOVING_KEY, Age
from gsession_django.serializers import DecodeError, decode, encode
from gsession_django.session_map import EXPIRY_KEY, SessionMap

CERTAIN: Final = "certain"
"""The counterpart of ``BEGUN``: the session is at the target, whatever becomes of it at the source."""

Pairs = Mapping[str, str]
"""The pairs of a session at the target that say how far its move has come; none when it is complete."""

# Equal to no expiry that a session can have: see _mark().
_NO_EXPIRY: Final = "unknown"
# A second one finds the id free that was taken; if it is still both taken and not to be loaded, nobody can read it.
_ATTEMPTS: Final = 3


class Outcome(Enum):
    """What became of a session that was to be moved."""

    MOVED = auto()
    """It is at the target, and complete."""
    SKIPPED = auto()
    """The target has another session of its own under this id, which was left as it is, and so was the source's."""
    ENDED = auto()
    """It ended meanwhile, at the source or at the target."""


def move(engine: Engine, source: Source, batch: Mapping[str, tuple[str, Found]], age: Age) -> Operation:
    """Move sessions. For all of them it is one call of the source's ``present`` and one of its ``remove``.

    What raises in between, and what kills the process, leaves a state that the next move, or :func:`finish`, completes.

    Args:
        engine: the target. Its storage must have ``create`` and ``apply``, or this is ``ImproperlyConfigured``.
        source: where the sessions are.
        batch: for each of the source's refs the session's id at the target, and what was read at the source.
        age: as for :func:`gsession_django.operations.load`.

    Returns:
        An :class:`Outcome` for each ref.
    """
    moving, others = yield from _begin(engine, batch, age)
    outcomes = yield from finish(engine, source, moving, age)
    # Where the source has none any more, it is the same session, and in use since somebody else has moved it.
    differ = (yield partial(source.present, others)) if others else set()
    return outcomes | {ref: Outcome.SKIPPED if ref in differ else Outcome.MOVED for ref in others}


def copy(engine: Engine, source: Source, batch: Mapping[str, tuple[str, Found]], age: Age) -> Operation:
    """Copy sessions: like :func:`move`, but for steps 4 and 5, so that the source stays as it is."""
    moving, others = yield from _begin(engine, batch, age)
    outcomes = yield from finish(engine, source, moving, age, keep=True)
    return outcomes | dict.fromkeys(others, Outcome.SKIPPED)


def foresee(engine: Engine, batch: Mapping[str, tuple[str, Found]], age: Age) -> Operation:
    """Return the outcome for each ref that :func:`move` or :func:`copy` would have now. Nothing is changed."""
    outcomes = {}
    for ref, (session_id, found) in batch.items():
        session = yield from _load(engine, session_id, age)
        skipped = session is not None and _is_another(session, found)
        outcomes[ref] = Outcome.SKIPPED if skipped else Outcome.MOVED
    return outcomes


def finish(
    engine: Engine, source: Source, moving: Mapping[str, tuple[str, Pairs]], age: Age, keep: bool = False
) -> Operation:
    """Take over moves, from step 3 on: what :func:`move` does with sessions that are at the target.

    Args:
        engine, source, age: as for :func:`move`.
        moving: for each ref the session's id at the target, and its pairs there: see :func:`pairs_of`.
        keep: whether the source stays as it is.

    Returns:
        An :class:`Outcome` for each ref.
    """
    outcomes = dict.fromkeys(moving, Outcome.ENDED)
    begun = [ref for ref, (_, pairs) in moving.items() if BEGUN in pairs.values()]
    there: set[str] = (yield partial(source.present, begun)) if begun else set()
    staying: dict[str, tuple[str, Pairs]] = {}
    for ref, (session_id, pairs) in moving.items():
        if ref in begun and ref not in there:
            session = yield from _load(engine, session_id, age)
            if session is None:
                continue
            pairs = pairs_of(session)
            if BEGUN in pairs.values():
                yield from operations.remove(engine, session_id)
                continue
        elif ref in begun and not keep and not (yield from _mark(engine, session_id, pairs, age, CERTAIN)):
            continue
        staying[ref] = session_id, pairs
    if staying and not keep:
        yield partial(source.remove, list(staying))
    for ref, (session_id, pairs) in staying.items():
        if not pairs or (yield from _mark(engine, session_id, pairs, age, None)):
            outcomes[ref] = Outcome.MOVED
    return outcomes


def pairs_of(session: SessionMap) -> Pairs:
    """Return the pairs that say how far the move of a session has come that was loaded with ``moving``."""
    return {key: session.get(key) for key in session.held(MOVING_KEY)}


def _is_another(session: SessionMap, found: Found) -> bool:
    """Whether the target has a session of its own, rather than one that is being moved, or a copy of what was read."""
    return not pairs_of(session) and session.as_dict() != decode(encode(found.data))


def _begin(engine: Engine, batch: Mapping[str, tuple[str, Found]], age: Age) -> Operation:
    """Take step 2. Return those to go on with, for :func:`finish`, and the refs whose id another session has."""
    moving: dict[str, tuple[str, Pairs]] = {}
    others: list[str] = []
    for ref, (session_id, found) in batch.items():
        for _ in range(_ATTEMPTS):
            pairs: Pairs = {MOVING_KEY + secrets.token_hex(8): BEGUN}
            if (yield from _create(engine, session_id, found, pairs)):
                moving[ref] = session_id, pairs
                break
            session = yield from _load(engine, session_id, age)
            if session is not None:
                if _is_another(session, found):
                    others.append(ref)
                else:
                    moving[ref] = session_id, pairs_of(session)
                break
        else:
            others.append(ref)
    return moving, others


def _load(engine: Engine, session_id: str, age: Age) -> Operation:
    """Return a session at the target, with the pairs that say how far its move has come; ``None`` if none can be read.

    A session that cannot be read is left alone, and keeps its id.
    """
    try:
        return (yield from operations.load_all(engine, session_id, age, moving=True))
    except DecodeError as error:
        operations.log_unreadable(engine, session_id, error)
        return None


def _create(engine: Engine, session_id: str, found: Found, pairs: Pairs) -> Operation:
    session = SessionMap({**found.data, **pairs})
    try:
        created = yield "create", session_id, session, math.ceil(found.ttl_left)
    except DecodeError:
        return False
    if created is UNABLE:
        raise _cannot_take_sessions(engine, "create")
    return created


def _mark(engine: Engine, session_id: str, pairs: Pairs, age: Age, value: str | None) -> Operation:
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
        applied = yield "apply", session_id, session, age()
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
