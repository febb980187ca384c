"""Engines for test_review_lock: storages that lock."""

import asyncio
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.test import override_settings

from gsession_django import SessionStore, Storage
from gsession_django.core.engine import ENGINES, _former
from tests.support.storages import AsyncStorage, CompleteStorage


class Index:
    """Locks, for a Recorded storage."""

    def __init__(self) -> None:
        super().__init__()
        self.locks: dict[str, tuple[str, float]] = {}
        self.mutex = threading.Lock()

    def lock(self, session_id: str, token: str, seconds: float) -> bool:
        with self.mutex:
            holder, until = self.locks.get(session_id, (token, 0.0))
            if holder != token and until > time.monotonic():
                return False
            self.locks[session_id] = token, time.monotonic() + seconds
            return True

    def unlock(self, session_id: str, token: str) -> None:
        with self.mutex:
            if self.locks.get(session_id, ("", 0.0))[0] == token:
                del self.locks[session_id]


class Whole(Index, CompleteStorage):
    new = Storage.new


class Async(Index, AsyncStorage):
    new = Storage.new
    anew = Storage.new  # type: ignore[assignment]

    async def alock(self, session_id: str, token: str, seconds: float) -> bool:
        taken = self.lock(session_id, token, seconds)
        await asyncio.sleep(0)  # the reply is on its way
        return taken

    async def aunlock(self, session_id: str, token: str) -> None:
        self.unlock(session_id, token)


class AsyncByKeys(Async):
    def get_session(self, session_id: str, ttl: int, data: Any = None) -> Any:
        return None if super().get_session(session_id, ttl, data) is None else {}

    async def aget_session(self, session_id: str, ttl: int, data: Any = None) -> Any:
        return self.twin(self.get_session(session_id, ttl, data))


@contextmanager
def engine_with(storage: type[Storage], /, gsession: Any = None, **values: Any) -> Iterator[type[SessionStore]]:
    """Let SESSION_ENGINE name an engine with this storage."""
    module = types.ModuleType(f"tests.users.review_engine_of_{storage.__name__.lower()}")
    store = type("SessionStore", (SessionStore,), {"storage_class": storage, "__module__": module.__name__})
    module.SessionStore = store  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        with override_settings(SESSION_ENGINE=module.__name__, GSESSION=gsession or {}, **values):
            yield store
    finally:
        del sys.modules[module.__name__]
        ENGINES.pop(store, None)
        _former.pop(store, None)
