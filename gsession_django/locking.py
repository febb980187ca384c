"""One request of a session at a time: how :func:`gsession_django.decorators.session_lock` holds it."""

import asyncio
import contextlib
import logging
import random
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Final

from django.conf import settings
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from gsession_django.core.driving import UNABLE, Operation
from gsession_django.core.engine import Engine, engine_of
from gsession_django.core.store import SessionStore

logger = logging.getLogger("gsession_django")

LEASE: Final = 15.0
"""Seconds after which a lock is free whose holder has died. A holder renews it three times as often."""
# Seconds between two attempts to take a lock: at first, and at most.
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.25


class Held(Exception):
    """Another request has held the session for as long as this one waits."""


@contextlib.contextmanager
def alone(session: SessionStore, wait: float) -> Iterator[None]:
    """Have a session alone among those that ask for it, and save what was done to it before others get it.

    Args:
        session: the session. One without a key is new, and nobody else has it.
        wait: seconds to wait for another request at most.

    Raises:
        Held: another request had it for all that time.
        SessionInterrupted: the session was ended meanwhile.
    """
    if (lock := _Lock.of(session)) is None:
        yield
        return
    run = lock.engine.run
    for pause in _pauses(wait):
        if run(lock.take()):
            break
        if pause is None:
            raise Held
        time.sleep(pause)
    try:
        with _renewed(lock):
            with _as_interruption():
                if session.modified:
                    session.save()
                if _forget(session) and not session._get_session() and session.session_key is None:
                    raise UpdateError
            yield
            with _as_interruption():
                if session.modified and session.session_key is not None:
                    session.save()
    finally:
        run(lock.free())


@contextlib.asynccontextmanager
async def aalone(session: SessionStore, wait: float) -> AsyncIterator[None]:
    """Do what :func:`alone` does, awaited."""
    if (lock := _Lock.of(session)) is None:
        yield
        return
    run = lock.engine.arun
    for pause in _pauses(wait):
        if await run(lock.take()):
            break
        if pause is None:
            raise Held
        await asyncio.sleep(pause)
    try:
        with _renewed(lock):
            with _as_interruption():
                if session.modified:
                    await session.asave()
                if _forget(session) and not await session._aget_session() and session.session_key is None:
                    raise UpdateError
            yield
            with _as_interruption():
                if session.modified and session.session_key is not None:
                    await session.asave()
    finally:
        await asyncio.shield(run(lock.free()))


class _Lock:
    """The lock of one session, for one holder."""

    def __init__(self, engine: Engine, session_id: str) -> None:
        self.engine = engine
        self._session_id = session_id
        self._token = secrets.token_hex(16)

    @classmethod
    def of(cls, session: SessionStore) -> "_Lock | None":
        if not isinstance(session, SessionStore):
            raise ImproperlyConfigured(
                f"session_lock needs an engine of gsession_django, and SESSION_ENGINE is {settings.SESSION_ENGINE!r}."
            )
        session_id = session.session_id
        return None if session_id is None else cls(engine_of(type(session)), session_id)

    def take(self) -> Operation:
        taken = yield "lock", self._session_id, self._token, LEASE
        if taken is UNABLE:
            raise NotImplementedError(
                f"session_lock needs a storage that has lock() and unlock(), and {self.engine.name} has not. Write "
                "them, or name an engine that has them as SESSION_ENGINE."
            )
        return taken

    def free(self) -> Operation:
        return (yield "unlock", self._session_id, self._token)


def _pauses(wait: float) -> Iterator[float | None]:
    """Yield how long to sleep after each attempt that fails; ``None`` after the last one, when `wait` is over."""
    end, pause = time.monotonic() + wait, _FIRST_PAUSE
    while (left := end - time.monotonic()) > 0:
        yield min(pause * random.uniform(0.5, 1), left)
        pause = min(2 * pause, _LONGEST_PAUSE)
    yield None


def _forget(session: SessionStore) -> bool:
    """Let the session be read anew; return whether it had been read before."""
    try:
        del session._session_cache
    except AttributeError:
        return False
    return True


@contextlib.contextmanager
def _as_interruption() -> Iterator[None]:
    """Raise what Django's middleware raises where a session is gone."""
    try:
        yield
    except UpdateError as error:
        raise SessionInterrupted("The session was ended while the request waited for it, or held it.") from error


@contextlib.contextmanager
def _renewed(lock: _Lock) -> Iterator[None]:
    """Renew a lock in a thread, until the block ends or the process dies."""
    done = threading.Event()

    def renew() -> None:
        try:
            while not done.wait(LEASE / 3):
                try:
                    problem = None if lock.engine.run(lock.take()) else "another request has it"
                    if done.is_set():  # it may have been freed before: in a transaction, the database makes this wait
                        lock.engine.run(lock.free())
                except Exception as error:  # the request goes on, and the next try may succeed
                    problem = f"{type(error).__name__}: {error}"
                if problem is not None:
                    logger.warning("session_lock could not renew the lock of a session: %s.", problem)
        finally:
            connections.close_all()  # the thread has its own, if the sessions are in a database

    thread = threading.Thread(target=renew, name="gsession_django session_lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
