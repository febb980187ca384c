"""Sites whose sessions are on a storage with an index beside them: by whole sessions, by keys, composed and async."""

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.test import override_settings

from gsession_django import SessionStore
from gsession_django.core.engine import ENGINES, _former
from tests.support.storages import AsyncStorage, Index, IndexedStorage, PerKeyStorage


class ByKeys(IndexedStorage):
    """Is asked for a session's pairs one by one."""

    def get_session(self, session_id: str, ttl: int, data: Any = None) -> Any:
        return PerKeyStorage.get_session(self, session_id, ttl, data)


class Composed(Index, PerKeyStorage):
    """Has the eleven methods and the index, and none of the extensions."""


class AsyncIndexed(Index, AsyncStorage):
    """Has native twins, those of the index too."""

    async def asessions_of(self, user_id: str) -> list[str]:
        return self.twin(self.sessions_of(user_id))

    async def aadd_to_user(self, user_id: str, session_id: str, ttl: int) -> None:
        self.add_to_user(user_id, session_id, ttl)
        self.twin(None)

    async def aremove_from_user(self, user_id: str, session_id: str, ended: bool) -> None:
        self.remove_from_user(user_id, session_id, ended)
        self.twin(None)

    async def alock(self, session_id: str, token: str, seconds: float) -> bool:
        return self.twin(self.lock(session_id, token, seconds))

    async def aunlock(self, session_id: str, token: str) -> None:
        self.unlock(session_id, token)
        self.twin(None)


@contextmanager
def engine_on(storage: type[Index], **values: Any) -> Iterator[type[SessionStore]]:
    """Let ``SESSION_ENGINE`` name a new engine on this storage, and yield its SessionStore.

    Args:
        storage: the storage's class.
        values: other settings.
    """
    module = types.ModuleType(f"tests.engine_on_{storage.__name__.lower()}")
    store = type("SessionStore", (SessionStore,), {"storage_class": storage, "__module__": module.__name__})
    vars(module)["SessionStore"] = store
    sys.modules[module.__name__] = module
    try:
        with override_settings(SESSION_ENGINE=module.__name__, **{"GSESSION": {}, **values}):
            yield store
    finally:
        del sys.modules[module.__name__]
        ENGINES.pop(store, None)
        _former.pop(store, None)
