"""Locks that one holder has at a time, each until a moment: a file for each, in the folder ``locks`` beside the shards.

A file holds the holder's token and that moment, in seconds since 1970. Its name is the SHA-256 of the session id.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from gsession_django.file.folder import SessionFolder, available
from gsession_django.file.session_file import FileLock

_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class _Holder(NamedTuple):
    token: bytes
    until: float


class LockFolder:
    """The locks of one site.

    Args:
        sessions: where its sessions are.
    """

    def __init__(self, sessions: SessionFolder) -> None:
        self.path = sessions.path
        self._sessions = sessions
        self._locks = f"{self.path}/locks"

    @property
    def _one_at_a_time(self) -> FileLock:
        """What is held while any of the files is looked at, for a moment."""
        return FileLock(f"{self._locks}/.lock")

    def _path_of(self, session_id: str) -> str:
        return f"{self._locks}/{hashlib.sha256(_bytes_of(session_id)).hexdigest()}"

    @available
    def take(self, session_id: str, token: str, seconds: float) -> bool:
        """Do what ``Storage.lock`` says."""
        try:
            return self._take(session_id, token, seconds)
        except FileNotFoundError:
            self._sessions.make(self._locks)
            return self._take(session_id, token, seconds)

    def _take(self, session_id: str, token: str, seconds: float) -> bool:
        path = self._path_of(session_id)
        with self._one_at_a_time:
            now, holder = time.time(), _holder_of(path)
            if holder is not None and holder.until > now and holder.token != _bytes_of(token):
                return False
            # The moment last: where the disk is full and it is cut off, it is in the past.
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o600), "wb") as file:
                file.write(b"%b %r" % (_bytes_of(token), now + seconds))
            return True

    @available
    def free(self, session_id: str, token: str) -> None:
        """Do what ``Storage.unlock`` says."""
        path = self._path_of(session_id)
        try:
            with self._one_at_a_time:
                holder = _holder_of(path)
                if holder is not None and holder.token == _bytes_of(token):
                    os.unlink(path)
        except FileNotFoundError:
            self._sessions.check()

    def purge(self, batch_size: int) -> Iterator[int]:
        """Remove the files of locks that nobody holds any more; yield 0 once a step, between which nothing is held."""
        paths = self._paths()
        for start in range(0, len(paths), batch_size):
            self._remove_free(paths[start : start + batch_size])
            yield 0

    @available
    def _paths(self) -> list[str]:
        """Return all files of locks."""
        try:
            names = os.listdir(self._locks)
        except FileNotFoundError:
            self._sessions.check()
            return []
        return [f"{self._locks}/{name}" for name in names if not name.startswith(".")]

    @available
    def _remove_free(self, paths: list[str]) -> None:
        with self._one_at_a_time:
            for path in paths:
                holder = _holder_of(path)
                if holder is None or holder.until <= time.time():
                    with suppress(FileNotFoundError):
                        os.unlink(path)


def _holder_of(path: str) -> _Holder | None:
    """Return who has a lock; ``None`` where nobody has, or a process died that was about to take it."""
    try:
        with open(path, "rb") as file:
            token, space, until = file.read().rpartition(b" ")
        return _Holder(token, float(until)) if space else None
    except (FileNotFoundError, ValueError):
        return None


def _bytes_of(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
