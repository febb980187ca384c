"""What Django asks of a session while ``GSESSION["FALLBACK_ENGINE"]`` is set.

A session that the engine does not have is moved from the fallback on first touch. A session that ends is removed at the
fallback first. Otherwise it would come back from there.
"""

from collections.abc import Mapping
from functools import partial

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from gsession_django import operations
from gsession_django.engine import Engine, Operation
from gsession_django.moving import steps
from gsession_django.moving.refused import cure, refused_types
from gsession_django.moving.source import Found, Source
from gsession_django.operations import Age
from gsession_django.serializers import DecodeError
from gsession_django.session_map import SessionMap
from gsession_django.transactions import Transaction, blocks_of_tests, call_first


def load(engine: Engine, source: Source, session_key: str, session_id: str, age: Age) -> Operation:
    """Return what is stored, moved here if it was not, as a SessionMap; ``None`` if neither engine has it.

    Raises ``DecodeError`` if one has it and it cannot be read, and ``ImproperlyConfigured`` if ``SESSION_SERIALIZER``
    cannot take what it holds, or the engine refuses it: the visitor, who would be signed out otherwise, keeps the
    cookie and the session.
    """
    ref = source.ref_of(session_key)
    looked = False
    ended: steps.Pairs | None = None
    while True:
        session: SessionMap | None = yield from operations.load(engine, session_id, age, moving=True)
        if session is not None and session.partial:
            session = yield from operations.load_all(engine, session_id, age, moving=True)
        if session is not None:
            if not (pairs := steps.pairs_of(session)):
                return session
            if pairs == ended:  # as it was when this transaction began, under REPEATABLE READ
                return None
            outcomes = yield from steps.finish(engine, source, {ref: (session_id, pairs)}, age)
            _check_taken(engine, source, outcomes[ref])
            ended = pairs if outcomes[ref] is steps.Outcome.ENDED else None
        elif looked:
            # It was moved between the first look here and the one there, or there is none.
            return None
        else:
            looked = True
            answer: Mapping[str, Found | None] = yield partial(source.read, [ref])
            if (found := answer.get(ref)) is not None:
                if types := refused_types(found.data):
                    raise ImproperlyConfigured(
                        f"A session cannot be moved from {source.name}: SESSION_SERIALIZER = "
                        f"{settings.SESSION_SERIALIZER!r} cannot take what it holds ({', '.join(types)}). "
                        f"{cure(types)} The session stays there until then."
                    )
                outcomes = yield from steps.move(engine, source, {ref: (session_id, found)}, age)
                _check_taken(engine, source, outcomes[ref])
            elif ref in answer:
                raise DecodeError(
                    f"it is not moved from {source.name}, where it cannot be read. See that SECRET_KEY, or "
                    "SECRET_KEY_FALLBACKS, and SESSION_SERIALIZER are those it was written with."
                )


def _check_taken(engine: Engine, source: Source, outcome: steps.Outcome | steps.Refused) -> None:
    if isinstance(outcome, steps.Refused):
        raise ImproperlyConfigured(
            f"A session cannot be moved from {source.name}, as {engine.name} refuses it: {outcome.reason}. The session "
            "stays there until the engine takes it."
        )


def remove(engine: Engine, source: Source, session_key: str, session_id: str) -> Operation:
    """Remove a session at the fallback, which is to be removed here next."""
    yield partial(_remove, engine, source, source.ref_of(session_key), session_id)


def _remove(engine: Engine, source: Source, ref: str, session_id: str) -> None:
    source.remove([ref])
    # In a transaction others see it there until that is committed, and may move it here once more till then.
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block and blocks_of_tests(connection) < len(connection.atomic_blocks):
            call_first(connection, _Removal(engine, session_id))


class _Removal:
    """Removes a session here once more, after the commit of the transaction in which it was removed at the fallback."""

    def __init__(self, engine: Engine, session_id: str) -> None:
        self.of = engine, session_id
        # Whether the key was created here since, and what that is part of.
        self.created = False
        self.creation: Transaction | None = None

    def __call__(self) -> None:
        if not self.created or (self.creation is not None and self.creation.rolled_back):
            engine, session_id = self.of
            engine.run(operations.remove(engine, session_id))


def created(engine: Engine, session_id: str) -> Operation:
    """Keep a session that was just created here, if one of the same key was removed in the same transaction."""
    yield partial(_created, engine, session_id)


def _created(engine: Engine, session_id: str) -> None:
    creation = engine.storage.transaction()
    for connection in connections.all(initialized_only=True):
        for _, callback, *_ in connection.run_on_commit:
            if isinstance(callback, _Removal) and callback.of == (engine, session_id):
                callback.created, callback.creation = True, creation


def taken(source: Source, session_key: str) -> Operation:
    """Return whether the fallback has a session of this key."""
    ref = source.ref_of(session_key)
    return ref in (yield partial(source.present, [ref]))
