"""Engines for the tests of the review: storages that keep their index apart from the sessions."""

import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.test import override_settings

from gsession_django import SessionStore, Storage
from gsession_django.core.engine import ENGINES, _former
from tests.support.storages import AsyncStorage, CompleteStorage, PerKeyStorage


class Index:
    """An index apart from the sessions; for a Recorded storage."""

    def __init__(self) -> None:
        super().__init__()
        self.index: dict[str, dict[str, float]] = {}
        self.added: list[tuple[str, str, int]] = []

    def sessions_of(self, user_id: str) -> list[str]:
        now = time.time()
        return [each for each, until in self.index.get(user_id, {}).items() if until > now]

    def add_to_user(self, user_id: str, session_id: str, ttl: int) -> None:
        self.added.append((user_id, session_id, ttl))
        self.index.setdefault(user_id, {})[session_id] = time.time() + ttl

    def remove_from_user(self, user_id: str, session_id: str, ended: bool) -> None:
        if ended:
            self.remove_all(session_id)  # type: ignore[attr-defined]
        self.index.get(user_id, {}).pop(session_id, None)


class Whole(Index, CompleteStorage):
    new = Storage.new


class ByKeys(Whole):
    """Tells a session's pairs one by one."""

    def get_session(self, session_id: str, ttl: int, data: Any = None) -> Any:
        return None if super().get_session(session_id, ttl, data) is None else {}


class ComposedByKeys(Index, PerKeyStorage):
    """Has the eleven methods and the index, and no extensions."""


class Async(Index, AsyncStorage):
    new = Storage.new
    anew = Storage.new  # type: ignore[assignment]

    async def asessions_of(self, user_id: str) -> list[str]:
        return self.sessions_of(user_id)

    async def aadd_to_user(self, user_id: str, session_id: str, ttl: int) -> None:
        self.add_to_user(user_id, session_id, ttl)

    async def aremove_from_user(self, user_id: str, session_id: str, ended: bool) -> None:
        self.remove_from_user(user_id, session_id, ended)


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
