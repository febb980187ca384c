"""Sessions in files, shared by all processes of one machine: the engine to begin with."""

import functools
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Concatenate, ParamSpec, TypeVar

from django.conf import settings
from django.core.checks import CheckMessage, Error

from gsession_django.serializers import DecodeError, logger
from gsession_django.session_file import Damaged, SessionFile, read_header, sync_folder, write_new
from gsession_django.session_folder import Place, SessionFolder
from gsession_django.session_map import SessionMap
from gsession_django.storage import Storage
from gsession_django.store import SessionStore as BaseSessionStore

P = ParamSpec("P")
T = TypeVar("T")

_HASHED_ID = re.compile(r"[0-9a-f]{64}")


def _available(method: Callable[Concatenate["FileStorage", P], T]) -> Callable[Concatenate["FileStorage", P], T]:
    """Turn what the file system cannot do into StorageUnavailable."""

    @functools.wraps(method)
    def wrapper(self: "FileStorage", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except OSError as error:
            raise self.folder.unavailable(error) from error

    return wrapper


class FileStorage(Storage):
    """Keeps each session in a file of its own, in ``SESSION_FILE_PATH``.

    A session that was stored survives the death of the process.

    Args:
        fsync: whether a session that was stored survives a power cut too. Each save then waits for the disk.
    """

    def __init__(self, fsync: bool = False) -> None:
        path = settings.SESSION_FILE_PATH
        self.folder = SessionFolder(None if path is None else os.fspath(path))
        self._fsync = fsync

    def _read(self, session_id: str, read: Callable[[SessionFile], T]) -> T | None:
        """Return what `read` makes of the session's file; ``None`` when there is no such session, or no more."""
        place = self.folder.place(session_id)
        if place is None:
            return None
        try:
            try:
                with SessionFile(place.path) as file:
                    return read(file) if file.header.alive else None
            except Damaged:  # or another process was writing just then
                with place.lock, SessionFile(place.path) as file:
                    return read(file) if file.header.alive else None
        except FileNotFoundError:
            self.folder.check()
        except (Damaged, DecodeError) as error:
            _log_damage(place, error)
        return None

    def _change(self, session_id: str, change: Callable[[SessionFile], None]) -> bool:
        """Let `change` write to the session's file, alone; ``False`` when there is no such session."""
        place = self.folder.place(session_id)
        if place is None:
            return False
        try:
            with place.lock, SessionFile(place.path, writable=True, fsync=self._fsync) as file:
                if not file.header.alive:
                    return False
                change(file)
                return True
        except FileNotFoundError:
            self.folder.check()
        except (Damaged, DecodeError) as error:
            _log_damage(place, error)
        return False

    @_available
    def get_session(self, session_id: str, ttl: int, data: Any = None) -> SessionMap | None:
        return self._read(session_id, self._session)

    def _session(self, file: SessionFile) -> SessionMap:
        values = self.decode(file.body())
        if not isinstance(values, dict):
            raise DecodeError(f"it holds a {type(values).__name__} and no session")
        return SessionMap(values, file.header.revision, file.header.expires - time.time())

    @_available
    def exists(self, session_id: str) -> bool:
        return self._read(session_id, lambda file: True) is not None

    @_available
    def update_ttl(self, session_id: str, ttl: int) -> bool:
        return self._change(session_id, lambda file: file.renew(time.time() + ttl))

    @_available
    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        def change(file: SessionFile) -> None:
            expires = time.time() + ttl
            if file.header.revision == session.version or session.cleared:
                data = session.as_dict()
            else:
                current = self._session(file)
                data = session.merged_onto(current)
                if not session.renews_ttl(current):
                    expires = file.header.expires
            session.version = file.write(self.encode(data), expires)

        return self._change(session_id, change)

    @_available
    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        place = self._new_place(session_id)
        body = self.encode(session.as_dict())
        try:
            return self._create(place, session, body, ttl)
        except FileNotFoundError:
            self.folder.make(place.shard, self._fsync)
            return self._create(place, session, body, ttl)

    def _create(self, place: Place, session: SessionMap, body: bytes, ttl: int) -> bool:
        with place.lock:
            if _is_alive(place.path):
                return False
            session.version = write_new(place.path, place.scratch, body, time.time() + ttl, self._fsync)
            if self._fsync:
                sync_folder(place.shard)
        return True

    def _new_place(self, session_id: str) -> Place:
        place = self.folder.place(session_id)
        if place is None:
            raise ValueError(
                f"{session_id!r} cannot be the name of a session file: with hash_ids off, the file engine takes "
                "session keys of at most 128 lower-case letters, digits, '-' and '_', the first a letter or a digit."
            )
        return place

    @_available
    def move(self, session_id: str, new_id: str, ttl: int) -> bool:
        old, new = self.folder.place(session_id), self._new_place(new_id)
        if old is None:
            return False
        self.folder.make(new.shard, self._fsync)
        try:
            with ExitStack() as stack:
                for place in sorted({old.shard: old, new.shard: new}.values()):  # in one order, so that no two block
                    stack.enter_context(place.lock)
                alive, taken = _is_alive(old.path), _is_alive(new.path)
                if not alive or taken:
                    return taken and not alive
                os.rename(old.path, new.path)
                if self._fsync:
                    sync_folder(new.shard)
                    sync_folder(old.shard)
                return True
        except FileNotFoundError:
            self.folder.check()
            return False

    @_available
    def remove_all(self, session_id: str) -> None:
        place = self.folder.place(session_id)
        if place is None:
            return
        try:
            with place.lock:
                os.unlink(place.path)
                if self._fsync:
                    sync_folder(place.shard)
        except FileNotFoundError:
            self.folder.check()

    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        for shard in self._shards():
            dead = self._places(shard, _is_dead)
            for start in range(0, len(dead) or 1, batch_size):
                batch = dead[start : start + batch_size]
                yield len(batch) if dry_run else self._remove_dead(batch)

    @_available
    def _remove_dead(self, places: list[Place]) -> int:
        removed = 0
        if places:
            with places[0].lock:
                for place in places:
                    if _is_dead(place.path):  # it may have been renewed since, or removed by another purge
                        os.unlink(place.path)
                        removed += 1
        return removed

    def ids(self) -> Iterator[str]:
        for shard in self._shards():
            yield from (os.path.basename(place.path) for place in self._places(shard, _is_alive))

    @_available
    def _shards(self) -> list[str]:
        return self.folder.shards()

    @_available
    def _places(self, shard: str, wanted: Callable[[str], bool]) -> list[Place]:
        return [place for place in self.folder.places(shard) if wanted(place.path)]


def _is_alive(path: str) -> bool:
    """Whether there is a session that has not expired. Only under the lock is ``False`` the last word."""
    try:
        return read_header(path).alive
    except (FileNotFoundError, Damaged):
        return False


def _is_dead(path: str) -> bool:
    """Whether there is a session file that nobody can use any more: expired, or ours by its name, and damaged."""
    try:
        return not read_header(path).alive
    except FileNotFoundError:
        return False
    except Damaged:
        return _HASHED_ID.fullmatch(os.path.basename(path)) is not None


def _log_damage(place: Place, error: Exception) -> None:
    logger.warning("The session file %r is damaged, and no session: %s. It goes when it is purged.", place.path, error)


class SessionStore(BaseSessionStore):
    """The engine ``gsession_django.backends.file``."""

    storage_class = FileStorage

    @classmethod
    def check(cls) -> list[CheckMessage]:
        path = settings.SESSION_FILE_PATH
        if path is None or os.path.isdir(path):
            return []
        return [
            Error(
                f"SESSION_FILE_PATH = {os.fspath(path)!r}: there is no such folder.",
                hint="Create it, for the user that the site runs as and nobody else, or mount what it is on.",
                id="gsession_django.E008",
            )
        ]
