"""Which source an engine is."""

from typing import Any

from django.contrib.sessions.backends import cache, cached_db, db, file, signed_cookies
from django.core.exceptions import ImproperlyConfigured

from gsession_django.backends.memory import MemoryStorage
from gsession_django.core.engine import engine_module
from gsession_django.core.store import SessionStore
from gsession_django.moving.django_cache import CacheSource
from gsession_django.moving.django_engines import CachedDatabaseSource, DatabaseSource, FileSource
from gsession_django.moving.our_engines import OurSource
from gsession_django.moving.source import Source


def source_of(engine: str) -> Source:
    """Return the source for the engine of this name, which is that of a module with a class ``SessionStore``.

    That class decides, so that a site's subclass of Django's works as well. Nothing is connected to.

    Raises ``ImproperlyConfigured`` if there is no such engine, or sessions cannot be moved from it.
    """
    try:
        store: Any = engine_module(engine).SessionStore
    except (ImproperlyConfigured, AttributeError) as error:
        raise ImproperlyConfigured(f"{engine!r} is no session engine: {error}.") from error
    if not isinstance(store, type):
        raise ImproperlyConfigured(f"{engine!r} is no session engine: its SessionStore is no class.")
    if issubclass(store, SessionStore) and hasattr(store, "storage_class"):
        if issubclass(store.storage_class, MemoryStorage):
            raise ImproperlyConfigured(
                f"The engine {engine!r} keeps sessions in the memory of a process, where no other can reach them, so "
                "that they cannot be moved from there."
            )
        return OurSource(engine, store)
    if issubclass(store, cached_db.SessionStore):
        return CachedDatabaseSource(engine, store)
    if issubclass(store, db.SessionStore):
        return DatabaseSource(engine, store)
    if issubclass(store, file.SessionStore):
        return FileSource(engine, store)
    if issubclass(store, cache.SessionStore):
        return CacheSource(engine, store)
    if issubclass(store, signed_cookies.SessionStore):
        raise ImproperlyConfigured(
            f"The engine {engine!r} keeps sessions in the visitors' cookies and nothing on a server, so that there is "
            "nothing to move."
        )
    raise ImproperlyConfigured(
        f"{engine!r} is neither an engine of gsession_django nor one of Django's db, cached_db, file and cache, nor a "
        "subclass of one, so that nobody knows how to move its sessions."
    )
