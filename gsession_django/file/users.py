"""Whose sessions: a folder for each user, and in it an empty file for each session in which that user is signed in.

All are in the folder ``users``, beside the shards. The name of a user's folder is the SHA-256 of the user's id, which
may be any text. A file is made before its session is stored, and removed after the session has ended. So a process that
dies in between leaves a file too many, a dead one, and whoever comes across it removes it.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from gsession_django.file.folder import FILE_NAME, SessionFolder, available
from gsession_django.file.session_file import FileLock, sync_folder
from gsession_django.serializers import DecodeError

# Seconds that a file may wait for its session to be stored.
_YOUNG: Final = 60.0


class UserFolders:
    """The index of one site.

    Args:
        sessions: where its sessions are.
        fsync: as for :class:`SessionFolder`.
    """

    def __init__(self, sessions: SessionFolder, fsync: bool) -> None:
        self.path = sessions.path
        self._sessions = sessions
        self._fsync = fsync
        self._users = f"{self.path}/users"

    @property
    def _lock(self) -> FileLock:
        """What keeps a file from being added again while it is removed as a dead one."""
        return FileLock(f"{self._users}/.lock")

    def _folder_of(self, user_id: str) -> str:
        return f"{self._users}/{hashlib.sha256(user_id.encode(errors='surrogatepass')).hexdigest()}"

    @available
    def add(self, user_id: str, session_id: str) -> None:
        """List a session, or list it anew."""
        if not FILE_NAME.fullmatch(session_id):
            return  # create() and move() refuse it, and say why
        folder = self._folder_of(user_id)
        while not self._add(folder, session_id):
            # It is not there, or somebody has just removed it, as it was empty.
            self._sessions.make(self._users)
            self._sessions.make(folder)
        if self._fsync:
            sync_folder(folder)

    def _add(self, folder: str, session_id: str) -> bool:
        try:
            with self._lock:
                path, now = f"{folder}/{session_id}", time.time()
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600))
                os.utime(path, (now, now))
        except FileNotFoundError:
            return False
        return True

    @available
    def remove(self, user_id: str, session_id: str) -> None:
        """Take a session out of the list of a user; remove the folder if it is empty then."""
        if FILE_NAME.fullmatch(session_id):
            folder = self._folder_of(user_id)
            try:
                os.unlink(f"{folder}/{session_id}")
            except FileNotFoundError:
                self._sessions.check()
            _remove_if_empty(folder)

    def sessions_of(self, user_id: str) -> list[str]:
        """Return the ids of the sessions of a user, the one that was added last at the end."""
        folder = self._folder_of(user_id)
        return self.clean(folder, self.listed(folder))

    def purge(self, batch_size: int) -> Iterator[int]:
        """Remove the dead files of all users; yield 0 once a step, between which nothing is held."""
        looked_at = 0
        for folder in self._folders():
            ids = self.listed(folder)
            for start in range(0, max(len(ids), 1), batch_size):
                batch = ids[start : start + batch_size]
                self.clean(folder, batch)
                looked_at += 1 + len(batch)
                if looked_at >= batch_size:
                    looked_at = 0
                    yield 0

    @available
    def _folders(self) -> list[str]:
        """Return the folders of all users."""
        self._sessions.check()
        return [f"{self._users}/{name}" for name in _names_in(self._users) if not name.startswith(".")]

    @available
    def listed(self, folder: str) -> list[str]:
        """Return the ids in the folder of a user, in the order in which they were added."""
        names = _names_in(folder)
        if not names:
            self._sessions.check()  # if the folder of the site is not there, nobody knows whether there are any
        added = {name: _time_of(f"{folder}/{name}") for name in names if FILE_NAME.fullmatch(name)}
        return sorted(added, key=added.__getitem__)

    @available
    def clean(self, folder: str, ids: list[str]) -> list[str]:
        """Remove those of `ids` whose sessions have ended, and the folder if it is empty then; return the others."""
        dead = [session_id for session_id in ids if not self._is_alive(session_id)]
        removed = {session_id for session_id in dead if self._remove_dead(folder, session_id)}
        if not ids or removed:
            _remove_if_empty(folder)
        return [session_id for session_id in ids if session_id not in removed]

    def _is_alive(self, session_id: str) -> bool:
        try:
            return self._sessions.read(session_id, lambda file: True) is not None
        except DecodeError:  # there is something, and a purge may remove it
            return True

    def _remove_dead(self, folder: str, session_id: str) -> bool:
        """Remove the file of a session that has ended, unless the session is about to be stored."""
        path = f"{folder}/{session_id}"
        try:
            with self._lock:
                # The time first: whoever adds the session again, and stores it, has to wait.
                if _time_of(path) > time.time() - _YOUNG or self._is_alive(session_id):
                    return False
                os.unlink(path)
        except FileNotFoundError:
            pass
        return True


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _time_of(path: str) -> float:
    """Return when a session was added; the beginning of time where it is not there any more."""
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return 0.0


def _remove_if_empty(folder: str) -> None:
    with suppress(OSError):  # it is not empty, or not there
        os.rmdir(folder)
