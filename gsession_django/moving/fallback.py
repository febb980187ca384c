"""The engine while ``GSESSION["FALLBACK_ENGINE"]`` is set.

A session that the engine does not have is moved from the fallback on first touch. A session that ends is removed at the
fallback first. Otherwise it would come back from there.
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
from gsession_django.moving import steps
from gsession_django.moving.choice import source_of
from gsession_django.moving.our_engines import OurSource
from gsession_django.moving.refused import cure, refused_types
from gsession_django.moving.source import Found, Source
from gsession_django.serializers import DecodeError
from gsession_django.users.engine import IndexedEngine


class FallbackEngine(IndexedEngine):
    """The engine that ``SESSION_ENGINE`` names, beside one that sessions are moved from.

    Attributes:
        fallback: what sessions are moved from.
    """

    __slots__ = ("fallback",)

    def __init__(self, store: type[SessionStore]) -> None:
        super().__init__(store)
        self.fallback: Source = _source_for(store)
        self.takes_turns = False  # the calls of the fallback are made in the one thread, too

    def find(self, session_key: str, session_id: str, lifetimes: Lifetimes) -> Operation:
        """Return what is stored, moved here if it was not, as a SessionMap; ``None`` if neither engine has it.

        Raises ``DecodeError`` if one has it and it cannot be read, and ``ImproperlyConfigured`` if
        ``SESSION_SERIALIZER`` cannot take what it holds, or the engine refuses it: the visitor, who would be signed out
        otherwise, keeps the cookie and the session.
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
                if pairs == ended:  # as it was when this transaction began, under REPEATABLE READ
                    return None
                outcomes = yield from steps.finish(self, source, {ref: (session_id, pairs)}, lifetimes)
                _check_taken(self, source, outcomes[ref])
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
                    outcomes = yield from steps.move(self, source, {ref: (session_id, found)}, lifetimes)
                    _check_taken(self, source, outcomes[ref])
                elif ref in answer:
                    raise DecodeError(
                        f"it is not moved from {source.name}, where it cannot be read. See that SECRET_KEY, or "
                        "SECRET_KEY_FALLBACKS, and SESSION_SERIALIZER are those it was written with."
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
        # It has to be moved here again, if the transaction in which it was moved was rolled back.
        if not there and (yield from self.find(session_key, session_id, lifetimes)) is not None:
            there = yield from operation()
        return there

    def emptied(self, session_key: str, session_id: str, lifetimes: Lifetimes, session: SessionMap) -> Operation:
        """Return a session that was cleared as one whose keys were all removed.

        It may be that it has to be moved first. And what says how far a move has come must not go with the rest.
        Raises ``UpdateError`` if there is none.
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
        """Keep a session that was just created here, if one of the same key was removed in the same transaction."""
        yield partial(_keep, self, session_id)

    def leave(self, session_key: str, session_id: str, lifetimes: Lifetimes, unseen: bool = False) -> Operation:
        """Remove a session at the fallback, which is to be removed here next; if `unseen`, after it was moved here."""
        if unseen:
            with suppress(DecodeError):
                yield from self.find(session_key, session_id, lifetimes)
        yield partial(_remove, self, self.fallback, self.fallback.ref_of(session_key), session_id)


def _source_for(store: type[SessionStore]) -> Source:
    name = conf().fallback_engine
    if name == settings.SESSION_ENGINE:
        raise ImproperlyConfigured(f'GSESSION["FALLBACK_ENGINE"] and SESSION_ENGINE name the same engine, {name!r}.')
    source = source_of(str(name))
    if isinstance(source, OurSource) and source.is_place_of(store, conf().engines):
        raise ImproperlyConfigured(
            f'GSESSION["FALLBACK_ENGINE"] = {name!r} and SESSION_ENGINE = {settings.SESSION_ENGINE!r} keep their '
            "sessions in one and the same place, so that there is nothing to move. Leave FALLBACK_ENGINE out."
        )
    return source


def _check_taken(engine: Engine, source: Source, outcome: steps.Outcome | steps.Refused) -> None:
    if isinstance(outcome, steps.Refused):
        raise ImproperlyConfigured(
            f"A session cannot be moved from {source.name}, as {engine.name} refuses it: {outcome.reason}. The session "
            "stays there until the engine takes it."
        )


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
            engine.run(engine.remove(session_id))


def _keep(engine: Engine, session_id: str) -> None:
    creation = engine.storage.transaction()
    for connection in connections.all(initialized_only=True):
        for _, callback, *_ in connection.run_on_commit:
            if isinstance(callback, _Removal) and callback.of == (engine, session_id):
                callback.created, callback.creation = True, creation
