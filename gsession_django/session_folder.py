"""The folder in which sessions are files: where each is, and who may write there.

It holds 256 others, each with one lock, so that a million sessions are about 4,000 files a folder and writers of
different sessions rarely meet.
"""

import os
import re
import stat
import tempfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from django.utils.crypto import salted_hmac

from gsession_django.session_file import FileLock, sync_folder
from gsession_django.storage import StorageUnavailable

# Session ids that are file names, and the same ones where file systems do not know upper from lower case.
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")
_SHARDS = [f"{number:02x}" for number in range(256)]


def default_path() -> str:
    """Return the folder that is used where ``SESSION_FILE_PATH`` is not set: private, and of this site alone."""
    site = salted_hmac("gsession_django.backends.file", "folder", algorithm="sha256").hexdigest()[:12]
    return os.path.join(tempfile.gettempdir(), f"gsession-{os.geteuid()}-{site}")


class Place(NamedTuple):
    """Where a session's file is.

    Attributes:
        shard: the folder that it is in.
        path: the file.
    """

    shard: str
    path: str

    @property
    def lock(self) -> FileLock:
        """What writers of the shard hold, one at a time."""
        return FileLock(f"{self.shard}/.lock")

    @property
    def scratch(self) -> str:
        """The file by way of which the holder of the lock makes a new one."""
        return f"{self.shard}/.new"


class SessionFolder:
    """The folder of one site.

    Args:
        path: ``SESSION_FILE_PATH``, a folder that has to be there; with ``None`` a private one under the system's
            temporary directory, which is made when it is first needed.
    """

    def __init__(self, path: str | None) -> None:
        self._own = path is None
        self._root = default_path() if path is None else path
        self._checked = False

    def check(self) -> None:
        """Raise an ``OSError`` if the folder is not there, or is our own one and open to others."""
        if self._own:
            os.makedirs(self._root, 0o700, exist_ok=True)
            status = os.lstat(self._root)
            if not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077 or status.st_uid != os.geteuid():
                raise PermissionError(f"it is not a folder that only the user {os.geteuid()} can use")
        elif not os.path.isdir(self._root):
            raise FileNotFoundError("there is no such folder")
        self._checked = True

    def place(self, session_id: str) -> Place | None:
        """Return where the session is, if there is one; ``None`` for an id that no session can have."""
        if not _FILE_NAME.fullmatch(session_id):
            return None
        if not self._checked:
            self.check()
        shard = f"{self._root}/{_SHARDS[zlib.crc32(session_id.encode()) & 255]}"
        return Place(shard, f"{shard}/{session_id}")

    def make(self, shard: str, fsync: bool) -> None:
        """Make a shard, if it is not there yet."""
        self.check()
        try:
            os.mkdir(shard, 0o700)
        except FileExistsError:
            return
        if fsync:
            sync_folder(self._root)

    def shards(self) -> list[str]:
        """Return the shards that there are."""
        self.check()
        return [f"{self._root}/{name}" for name in sorted(set(os.listdir(self._root)) & set(_SHARDS))]

    @staticmethod
    def places(shard: str) -> Iterator[Place]:
        """Yield where there may be sessions in a shard."""
        with os.scandir(shard) as entries:
            for entry in entries:
                if _FILE_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    yield Place(shard, entry.path)

    def unavailable(self, error: OSError) -> StorageUnavailable:
        """Return what to raise for something that the file system cannot do."""
        return StorageUnavailable(
            f"The file session engine cannot use its folder {self._root!r} (SESSION_FILE_PATH): {error}. See that it "
            "is there, that it belongs to this process's user, and that its disk is neither full nor read-only."
        )
