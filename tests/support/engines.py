"""The engines under test, each with its own medium, and the actions of their visitors."""

import asyncio
import hashlib
import os
import random
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connections
from django.test.utils import override_settings

from gsession_django import SessionStore
from gsession_django.backends import file, memory
from tests.support import databases
from tests.support.redis_servers import settings_for, shared

SHARED = ["file", *databases.KINDS]
"""The engines that several processes can share. The database engine is there once for each kind of database."""
ENGINES = ["memory", *SHARED]
EACH_ENGINE = ["memory", "file", "sqlite", "redis", "redis_hash"]
"""Each engine of the package, once: for tests that do not depend on the kind of database."""
_MODULES = {"memory": memory, "file": file}


@contextmanager
def engine(name: str, folder: Path | str, **options: Any) -> Iterator[type[SessionStore]]:
    """Yield the SessionStore of a new and empty engine with these options."""
    if name in ("redis", "redis_hash"):
        module_name = f"gsession_django.backends.{name}"
        prefix = f"{random.getrandbits(64):x}:"
        with override_settings(**settings_for(module_name, shared().url(), **{"prefix": prefix, **options})):
            yield import_module(module_name).SessionStore
        return
    if name in databases.KINDS:
        with databases.database(name) as alias, _on_database(alias, **options) as store_class:
            yield store_class
        return
    module = _MODULES[name]
    with override_settings(
        SESSION_ENGINE=module.__name__,
        SESSION_FILE_PATH=os.fspath(folder),
        GSESSION={"ENGINES": {module.__name__: options}},
    ):
        if name == "memory":
            empty(module.SessionStore)
        yield module.SessionStore


@contextmanager
def _on_database(alias: str, **options: Any) -> Iterator[type[SessionStore]]:
    with override_settings(**databases.options_for(alias, **options)):
        yield import_module(databases.ENGINE).SessionStore


def empty(store_class: type[SessionStore]) -> None:
    """Remove all sessions."""
    storage = store_class.get_storage()
    for session_id in list(storage.ids()):
        storage.remove_all(session_id)


@dataclass(frozen=True)
class Place:
    """The current engine of this process, for use in another process."""

    settings: Mapping[str, Any]
    databases: Mapping[str, Any]

    @classmethod
    def here(cls) -> "Place":
        names = ("SESSION_ENGINE", "SESSION_FILE_PATH", "SESSION_CACHE_ALIAS", "CACHES", "GSESSION")
        values = {name: getattr(settings, name) for name in names}
        alias = settings.GSESSION["ENGINES"][settings.SESSION_ENGINE].get("using")
        return cls(values, {} if alias is None else {alias: connections.settings[alias]})

    @contextmanager
    def opened(self) -> Iterator[type[SessionStore]]:
        """Yield the SessionStore of the engine."""
        with ExitStack() as stack:
            for alias, entry in self.databases.items():
                stack.enter_context(databases.connected(entry, alias))
            stack.enter_context(override_settings(**self.settings))
            yield import_module(settings.SESSION_ENGINE).SessionStore


def saved(store: SessionStore, data: Mapping[str, Any]) -> str:
    """Set these values in a request's session, save it, and return its key."""
    store.update(data)
    store.save()
    assert store.session_key is not None
    return store.session_key


def new_session(store_class: type[SessionStore], data: Mapping[str, Any]) -> str:
    """Create a visitor's session, and return its key."""
    return saved(store_class(), data)


def stored(store_class: type[SessionStore], key: str | None) -> dict[str, Any] | None:
    """Return the data that a visitor's next request reads; ``None`` when there is no session."""
    store = store_class(key)
    data = dict(store.items())
    return None if store.session_key is None else data


def id_of(store_class: type[SessionStore], key: str) -> str:
    """Return the session id for a session key."""
    session_id = store_class(key).session_id
    assert session_id is not None
    return session_id


def path_of(folder: Path, session_id: str) -> Path:
    """Return the file of a session."""
    (path,) = folder.glob(f"*/{session_id}")
    return path


def same_shard(count: int, seed: str = "") -> list[str]:
    """Return ids of one shard of the file engine."""
    ids: list[str] = []
    number = 0
    while len(ids) < count:
        session_id = hashlib.sha256(f"{seed}{number}".encode()).hexdigest()
        if zlib.crc32(session_id.encode()) & 255 == 7:
            ids.append(session_id)
        number += 1
    return ids


async def overlap(store_class: type[SessionStore], key: str, count: int) -> None:
    """Let `count` tasks read a session with a cart, and then let each set its own key and an item of the cart."""

    async def request(store: SessionStore, number: int) -> None:
        await store.aset(f"task {number}", number)
        (await store.aget("cart"))[f"item {number}"] = number
        await store.asave()

    requests = [store_class(key) for _ in range(count)]
    await asyncio.gather(*(store.aget("cart") for store in requests))
    await asyncio.gather(*(request(store, number) for number, store in enumerate(requests)))
