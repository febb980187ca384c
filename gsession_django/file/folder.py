"""The folder of the session files: it finds the file of a session, and lets one writer at a time into a shard.

It holds 256 subfolders, the shards, and each shard has one lock. A million sessions are about 4,000 files a shard, and
writers of different sessions rarely meet. Readers take no lock.
"""

import functools
import os
import re
import stat
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

from django.utils.crypto import salted_hmac

from gsession_django.core.storage import Removed, StorageUnavailable
from gsession_django.file.session_file import Damaged, FileLock, SessionFile, read_header, sync_folder, write_new
from gsession_django.serializers import DecodeError

P = ParamSpec("P")
T = TypeVar("T")

# Lower case only: some file systems treat upper and lower case as the same.
FILE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")
_HASHED_ID = re.compile(r"[0-9a-f]{64}")
_SHARDS = [f"{number:02x}" for number in range(256)]


def check_new_id(session_id: str) -> None:
    """Raise ``ValueError`` if no session can have this id."""
    if not FILE_NAME.fullmatch(session_id):
        raise ValueError(
            f"{session_id!r} cannot be the name of a session file. With hash_ids off, the file engine takes "
            "session keys of at most 128 lower-case letters, digits, '-' and '_', the first a letter or a digit."
        )


def default_path() -> str:
    """Return the folder for a site without ``SESSION_FILE_PATH``: private, and used by this site only."""
    site = salted_hmac("gsession_django.backends.file", "folder", algorithm="sha256").hexdigest()[:12]
    return os.path.join(tempfile.gettempdir(), f"gsession-{os.geteuid()}-{site}")


class Place(NamedTuple):
    """Where a session's file is.

    Attributes:
        shard: the path of its subfolder.
        path: the path of the file.
    """

    shard: str
    path: str

    @property
    def lock(self) -> FileLock:
        """The lock of the shard. One writer at a time holds it."""
        return FileLock(f"{self.shard}/.lock")


class HasPath(Protocol):
    """What works in the folder of a site.

    Attributes:
        path: that folder.
    """

    path: str


def available(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Turn an ``OSError`` of a method into ``StorageUnavailable``."""

    @functools.wraps(method)
    def wrapper(self: HasPath, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except OSError as error:
            raise StorageUnavailable(
                f"The file session engine cannot use its folder {self.path!r} (SESSION_FILE_PATH): {error}. Check "
                "that it exists, that this process's user owns it, and that its disk is neither full nor read-only."
            ) from error

    return wrapper


class SessionFolder:
    """The folder of one site.

    Args:
        path: ``SESSION_FILE_PATH``, a folder that must exist. With ``None`` the engine creates a private folder
            under the system's temporary directory at first use.
        fsync: whether each write waits until the disk has it.
    """

    def __init__(self, path: str | None, fsync: bool) -> None:
        self._own = path is None
        self.path = default_path() if path is None else path
        self._fsync = fsync
        self._checked = False

    def check(self) -> None:
        """Raise an ``OSError`` if the folder does not exist, or if the default folder is open to other users."""
        if self._own:
            os.makedirs(self.path, 0o700, exist_ok=True)
            status = os.lstat(self.path)
            if not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077 or status.st_uid != os.geteuid():
                raise PermissionError(f"it is not a folder that only the user {os.geteuid()} can use")
        elif not os.path.isdir(self.path):
            raise FileNotFoundError("this folder does not exist")
        self._checked = True

    def _place(self, session_id: str) -> Place | None:
        """Return the place of the session's file, existing or not; ``None`` for an id that no session can have."""
        return self._place_of(session_id) if FILE_NAME.fullmatch(session_id) else None

    def _place_of(self, session_id: str) -> Place:
        if not self._checked:
            self.check()
        shard = f"{self.path}/{_SHARDS[zlib.crc32(session_id.encode()) & 255]}"
        return Place(shard, f"{shard}/{session_id}")

    def _new_place(self, session_id: str) -> Place:
        check_new_id(session_id)
        return self._place_of(session_id)

    def make(self, folder: str) -> None:
        """Create a shard, or another folder in here, if it does not exist yet."""
        self.check()
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            return
        if self._fsync:
            sync_folder(os.path.dirname(folder))

    @available
    def read(self, session_id: str, read: Callable[[SessionFile], T]) -> T | None:
        """Return the result of `read` for the session's file; ``None`` for an unknown or expired session."""
        place = self._place(session_id)
        if place is None:
            return None
        try:
            try:
                with SessionFile(place.path) as file:
                    return read(file) if file.header.alive else None
            except Damaged:  # or another process was writing at that moment
                with place.lock, SessionFile(place.path) as file:
                    return read(file) if file.header.alive else None
        except FileNotFoundError:
            self.check()  # without the folder, a missing file does not mean a missing session
        except Damaged as error:
            raise _unreadable(place, error) from error
        return None

    @available
    def change(self, session_id: str, change: Callable[[SessionFile], None]) -> bool:
        """Let `change` write to the session's file, under the lock; ``False`` for an unknown or expired session."""
        place = self._place(session_id)
        if place is None:
            return False
        try:
            with place.lock, SessionFile(place.path, writable=True, fsync=self._fsync) as file:
                if not file.header.alive:
                    return False
                change(file)
                return True
        except FileNotFoundError:
            self.check()
        except Damaged as error:
            raise _unreadable(place, error) from error
        return False

    @available
    def create(self, session_id: str, body: bytes, ttl: int) -> int | None:
        """Create the file of a new session and return its revision; ``None`` when the id is taken."""
        place = self._new_place(session_id)
        try:
            return self._create(place, body, ttl)
        except FileNotFoundError:
            self.make(place.shard)
            return self._create(place, body, ttl)

    def _create(self, place: Place, body: bytes, ttl: int) -> int | None:
        with place.lock:
            if os.path.exists(place.path) and _is_alive(place.path):
                return None
            revision = write_new(place.path, f"{place.shard}/.new", body, time.time() + ttl, self._fsync)
            if self._fsync:
                sync_folder(place.shard)
            return revision

    @available
    def move(self, session_id: str, new_id: str) -> bool:
        """Rename a session's file. Return ``True`` also when an earlier call did it, ``False`` without a session."""
        old, new = self._place(session_id), self._new_place(new_id)
        if old is None:
            return False
        try:
            return self._move(old, new)
        except FileNotFoundError:
            self.make(new.shard)
        try:
            return self._move(old, new)
        except FileNotFoundError:  # the shard of the old id does not exist, so neither does the session
            return False

    def _move(self, old: Place, new: Place) -> bool:
        with ExitStack() as stack:
            for place in sorted({old.shard: old, new.shard: new}.values()):  # a fixed order prevents deadlocks
                stack.enter_context(place.lock)
            alive, taken = _is_alive(old.path), _is_alive(new.path)
            if not alive or taken:
                return taken and not alive
            os.rename(old.path, new.path)
            if self._fsync:
                sync_folder(new.shard)
                sync_folder(old.shard)
            return True

    @available
    def remove(self, session_id: str) -> None:
        """Remove a session's file, if there is one."""
        place = self._place(session_id)
        if place is None:
            return
        try:
            with place.lock:
                os.unlink(place.path)
                if self._fsync:
                    sync_folder(place.shard)
        except FileNotFoundError:
            self.check()

    @available
    def shards(self) -> list[str]:
        """Return the paths of the existing shards."""
        self.check()
        return [f"{self.path}/{name}" for name in sorted(set(os.listdir(self.path)) & set(_SHARDS))]

    @available
    def places(self, shard: str) -> list[Place]:
        """Return the places of the files in a shard that are named like sessions."""
        with os.scandir(shard) as entries:
            return [
                Place(shard, entry.path)
                for entry in entries
                if FILE_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            ]

    @available
    def alive(self, places: list[Place]) -> list[str]:
        """Return the ids of the live sessions among `places`."""
        return [os.path.basename(place.path) for place in places if _is_alive(place.path)]

    @available
    def purge(self, places: list[Place], dry_run: bool) -> int:
        """Remove the expired and damaged files among `places`, all of one shard, and return how many.

        With `dry_run` only count them.
        """
        if dry_run:
            return sum(_is_dead(place.path) for place in places)
        removed = []
        with places[0].lock:  # no writer may renew a session between the look and the removal
            for place in places:
                if _is_dead(place.path):
                    os.unlink(place.path)
                    removed.append(os.path.basename(place.path))
        return Removed(removed)


def _is_alive(path: str) -> bool:
    """Whether the file holds a live session. Without the lock, ``False`` may be wrong: a writer may be at work."""
    try:
        return read_header(path).alive
    except (FileNotFoundError, Damaged):
        return False


def _is_dead(path: str) -> bool:
    """Whether the file has expired, or is damaged and has a name that only this engine gives."""
    try:
        return not read_header(path).alive
    except FileNotFoundError:
        return False
    except Damaged:
        return _HASHED_ID.fullmatch(os.path.basename(path)) is not None


def _unreadable(place: Place, error: Damaged) -> DecodeError:
    return DecodeError(f"the session file {place.path!r} is damaged: {error}")
