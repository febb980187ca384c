"""One request of a session at a time: how :func:`gsession_django.decorators.session_lock` holds it."""

import asyncio
import contextlib
import contextvars
import logging
import random
import secrets
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from functools import partial
from typing import Any, Final, TypeVar
from weakref import WeakSet

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from gsession_django.core.driving import UNABLE, Operation
from gsession_django.core.engine import engine_of
from gsession_django.core.storage import StorageUnavailable
from gsession_django.core.store import SessionStore
from gsession_django.core.transactions import blocks_of_tests

logger = logging.getLogger("gsession_django")

LEASE: Final = 15.0
"""Seconds after which a lock is free whose holder has died. A holder renews it three times as often."""
# Seconds between two attempts to take a lock: at first, and at most.
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.25

# The sessions of the requests that have their turn. A request that asks again goes on.
_having_a_turn: "Final[WeakSet[SessionStore]]" = WeakSet()

T = TypeVar("T")


class Held(Exception):
    """Another request has held the session for as long as this one waits."""


def has_its_turn(session: SessionStore) -> bool:
    """Return whether this request is within :func:`alone` or :func:`aalone` already."""
    return session in _having_a_turn


@contextlib.contextmanager
def alone(session: SessionStore, wait: float) -> Iterator[None]:
    """Have a session alone among those that ask for it. It is read anew, as the one before has left it.

    Args:
        session: the session. One without a key is new: nobody else has it, and there is no lock.
        wait: seconds to wait for another request at most.

    Raises:
        Held: another request had it for all that time.
        SessionInterrupted: the session was ended meanwhile.
        StorageUnavailable: the storage cannot tell who has the lock.
        RuntimeError: a transaction of the site is open, so others would get the session before the commit.
    """
    if (lock := _Lock.of(session)) is None:
        with _its_turn(session):
            yield
        return
    try:
        for pause in _pauses(wait):
            if session._run(lock.take()):
                break
            if pause is None:
                raise Held
            time.sleep(pause)
    except Exception:
        raise
    except BaseException:  # the worker is told to stop, perhaps while the reply was on its way
        lock.let_go()
        raise
    try:
        lock.keep()
        save(session)
        if _forget(session):
            session._get_session()
            _check_that_it_is_there(session)
        with _its_turn(session):
            yield
    finally:
        lock.let_go()


@contextlib.asynccontextmanager
async def aalone(session: SessionStore, wait: float) -> AsyncIterator[None]:
    """Do what :func:`alone` does, awaited."""
    if (lock := _Lock.of(session)) is None:
        with _its_turn(session):
            yield
        return
    try:
        for pause in _pauses(wait):
            if await _to_its_end(session._arun(lock.take())):
                break
            if pause is None:
                raise Held
            await asyncio.sleep(pause)
    except Exception:
        raise
    except BaseException:  # the visitor is gone, perhaps while the reply was on its way
        await _to_its_end(lock.alet_go())
        raise
    try:
        lock.keep()
        await asave(session)
        if _forget(session):
            await session._aget_session()
            _check_that_it_is_there(session)
        with _its_turn(session):
            yield
    finally:
        await _to_its_end(lock.alet_go())


def save(session: SessionStore) -> None:
    """Save what was changed, if there is anything. The middleware sends the cookie still, as it does without a lock."""
    if session.modified and session.session_key is not None:
        with _as_interruption():
            session.save()
        session.modified = True


async def asave(session: SessionStore) -> None:
    """Do what :func:`save` does, awaited."""
    if session.modified and session.session_key is not None:
        with _as_interruption():
            await session.asave()
        session.modified = True


class _Lock:
    """The lock of one session, for one holder."""

    def __init__(self, session: SessionStore, session_id: str) -> None:
        self._engine = engine_of(type(session))
        self._session_id = session_id
        self._token = secrets.token_hex(16)
        self._done = threading.Event()
        self._renewing: threading.Thread | None = None
        self._may_be_renewed = True

    @classmethod
    def of(cls, session: SessionStore) -> "_Lock | None":
        if not isinstance(session, SessionStore):
            raise ImproperlyConfigured(
                f"session_lock needs an engine of gsession_django, and SESSION_ENGINE is {settings.SESSION_ENGINE!r}."
            )
        return None if (session_id := session.session_id) is None else cls(session, session_id)

    def take(self) -> Operation:
        """Take the lock, or renew it. Return ``False`` if another request has it."""
        taken = yield "lock", self._session_id, self._token, LEASE
        if taken is UNABLE:
            raise NotImplementedError(
                f"session_lock needs a storage that has lock() and unlock(), and {self._engine.name} has not. Write "
                "them, or name an engine that has them as SESSION_ENGINE."
            )
        blocks = [connection for connection in connections.all(initialized_only=True) if connection.in_atomic_block]
        for connection in blocks:
            if len(connection.atomic_blocks) > blocks_of_tests(connection):
                yield from self._refuse(f"an atomic block of the database {connection.alias!r} is open")
        if self._engine.storage.transaction() is not None:
            yield from self._refuse("what the storage writes is part of a transaction")
        self._may_be_renewed = not blocks  # what a TestCase has locked, another connection has to wait for
        return taken

    def _refuse(self, why: str) -> Operation:
        yield "unlock", self._session_id, self._token
        raise RuntimeError(
            f"session_lock has to begin outside of transactions, and {why}: others would get the session before the "
            "commit. Put session_lock above transaction.atomic. With ATOMIC_REQUESTS, decorate the view that the URL "
            "names; of a class-based view that is dispatch()."
        )

    def keep(self) -> None:
        """Renew the lock in a thread, until it is let go or the process dies."""
        if self._may_be_renewed:
            renew = partial(contextvars.copy_context().run, self._renew)  # a tenant's prefix may depend on the context
            self._renewing = threading.Thread(target=renew, name="gsession_django session_lock", daemon=True)
            self._renewing.start()

    def _renew(self) -> None:
        try:
            while not self._done.wait(LEASE / 3):
                try:
                    problem = None if self._engine.run(self.take()) else "another request has it"
                except Exception as error:  # the request goes on, and the next try may succeed
                    problem = f"{type(error).__name__}: {error}"
                if problem is not None:
                    logger.warning("session_lock could not renew the lock of a session: %s.", problem)
        finally:
            connections.close_all()  # the thread has its own, if the sessions are in a database

    def let_go(self) -> None:
        """Free the lock, once nothing renews it any more."""
        self._done.set()
        if self._renewing is not None:
            self._renewing.join()
        self._engine.run(self._free())

    async def alet_go(self) -> None:
        self._done.set()
        if self._renewing is not None:
            await sync_to_async(self._renewing.join, thread_sensitive=False)()
        await self._engine.arun(self._free())

    def _free(self) -> Operation:
        try:
            yield "unlock", self._session_id, self._token
        except StorageUnavailable as error:  # the view has its answer, or its error
            logger.warning("session_lock could not free the lock of a session, which is free in %g s: %s", LEASE, error)


@contextlib.contextmanager
def _its_turn(session: SessionStore) -> Iterator[None]:
    _having_a_turn.add(session)
    try:
        yield
    finally:
        _having_a_turn.discard(session)


def _pauses(wait: float) -> Iterator[float | None]:
    """Yield how long to sleep after each attempt that fails; ``None`` after the last one, when `wait` is over."""
    end, pause = time.monotonic() + wait, _FIRST_PAUSE
    while (left := end - time.monotonic()) > 0:
        yield min(pause * random.uniform(0.5, 1), left)
        pause = min(2 * pause, _LONGEST_PAUSE)
    yield None


async def _to_its_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await to the end, even if the request is cancelled meanwhile, and be cancelled then.

    A command that nobody waits for may still reach the storage, behind a later one.
    """
    task = asyncio.ensure_future(coroutine)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        raise


def _forget(session: SessionStore) -> bool:
    """Let the session be read anew; return whether it had been read before."""
    try:
        del session._session_cache
    except AttributeError:
        return False
    return True


def _check_that_it_is_there(session: SessionStore) -> None:
    if session.session_key is None:
        with _as_interruption():
            raise UpdateError


@contextlib.contextmanager
def _as_interruption() -> Iterator[None]:
    """Raise what Django's middleware raises where a session is gone."""
    try:
        yield
    except UpdateError as error:
        raise SessionInterrupted("The session was ended while the request waited for it, or held it.") from error
