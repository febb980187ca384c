"""Moves sessions from Django's engines ``db``, ``cached_db`` and ``file``."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.backends.cached_db import SessionStore as CachedDatabaseStore
from django.contrib.sessions.backends.db import SessionStore as DatabaseStore
from django.contrib.sessions.backends.file import SessionStore as FileStore
from django.contrib.sessions.base_session import AbstractBaseSession
from django.contrib.sessions.exceptions import InvalidSessionKey
from django.core import signing
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router
from django.db.models import QuerySet
from django.utils import timezone

from gsession_django.core.storage import StorageUnavailable
from gsession_django.database.failures import answered
from gsession_django.moving.source import Found

# Opening a file fails with these if there is none, or if its name is too long.
_NO_FILE: Final = (errno.ENOENT, errno.ENAMETOOLONG)
# Every database takes this many keys in one statement.
_AT_ONCE: Final = 500


def decoded(store: Any, text: str) -> dict[str, Any] | None:
    """Decode a session that an engine of Django's encoded; ``None`` if it cannot be read.

    Django's ``decode()`` returns an empty session then. A site's own ``decode()`` may do the same, so here an empty
    session from it counts as unreadable.
    """
    try:
        if type(store).decode is not SessionBase.decode:
            data = store.decode(text) or None
        else:
            data = signing.loads(text, salt=store.key_salt, serializer=store.serializer)
    except Exception:  # pickle may raise anything
        return None
    return data if isinstance(data, dict) else None


def expiry_age(store: Any, expiry: Any) -> float | None:
    """Return how many seconds Django gives a session with this expiry; ``None`` if Django cannot read it."""
    try:
        return float(store.get_expiry_age(expiry=expiry))
    except (TypeError, ValueError):
        return None


def cache_unavailable(engine: str, error: Exception) -> StorageUnavailable:
    """Return the error for a cache that does not answer."""
    return StorageUnavailable(
        f"The engine {engine!r} cannot use its cache, which SESSION_CACHE_ALIAS names: {type(error).__name__}: {error}"
        ". Check that its server runs, and that this machine can reach it."
    )


class DatabaseSource:
    """``django.contrib.sessions.backends.db`` and its subclasses.

    It reads where Django writes: a replica may lag behind, and miss that a session has begun or ended.
    """

    def __init__(self, name: str, store_class: type[DatabaseStore]) -> None:
        self.name = name
        self._store_class = store_class
        try:
            self._model: type[AbstractBaseSession] = store_class.get_model_class()
        except RuntimeError as error:
            raise ImproperlyConfigured(
                f"The engine {name!r} has no model for its sessions: {error} Put the app of the model into "
                "INSTALLED_APPS: for Django's own engines, that is 'django.contrib.sessions'."
            ) from error

    def ref_of(self, session_key: str) -> str:
        return session_key

    def batches(self, size: int) -> Iterator[Sequence[str]]:
        keys = self._rows().order_by("session_key").values_list("session_key", flat=True)
        page = self._asked(lambda: list(keys[:size]))
        while page:
            yield page
            rest = keys.filter(session_key__gt=page[-1])
            page = self._asked(lambda rest=rest: list(rest[:size]))  # type: ignore[misc]

    def read(self, refs: Sequence[str]) -> Mapping[str, Found | None]:
        now, store, found = timezone.now(), self._store_class(), {}
        for row in self._of(refs, lambda rows: list(rows.filter(expire_date__gt=now))):
            data = decoded(store, row.session_data)
            left = (row.expire_date - now).total_seconds()
            found[row.session_key] = None if data is None else Found(data, left)
        return {ref: found[ref] for ref in refs if ref in found}  # some databases ignore case

    def present(self, refs: Sequence[str]) -> set[str]:
        now = timezone.now()
        keys = self._of(refs, lambda rows: list(rows.filter(expire_date__gt=now).values_list("session_key", flat=True)))
        return set(refs).intersection(keys)

    def remove(self, refs: Sequence[str]) -> None:
        self._of(refs, lambda rows: [rows.delete()])

    def _rows(self) -> QuerySet[Any]:
        return self._model.objects.using(router.db_for_write(self._model))

    def _of(self, refs: Sequence[str], ask: Callable[[QuerySet[Any]], list[Any]]) -> list[Any]:
        """Call `ask` with the rows of these sessions, some at a time, and return all answers."""
        rows, answers = self._rows(), []
        for start in range(0, len(refs), _AT_ONCE):
            some = rows.filter(session_key__in=refs[start : start + _AT_ONCE])
            answers += self._asked(lambda some=some: ask(some))  # type: ignore[misc]
        return answers

    def _asked(self, ask: Callable[[], list[Any]]) -> list[Any]:
        return answered(lambda: connections[self._rows().db], f"The database of the engine {self.name!r}", ask)


class CachedDatabaseSource(DatabaseSource):
    """``django.contrib.sessions.backends.cached_db`` and its subclasses.

    It reads the rows. It removes a session from the cache before the row, as the cache would bring it back, and once
    more after it, in case a request has cached the row again meanwhile.
    """

    _store_class: type[CachedDatabaseStore]

    def remove(self, refs: Sequence[str]) -> None:
        self._forget(refs)
        super().remove(refs)
        self._forget(refs)

    def _forget(self, refs: Sequence[str]) -> None:
        cache: Any = self._store_class()._cache  # type: ignore[attr-defined]
        keys = [f"{self._store_class.cache_key_prefix}{ref}" for ref in refs]
        try:
            # With IGNORE_EXCEPTIONS a cache of django-redis hides failures, and its client does not.
            getattr(cache, "client", cache).delete_many(keys)
        except Exception as error:  # each cache raises its own
            raise cache_unavailable(self.name, error) from error


class FileSource:
    """``django.contrib.sessions.backends.file`` and its subclasses."""

    def __init__(self, name: str, store_class: type[FileStore]) -> None:
        self.name = name
        self._store_class = store_class
        store_class()  # raises ImproperlyConfigured if the folder does not exist

    def ref_of(self, session_key: str) -> str:
        return session_key

    def batches(self, size: int) -> Iterator[Sequence[str]]:
        store = self._store_class()
        prefix = store.file_prefix
        try:
            names = os.listdir(store.storage_path)
        except OSError as error:
            raise self._unavailable(error) from error
        keys = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        keys = [key for key in keys if self._path(key) is not None]
        for start in range(0, len(keys), size):
            yield keys[start : start + size]

    def read(self, refs: Sequence[str]) -> Mapping[str, Found | None]:
        found = {}
        for ref in refs:
            try:
                session = self._read(ref)
            except OSError as error:
                if error.errno not in _NO_FILE:
                    raise self._unavailable(error) from error
                self._check()
                continue
            if session is None or session.ttl_left > 0:
                found[ref] = session
        return found

    def present(self, refs: Sequence[str]) -> set[str]:
        return set(self.read(refs))  # the expiry is in the session

    def remove(self, refs: Sequence[str]) -> None:
        for ref in refs:
            if (path := self._path(ref)) is None:
                continue
            try:
                os.unlink(path)
            except OSError as error:
                if error.errno not in _NO_FILE:
                    raise self._unavailable(error) from error
                self._check()

    def _path(self, ref: str) -> str | None:
        """Return the path for a session; ``None`` if Django refuses the key."""
        try:
            path: str = self._store_class()._key_to_file(ref)  # type: ignore[attr-defined]
            return path
        except InvalidSessionKey:
            return None

    def _read(self, ref: str) -> Found | None:
        """Return a session; ``None`` if it cannot be read. Raises ``OSError`` if there is none."""
        store: Any = self._store_class(ref)
        try:
            with open(store._key_to_file(), encoding="ascii") as file:
                text = file.read()
        except InvalidSessionKey as error:
            raise FileNotFoundError(errno.ENOENT, str(error)) from error
        except UnicodeDecodeError:
            return None
        if not text:  # Django is creating it
            raise FileNotFoundError(errno.ENOENT, "nothing has been written yet")
        data = decoded(store, text)
        age = None if data is None else expiry_age(store, store._expiry_date(data))
        return None if data is None or age is None else Found(data, age)

    def _check(self) -> None:
        """Raise StorageUnavailable if the folder is missing: then a missing file does not mean a missing session."""
        path = self._store_class().storage_path
        if not os.path.isdir(path):
            raise self._unavailable(FileNotFoundError(f"there is no folder {path!r}"))

    def _unavailable(self, error: OSError) -> StorageUnavailable:
        return StorageUnavailable(
            f"The engine {self.name!r} cannot use its folder (SESSION_FILE_PATH): {error}. Check that it exists, and "
            "that it belongs to this process's user."
        )
