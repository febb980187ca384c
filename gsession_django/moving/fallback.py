"""The engine while ``GSESSION["FALLBACK_ENGINE"]`` is set.

It moves a session from the fallback on first touch. It ends a session at the fallback first: otherwise the session
would come back from there.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from django.conf import settings
from django.contrib.sessions.backends.base import UpdateError
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from gsession_django.core.conf import conf
from gsession_django.core.driving import Operation
from gsession_django.core.engine import Engine
from gsession_django.core.reading import Lifetimes
from gsession_django.core.session_map import SessionMap
from gsession_django.core.store import SessionStore
from gsession_django.core.transactions import Transaction, blocks_of_tests, call_first
from gsession_django.moving import ended_users, steps
from gsession_django.moving.choice import check_places, source_of
from gsession_django.moving.refused import cure, refused_types
from gsession_django.moving.source import Found, Source
from gsession_django.serializers import DecodeError
from gsession_django.users.engine import IndexedEngine


class FallbackEngine(IndexedEngine):
    """The engine that ``SESSION_ENGINE`` names, with a second one to move sessions from.

    Attributes:
        fallback: the second one.
    """

    __slots__ = ("fallback",)

    def __init__(self, store: type[SessionStore]) -> None:
        super().__init__(store)
        self.fallback: Source = _source_for(store)
        self.takes_turns = False  # the one thread also calls the fallback

    def find(self, session_key: str, session_id: str, lifetimes: Lifetimes) -> Operation:
        """Return a session as a SessionMap, after moving it here if needed; ``None`` if neither engine has it.

        Raises ``DecodeError`` if the session cannot be read. Raises ``ImproperlyConfigured`` if ``SESSION_SERIALIZER``
        cannot take its values, or this engine refuses it: then the visitor keeps the cookie and the session.
        """
        source = self.fallback
        ref = source.ref_of(session_key)
        looked = False
        ended: steps.Pairs | None = None
        while True:
            session: SessionMap | None = yield from self.load(session_id, lifetimes, reserved=True)
            if session is not None and session.partial:
                session = yield from self.load_all(session_id, lifetimes, reserved=True)
            if session is not None:
                if not (pairs := steps.pairs_of(session)):
                    return session
                if pairs == ended:  # under REPEATABLE READ a transaction still sees it
                    return None
                outcomes = yield from steps.finish(self, source, {ref: (session_id, pairs)}, lifetimes)
                _check_taken(self, source, outcomes[ref])
                ended = pairs if outcomes[ref] is steps.Outcome.ENDED else None
            elif looked:
                # Here again after the fallback: another request may have moved the session in between.
                return None
            else:
                looked = True
                answer: Mapping[str, Found | None] = yield partial(source.read, [ref])
                if (found := answer.get(ref)) is not None:
                    if types := refused_types(found.data):
                        raise ImproperlyConfigured(
                            f"A session cannot be moved from {source.name}: SESSION_SERIALIZER = "
                            f"{settings.SESSION_SERIALIZER!r} cannot take its values ({', '.join(types)}). "
                            f"{cure(types)} Until then the session stays there."
                        )
                    outcomes = yield from steps.move(self, source, {ref: (session_id, found)}, lifetimes)
                    _check_taken(self, source, outcomes[ref])
                elif ref in answer:
                    raise DecodeError(
                        f"it is not moved from {source.name}, where it cannot be read. Put the SECRET_KEY that "
                        "signed it into SECRET_KEY_FALLBACKS, and use the SESSION_SERIALIZER that wrote it."
                    )

    def has(self, session_key: str, session_id: str, lifetimes: Lifetimes) -> Operation:
        try:
            return (yield from self.find(session_key, session_id, lifetimes)) is not None
        except DecodeError:
            return True

    def write(
        self, session_key: str, session_id: str, lifetimes: Lifetimes, operation: Callable[[], Operation]
    ) -> Operation:
        there = yield from operation()
        # A rollback may have undone the move.
        if not there and (yield from self.find(session_key, session_id, lifetimes)) is not None:
            there = yield from operation()
        return there

    def emptied(self, session_key: str, session_id: str, lifetimes: Lifetimes, session: SessionMap) -> Operation:
        """Return a cleared session as one whose keys were all removed, after moving it here if needed.

        So the save keeps the pairs that say how far a move has come. Raises ``UpdateError`` if the session is gone.
        """
        try:
            stored: SessionMap | None = yield from self.find(session_key, session_id, lifetimes)
        except DecodeError:
            return session
        if stored is None:
            raise UpdateError
        if stored.lacks(None):
            yield from self.fetch(session_id, stored, None)
        data = session.as_dict()
        for name in stored.as_dict():
            del stored[name]
        stored.update(data)
        return stored

    def is_taken(self, session_key: str, session_id: str, lifetimes: Lifetimes) -> Operation:
        ref = self.fallback.ref_of(session_key)
        return ref in (yield partial(self.fallback.present, [ref]))

    def was_created(self, session_key: str, session_id: str) -> Operation:
        """Keep a session that was just created, if this transaction has removed another one of the same key."""
        yield partial(_keep, self, session_id)

    def end_elsewhere(self, user_id: str) -> Operation:
        """Let no session of the user be moved here any more."""
        return ended_users.record(self, user_id)

    def leave(self, session_key: str, session_id: str, lifetimes: Lifetimes, unseen: bool = False) -> Operation:
        """Remove a session at the fallback, before it is removed here; if `unseen`, move it here first."""
        if unseen:
            with suppress(DecodeError):
                yield from self.find(session_key, session_id, lifetimes)
        yield partial(_remove, self, self.fallback, self.fallback.ref_of(session_key), session_id)


def _source_for(store: type[SessionStore]) -> Source:
    source = source_of(str(conf().fallback_engine))
    check_places('GSESSION["FALLBACK_ENGINE"]', source, settings.SESSION_ENGINE, store)
    return source


def _check_taken(engine: Engine, source: Source, outcome: steps.Outcome | steps.Refused) -> None:
    if isinstance(outcome, steps.Refused):
        raise ImproperlyConfigured(
            f"A session cannot be moved from {source.name}: {engine.name} refuses it: {outcome.reason}. Until the "
            "engine takes it, the session stays there."
        )


def _remove(engine: Engine, source: Source, ref: str, session_id: str) -> None:
    source.remove([ref])
    # Until a transaction is committed, others still see the session at the fallback, and may move it here again.
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block and blocks_of_tests(connection) < len(connection.atomic_blocks):
            call_first(connection, _Removal(engine, session_id))


class _Removal:
    """Removes a session here once more, after the commit of the transaction that removed it at the fallback."""

    def __init__(self, engine: Engine, session_id: str) -> None:
        self.of = engine, session_id
        # Whether the key was created here since, and in which transaction.
        self.created = False
        self.creation: Transaction | None = None

    def __call__(self) -> None:
        if not self.created or (self.creation is not None and self.creation.rolled_back):
            engine, session_id = self.of
            engine.run(engine.remove(session_id))


def _keep(engine: Engine, session_id: str) -> None:
    creation = engine.storage.transaction()
    for connection in connections.all(initialized_only=True):
        for _, callback, *_ in connection.run_on_commit:
            if isinstance(callback, _Removal) and callback.of == (engine, session_id):
                callback.created, callback.creation = True, creation
