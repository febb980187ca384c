"""Sessions in files, shared by all processes of one machine: the engine to begin with."""

import functools
import getpass
import os
import re
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Concatenate, ParamSpec, TypeVar

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.utils.crypto import salted_hmac

from gsession_django.serializers import DecodeError
from gsession_django.session_file import Damaged, FileLock, SessionFile, sync_folder, write_new
from gsession_django.session_map import SessionMap, logger
from gsession_django.storage import Storage, StorageUnavailable
from gsession_django.store import SessionStore as BaseSessionStore

P = ParamSpec("P")
T = TypeVar("T")

# Session ids that are file names, and the same ones where file systems do not know upper from lower case.
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")
_SHARDS = [f"{number:02x}" for number in range(256)]


def default_path() -> str:
    """Return the folder that is used where ``SESSION_FILE_PATH`` is not set: private, and of this site alone."""
    site = salted_hmac("gsession_django.backends.file", "folder", algorithm="sha256").hexdigest()[:12]
    return os.path.join(tempfile.gettempdir(), f"gsession-{getpass.getuser()}-{site}")


def _available(method: Callable[Concatenate["FileStorage", P], T]) -> Callable[Concatenate["FileStorage", P], T]:
    """Turn what the file system cannot do into StorageUnavailable."""

    @functools.wraps(method)
    def wrapper(self: "FileStorage", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except OSError as error:
            raise self.unavailable(error) from error

    return wrapper


class FileStorage(Storage):
    """Keeps each session in a file of its own, in one of 256 folders of ``SESSION_FILE_PATH``, each with one lock.

    A session that was stored survives the death of the process.

    Args:
        fsync: whether a session that was stored survives a power cut too. Each save then waits for the disk.
    """

    def __init__(self, fsync: bool = False) -> None:
        self._fsync = fsync
        path = settings.SESSION_FILE_PATH
        self._own = path is None
        self._root = default_path() if path is None else os.fspath(path)
        self._checked = False

    def unavailable(self, error: OSError) -> StorageUnavailable:
        return StorageUnavailable(
            f"The file session engine cannot use its folder {self._root!r} (SESSION_FILE_PATH): {error}. See that it "
            "is there, that it belongs to this process's user, and that its disk is neither full nor read-only."
        )

    def _check_root(self) -> None:
        """Raise an OSError if the folder is not there, or is our own one in a public place and is not private."""
        if self._own:
            os.makedirs(self._root, 0o700, exist_ok=True)
            status = os.lstat(self._root)
            if not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077 or status.st_uid != os.geteuid():
                raise PermissionError(f"it is not a folder that only the user {getpass.getuser()!r} can use")
        elif not os.path.isdir(self._root):
            raise FileNotFoundError("there is no such folder")
        self._checked = True

    def _folder(self, session_id: str) -> str:
        if not self._checked:
            self._check_root()
        return f"{self._root}/{_SHARDS[zlib.crc32(session_id.encode()) & 255]}"

    def _lock(self, folder: str) -> FileLock:
        return FileLock(f"{folder}/.lock")

    def _gone(self) -> bool:
        """Say that a session is not there; but if the folder is not there either, nobody knows that."""
        self._check_root()
        return False

    def _read(self, session_id: str, read: Callable[[SessionFile], T]) -> T | None:
        """Return what `read` makes of the session's file; ``None`` when there is no such session, or no more."""
        if not _FILE_NAME.fullmatch(session_id):
            return None
        folder = self._folder(session_id)
        path = f"{folder}/{session_id}"
        try:
            try:
                with SessionFile(path) as file:
                    return read(file) if file.header.alive else None
            except Damaged:  # or another process was writing just then
                with self._lock(folder), SessionFile(path) as file:
                    return read(file) if file.header.alive else None
        except FileNotFoundError:
            self._gone()
        except (Damaged, DecodeError) as error:
            logger.warning("The session file %r is dropped: %s", path, error)
        return None

    def _change(self, session_id: str, change: Callable[[SessionFile], None]) -> bool:
        """Let `change` write to the session's file, alone; ``False`` when there is no such session."""
        if not _FILE_NAME.fullmatch(session_id):
            return False
        folder = self._folder(session_id)
        path = f"{folder}/{session_id}"
        try:
            with self._lock(folder), SessionFile(path, writable=True, fsync=self._fsync) as file:
                if not file.header.alive:
                    return False
                change(file)
                return True
        except FileNotFoundError:
            return self._gone()
        except (Damaged, DecodeError) as error:
            logger.warning("The session file %r is dropped: %s", path, error)
            return False

    @_available
    def get_session(self, session_id: str, ttl: int, data: Any = None) -> SessionMap | None:
        def read(file: SessionFile) -> SessionMap:
            values = self.decode(file.body())
            return SessionMap(values, file.header.revision, file.header.expires - time.time())

        return self._read(session_id, read)

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
            if file.header.revision == session.version:
                body = self.encode(session.as_dict())
            else:
                current = self.decode(file.body())
                body = self.encode(session.merged_onto(current))
                if not session.renews_ttl(current):
                    expires = file.header.expires
            session.version = file.write(body, expires)

        return self._change(session_id, change)

    @_available
    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        if not _FILE_NAME.fullmatch(session_id):
            raise ValueError(
                f"{session_id!r} cannot be the name of a session file: with hash_ids off, the file engine takes "
                "session keys of at most 128 lower-case letters, digits, '-' and '_', the first a letter or a digit."
            )
        folder = self._folder(session_id)
        body = self.encode(session.as_dict())
        try:
            return self._create(folder, session_id, session, body, ttl)
        except FileNotFoundError:
            self._check_root()
            os.makedirs(folder, 0o700, exist_ok=True)
            return self._create(folder, session_id, session, body, ttl)

    def _create(self, folder: str, session_id: str, session: SessionMap, body: bytes, ttl: int) -> bool:
        path = f"{folder}/{session_id}"
        with self._lock(folder):
            if _is_alive(path):
                return False
            session.version = write_new(path, f"{folder}/.new", body, time.time() + ttl, self._fsync)
            if self._fsync:
                sync_folder(folder)
        return True

    @_available
    def move(self, session_id: str, new_id: str, ttl: int) -> bool:
        folders = [self._folder(session_id), self._folder(new_id)]
        old, new = f"{folders[0]}/{session_id}", f"{folders[1]}/{new_id}"
        os.makedirs(folders[1], 0o700, exist_ok=True)
        try:
            with ExitStack() as stack:
                for folder in sorted(set(folders)):  # in one order, so that no two wait for each other
                    stack.enter_context(self._lock(folder))
                alive, taken = _is_alive(old), _is_alive(new)
                if not alive or taken:
                    return taken and not alive
                with SessionFile(old, writable=True, fsync=self._fsync) as file:
                    file.renew(time.time() + ttl)
                os.rename(old, new)
                if self._fsync:
                    for folder in set(folders):
                        sync_folder(folder)
                return True
        except FileNotFoundError:
            return self._gone()

    @_available
    def remove_all(self, session_id: str) -> None:
        if not _FILE_NAME.fullmatch(session_id):
            return
        folder = self._folder(session_id)
        try:
            with self._lock(folder):
                os.unlink(f"{folder}/{session_id}")
                if self._fsync:
                    sync_folder(folder)
        except FileNotFoundError:
            self._gone()

    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        for folder in self._folders():
            dead = [name for name in self._names(folder) if not _is_alive(f"{folder}/{name}")]
            for start in range(0, len(dead), batch_size):
                batch = dead[start : start + batch_size]
                yield len(batch) if dry_run else self._remove_dead(folder, batch)

    @_available
    def _remove_dead(self, folder: str, names: list[str]) -> int:
        removed = 0
        with self._lock(folder):
            for name in names:
                path = f"{folder}/{name}"
                if not _is_alive(path):  # it may have been renewed since
                    os.unlink(path)
                    removed += 1
        return removed

    def ids(self) -> Iterator[str]:
        for folder in self._folders():
            yield from (name for name in self._names(folder) if _is_alive(f"{folder}/{name}"))

    @_available
    def _folders(self) -> list[str]:
        self._check_root()
        return [entry.path for entry in os.scandir(self._root) if entry.name in _SHARDS]

    @_available
    def _names(self, folder: str) -> list[str]:
        return [name for name in os.listdir(folder) if _FILE_NAME.fullmatch(name)]


def _is_alive(path: str) -> bool:
    """Whether there is a whole, unexpired header in the file. Only under the lock is ``False`` the last word."""
    try:
        with SessionFile(path) as file:
            return file.header.alive
    except (FileNotFoundError, Damaged):
        return False


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
