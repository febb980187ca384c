"""Which engines sessions can be moved from, and whether a move has two places."""

from typing import Any

from django.contrib.sessions.backends import cache, cached_db, db, file, signed_cookies
from django.core.exceptions import ImproperlyConfigured

from gsession_django.backends.memory import MemoryStorage
from gsession_django.core.engine import engine_module, engine_of
from gsession_django.core.options import given_options
from gsession_django.core.store import SessionStore
from gsession_django.moving.django_cache import CacheSource
from gsession_django.moving.django_engines import CachedDatabaseSource, DatabaseSource, FileSource
from gsession_django.moving.our_engines import OurSource
from gsession_django.moving.source import Source
from gsession_django.moving.steps import probe


def source_of(engine: str) -> Source:
    """Return the source for an engine, without connecting to anything.

    The class ``SessionStore`` in the engine's module decides, so a site may also name its subclass of Django's.

    Raises ``ImproperlyConfigured`` if there is no such engine, or if sessions cannot be moved from it.
    """
    try:
        store: Any = engine_module(engine).SessionStore
    except (ImproperlyConfigured, AttributeError) as error:
        raise ImproperlyConfigured(f"{engine!r} is not a session engine: {error}.") from error
    if not isinstance(store, type):
        raise ImproperlyConfigured(f"{engine!r} is not a session engine: its SessionStore is not a class.")
    if issubclass(store, SessionStore) and hasattr(store, "storage_class"):
        if issubclass(store.storage_class, MemoryStorage):
            raise ImproperlyConfigured(
                f"Sessions cannot be moved from {engine!r}: it keeps them in the memory of a process, and no other "
                "process can read them there."
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
            f"Sessions cannot be moved from {engine!r}: it keeps them in the visitors' cookies, and none on a server."
        )
    raise ImproperlyConfigured(
        f"Sessions cannot be moved from {engine!r}: it is not an engine of gsession_django, nor of Django's db, "
        "cached_db, file and cache, nor a subclass of one."
    )


def check_places(
    named_by: str, source: Source, target: str, store: type[SessionStore] | None, probing: bool = False
) -> None:
    """Raise ``ImproperlyConfigured`` if two engines keep their sessions in the same place.

    There each session is its own copy, and a move would remove it.

    Args:
        named_by: the setting or option that names the source, for the message.
        source: where sessions are to be moved from.
        target: the engine to move them to.
        store: its SessionStore; ``None`` for an engine of another package.
        probing: also create a session at the target, and look for it at the source. Otherwise this only compares
            names, storages and options, and connects to nothing.
    """
    same = source.name == target
    if isinstance(source, OurSource) and store is not None:
        ours = source.store_class
        same = same or (
            ours.storage_class is store.storage_class
            and given_options(ours.__module__) == given_options(store.__module__)
        )
        if probing and not same:
            engine = engine_of(store)
            same = engine.run(probe(engine, lambda session_id: source.present([session_id])))
    if same:
        raise ImproperlyConfigured(
            f"{named_by} names {source.name!r}, which keeps its sessions in the same place as {target!r}. There is "
            "nothing to move: name another engine."
        )
