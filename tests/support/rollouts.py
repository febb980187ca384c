"""A site during a rollout: visitors signed in under the old release, and the new release keeps sessions elsewhere. Its
fallback is the old engine.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connections, router
from django.test import override_settings

from gsession_django.core.driving import UNABLE, Operation
from gsession_django.core.engine import Engine
from gsession_django.moving import steps
from gsession_django.moving.fallback import FallbackEngine
from tests.support import databases, processes, sites
from tests.support.old_sites import DJANGOS, OURS, old_site, store_of

SOURCES = {name: DJANGOS[name] for name in ("db", "file", "cache")}
TARGETS = {name: OURS[name] for name in ("redis_hash", "redis", "file")}

# Settings that all processes of a test share.
_SHARED = (
    *("INSTALLED_APPS", "DATABASE_ROUTERS", "SESSION_FILE_PATH", "SESSION_CACHE_ALIAS", "CACHES", "SESSION_ENGINE"),
    "GSESSION",
)


@contextmanager
def rollout(folder: Path, source: str, target: str, *, kind: str = "sqlite", **values: Any) -> Iterator[None]:
    """Use the settings of the new release of the site in ``sites.py``.

    Args:
        folder: the folder for all files.
        source, target: the old and the new engine.
        kind: the kind of database.
        values: other settings.
    """
    site = {
        "ROOT_URLCONF": sites.__name__,
        "AUTHENTICATION_BACKENDS": [f"{sites.__name__}.Backend"],
        "LOGIN_URL": "/sign_in/",
        "MIDDLEWARE": [sites.OURS, "django.contrib.auth.middleware.AuthenticationMiddleware"],
        "SESSION_ENGINE": target,
        "GSESSION": {"FALLBACK_ENGINE": source, "TOUCH_INTERVAL": 0},
    }
    with old_site(folder, kind, **{**site, **values}):
        entry = settings.CACHES["sessions"]
        patient = {**entry["OPTIONS"], "SOCKET_CONNECT_TIMEOUT": processes.TIMEOUT, "SOCKET_TIMEOUT": processes.TIMEOUT}
        with override_settings(CACHES={**settings.CACHES, "sessions": {**entry, "OPTIONS": patient}}):
            yield


def old_release() -> Any:
    """Use the settings of the old release."""
    return override_settings(SESSION_ENGINE=settings.GSESSION["FALLBACK_ENGINE"], GSESSION={})


def signed_in(things: int = 2) -> str:
    """Let a visitor sign in under the old release and put things into the cart, and return the session key."""
    with old_release():
        return sites.Visitor().signed_in(things).key


# The same in another process.


def here() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of :func:`there`."""
    return {name: getattr(settings, name) for name in _SHARED}, {alias(): connections.settings[alias()]}


@contextmanager
def there(values: dict[str, Any], entries: dict[str, Any]) -> Iterator[None]:
    """Use the settings of the process that called :func:`here`."""
    with ExitStack() as stack:
        for name, entry in entries.items():
            stack.enter_context(databases.connected(entry, name))
        stack.enter_context(override_settings(**values))
        yield


def alias() -> str:
    """Return the alias of the database that has the sessions."""
    from django.contrib.sessions.models import Session

    return router.db_for_write(Session)


# The place of a session, and its stored data.


def at_source(key: str) -> dict[str, Any] | None:
    """Return the session in the old engine; ``None`` if it has none."""
    with old_release():
        store = store_of(settings.SESSION_ENGINE, key)
        return dict(store.items()) if store.exists(key) else None


def at_target(key: str) -> tuple[dict[str, Any], float] | None:
    """Return all stored pairs of a session in the new engine, hidden ones too, and its TTL."""
    engine = Engine(type(store_of(settings.SESSION_ENGINE)))
    session = engine.run(engine.load_all(engine.id_of(key), store_of(settings.SESSION_ENGINE), reserved=True))
    return None if session is None else (session.as_dict(), session.ttl_left)


def new_engine() -> FallbackEngine:
    """Return a new engine object, as another process has."""
    return FallbackEngine(type(store_of(settings.SESSION_ENGINE)))


class Mover:
    """Another process that moves a session, step by step: a request, or ``migrate_sessions``."""

    def __init__(self, operation: Callable[[FallbackEngine, str], Operation], key: str) -> None:
        self._engine = new_engine()
        self._operation = operation(self._engine, key)
        self._call: Any = next(self._operation)

    def goes(self, steps: int = 1000) -> bool:
        """Take up to so many steps, and return whether any are left."""
        for _ in range(steps):
            if self._call is None:
                break
            call = self._call
            if not isinstance(call, tuple):
                told = call()
            else:
                able = call[0] in self._engine.able
                told = getattr(self._engine.storage, call[0])(*call[1:]) if able else UNABLE
            try:
                self._call = self._operation.send(told)
            except StopIteration:
                self._call = None
        return self._call is not None


def first_touch(engine: FallbackEngine, key: str) -> Operation:
    """Return the operation of a request."""
    return engine.find(key, engine.id_of(key), store_of(settings.SESSION_ENGINE))


def command(engine: FallbackEngine, key: str) -> Operation:
    """What ``migrate_sessions`` does."""
    source = engine.fallback
    ref = source.ref_of(key)
    found = (yield partial(source.read, [ref])).get(ref)
    if found is not None:
        batch = {ref: (engine.id_of(key), found)}
        yield from steps.move(engine, source, batch, store_of(settings.SESSION_ENGINE))
