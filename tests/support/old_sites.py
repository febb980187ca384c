"""A site before it moves its sessions: Django's engines and ours, each with its own medium."""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.sessions.backends.file import SessionStore as FileStore
from django.db import connections
from django.test import override_settings

from tests.support import databases, redis_servers

DJANGOS = {
    "db": "django.contrib.sessions.backends.db",
    "cached_db": "django.contrib.sessions.backends.cached_db",
    "file": "django.contrib.sessions.backends.file",
    "cache": "django.contrib.sessions.backends.cache",
    "cache on Django's Redis": "tests.support.engine_in_djangos_redis",
}
"""Django's engines that sessions can be moved from. ``cache`` and ``cached_db`` are on django-redis."""
OURS = {name: f"gsession_django.backends.{name}" for name in ("file", "redis", "redis_hash", "database")}

PATIENCE = 60.0
"""Seconds that a server may take on a busy machine."""


class Router:
    """Routes Django's sessions to the database of this alias."""

    def __init__(self, alias: str, read_alias: str | None = None) -> None:
        self._alias = alias
        self._read_alias = read_alias or alias

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return self._read_alias if model._meta.app_label == "sessions" else None

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return self._alias if model._meta.app_label == "sessions" else None


@contextmanager
def old_site(folder: Path, kind: str = "sqlite", url: str | None = None, **values: Any) -> Iterator[None]:
    """Use the settings of such a site, with sessions in any of the engines above.

    Args:
        folder: the folder for all files.
        kind: the kind of database.
        url: the URL of the Redis server, by default that of this process.
        values: other settings.
    """
    prefix = f"site-{uuid.uuid4()}"
    url = redis_servers.shared().url() if url is None else url
    with ExitStack() as stack:
        alias = stack.enter_context(databases.database(kind))
        found = {
            "INSTALLED_APPS": [*settings.INSTALLED_APPS, "django.contrib.sessions"],
            "DATABASE_ROUTERS": [Router(alias)],
            "SESSION_FILE_PATH": str(folder),
            "SESSION_CACHE_ALIAS": "sessions",
            "CACHES": {
                "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
                "sessions": {
                    "BACKEND": "django_redis.cache.RedisCache",
                    "LOCATION": url,
                    "KEY_PREFIX": f"{prefix}-[new]*",
                    "OPTIONS": {
                        "CONNECTION_POOL_KWARGS": {"retry": None},
                        "IGNORE_EXCEPTIONS": True,
                        "SOCKET_CONNECT_TIMEOUT": PATIENCE,
                        "SOCKET_TIMEOUT": PATIENCE,
                    },
                },
                "old": {
                    "BACKEND": "django.core.cache.backends.redis.RedisCache",
                    "LOCATION": url,
                    "KEY_PREFIX": f"{prefix}-[old]*",
                    "OPTIONS": {"retry": None, "socket_connect_timeout": PATIENCE, "socket_timeout": PATIENCE},
                },
            },
            "GSESSION": {"ENGINES": {OURS["database"]: {"using": alias}}},
        }
        stack.enter_context(override_settings(**{**found, **values}))
        stack.callback(_forget_folder)
        _forget_folder()
        from django.contrib.sessions.models import Session

        with connections[alias].schema_editor() as editor:
            editor.create_model(Session)
        try:
            yield
        finally:
            with connections[alias].schema_editor() as editor:
                editor.delete_model(Session)


def _forget_folder() -> None:
    """Make Django's file engine read SESSION_FILE_PATH again."""
    if hasattr(FileStore, "_storage_path"):
        del FileStore._storage_path


def store_of(engine: str, key: str | None = None) -> Any:
    """Return the session of a visitor's request."""
    return import_module(engine).SessionStore(key)


def new_session(engine: str, data: Mapping[str, Any], expiry: Any = None) -> str:
    """Create a visitor's session, and return its key."""
    store = store_of(engine)
    store.update(data)
    if expiry is not None:
        store.set_expiry(expiry)
    store.save()
    key: str = store.session_key
    return key


def stored(engine: str, key: str) -> dict[str, Any] | None:
    """Return the data that a visitor's next request reads; ``None`` when there is no session."""
    store = store_of(engine, key)
    data = dict(store.items())
    return None if store.session_key is None else data
