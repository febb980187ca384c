"""Sessions in files, shared by all processes of one machine. Most sites can begin with this engine."""

import os
import time
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error

from gsession_django.core.documents import decode_pairs, encode_pairs
from gsession_django.core.session_map import SessionMap
from gsession_django.core.storage import Storage
from gsession_django.core.store import SessionStore as BaseSessionStore
from gsession_django.file.folder import SessionFolder
from gsession_django.file.locks import LockFolder
from gsession_django.file.session_file import SessionFile
from gsession_django.file.users import UserFolders
from gsession_django.recording import System


class FileStorage(Storage):
    """Keeps each session in a file of its own, in ``SESSION_FILE_PATH``.

    A stored session survives the death of the process.

    Args:
        fsync: whether a stored session also survives a power cut. Each save then waits for the disk.
    """

    def __init__(self, fsync: bool = False) -> None:
        path = settings.SESSION_FILE_PATH
        self.folder = SessionFolder(None if path is None else os.fspath(path), fsync)
        self.users = UserFolders(self.folder, fsync)
        self.locks = LockFolder(self.folder)

    def system(self) -> System:
        return System("file")

    def get_session(self, session_id: str, ttl: int, data: Any = None) -> SessionMap | None:
        return self.folder.read(session_id, self._session)

    def _session(self, file: SessionFile) -> SessionMap:
        return SessionMap(decode_pairs(file.body()), file.header.revision, file.header.expires - time.time())

    def exists(self, session_id: str) -> bool:
        return self.folder.read(session_id, lambda file: True) is not None

    def update_ttl(self, session_id: str, ttl: int) -> bool:
        return self.folder.change(session_id, lambda file: file.renew(time.time() + ttl))

    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        session.version = self.folder.create(session_id, session.encoded(), ttl)
        return session.version is not None

    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        def change(file: SessionFile) -> None:
            expires = time.time() + ttl
            if file.header.revision == session.version or session.cleared:
                body = session.encoded()
            else:
                current = self._session(file)
                body = encode_pairs(session.merged_onto(current), {})
                if not session.renews_ttl(current):
                    expires = file.header.expires
            session.version = file.write(body, expires)

        return self.folder.change(session_id, change)

    def move(self, session_id: str, new_id: str, ttl: int) -> bool:
        return self.folder.move(session_id, new_id)

    def remove_all(self, session_id: str) -> None:
        self.folder.remove(session_id)

    def sessions_of(self, user_id: str) -> list[str]:
        return self.users.sessions_of(user_id)

    def add_to_user(self, user_id: str, session_id: str, ttl: int) -> None:
        self.users.add(user_id, session_id)

    def remove_from_user(self, user_id: str, session_id: str, ended: bool) -> None:
        if ended:
            self.folder.remove(session_id)
        self.users.remove(user_id, session_id)

    def lock(self, session_id: str, token: str, seconds: float) -> bool:
        return self.locks.take(session_id, token, seconds)

    def unlock(self, session_id: str, token: str) -> None:
        self.locks.free(session_id, token)

    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        for shard in self.folder.shards():
            places = self.folder.places(shard)
            for start in range(0, len(places), batch_size):
                yield self.folder.purge(places[start : start + batch_size], dry_run)
        if not dry_run:
            yield from self.users.purge(batch_size)
            yield from self.locks.purge(batch_size)

    def ids(self) -> Iterator[str]:
        for shard in self.folder.shards():
            yield from self.folder.alive(self.folder.places(shard))


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
                f"SESSION_FILE_PATH = {os.fspath(path)!r}: this folder does not exist.",
                hint="Create it, accessible only to the user that the site runs as, or mount its file system.",
                id="gsession_django.E008",
            )
        ]
