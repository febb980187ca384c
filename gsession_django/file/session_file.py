"""One session in one file: a header, and behind it room for two bodies, the current one and the next.

A writer writes the new body beside the current one and then points the header at it, in one write of a few bytes. A
process that is killed at any moment leaves the previous session or the new one, and a full disk leaves the previous
one. No file is renamed over another, which is slow on many file systems. A touch rewrites only the header.

Readers take no lock. A reader may see a header and a body that do not belong together while a writer writes. The
checksum and the tag reveal that, and the reader tries again under the writers' lock before it calls the file damaged.

The tag is that of the file's name and its body (:mod:`gsession_django.core.signing`): a file that something else than
this site has written, or has given another name, is damaged. It covers neither the expiry nor the revision, because a
touch does not read the body. So whoever can write to the folder can end a session, prolong it, or bring back what it
once held.
"""

import errno
import os
import struct
import time
import zlib
from typing import NamedTuple

from django.core.files import locks

from gsession_django import recording
from gsession_django.core.signing import NOT_OURS, TAG_SIZE, has_tag, tag_of

MAGIC = b"GSF1"
_PURPOSE = "file"
# Magic, expiry (seconds since 1970), revision, the body's offset and length, two tags; then the header's own checksum.
_FIELDS = struct.Struct(f"<4sdQII{TAG_SIZE}s{TAG_SIZE}s")
_HEADER = struct.Struct(f"{_FIELDS.format}I")
HEADER_SIZE = _HEADER.size
_READ_SIZE = 8192
# A write cuts off the end of a file when at least so many bytes there are unused.
_SLACK = 65536
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
# A link or a pipe may have the name of a session: do not follow the one, do not wait for the other.
_SESSION_FLAGS = _FLAGS | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_NO_FILE = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EAGAIN})


class Damaged(ValueError):
    """The file does not hold a whole session in this format."""


class Header(NamedTuple):
    """The header of a file.

    Attributes:
        expires: when the session expires, in seconds since 1970.
        revision: grows by one at each change of the body. A touch does not change it.
        offset: where the body begins, in bytes.
        length: the length of the body, in bytes.
        tag: the tag of the body under the file's name.
        other_tag: the same; while the file gets another name, the tag under that.
    """

    expires: float
    revision: int
    offset: int
    length: int
    tag: bytes
    other_tag: bytes

    @classmethod
    def unpack(cls, data: bytes) -> "Header":
        """Return the header at the start of `data`, or raise :class:`Damaged`."""
        if len(data) < HEADER_SIZE:
            raise Damaged(f"it has {len(data)} bytes, fewer than a header")
        magic, *fields, own = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise Damaged("it does not begin as a session file does")
        if own != zlib.crc32(data[: _FIELDS.size]):
            raise Damaged("its header does not match its checksum")
        return cls._make(fields)

    def pack(self) -> bytes:
        fields = _FIELDS.pack(MAGIC, *self)
        return fields + zlib.crc32(fields).to_bytes(4, "little")

    @property
    def alive(self) -> bool:
        return self.expires > time.time()


class FileLock:
    """A lock that one thread on this machine holds at a time, across processes. The death of a process frees it.

    Args:
        path: the lock's file, created when missing; ``FileNotFoundError`` when its folder does not exist.
    """

    __slots__ = ("_fd", "_path")

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        # Opened anew each time: threads or forks that share an open file would share its lock.
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        try:
            if not locks.lock(self._fd, locks.LOCK_EX):
                raise OSError(errno.ENOLCK, "this platform or file system has no file locks", self._path)
        except BaseException:
            os.close(self._fd)
            raise

    def __exit__(self, *exc: object) -> None:
        # Closing is not enough: a process forked meanwhile still has the file open.
        locks.unlock(self._fd)
        os.close(self._fd)


class SessionFile:
    """An open session file.

    Args:
        path: the file; ``FileNotFoundError`` when it does not exist.
        writable: whether to open it for writing too. The caller must then hold the writers' lock.
        fsync: whether each write waits until the disk has it.
    """

    __slots__ = ("_fd", "_fsync", "_name", "_start", "header")

    def __init__(self, path: str, writable: bool = False, fsync: bool = False) -> None:
        self._name = name_of(path)
        self._fsync = fsync
        self._fd = _open(path, os.O_RDWR if writable else os.O_RDONLY)
        try:
            self._start = _head(self._fd, HEADER_SIZE if writable else _READ_SIZE)
            self.header = Header.unpack(self._start)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> "SessionFile":
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def body(self) -> bytes:
        """Return the session's bytes, or raise :class:`Damaged`."""
        head = self.header
        body = self._start[head.offset : head.offset + head.length]
        if len(body) < head.length:
            if head.offset + head.length > os.fstat(self._fd).st_size:
                raise Damaged("its body ends too early")
            os.lseek(self._fd, head.offset, os.SEEK_SET)
            body = _read(self._fd, head.length)
        if not has_tag(_PURPOSE, self._name, body, head.tag, head.other_tag):
            raise Damaged(NOT_OURS)
        recording.read(len(body))
        return body

    def write(self, body: bytes, expires: float) -> int:
        """Replace the body and the expiry, and return the new revision."""
        recording.written(len(body))
        old = self.header
        front = HEADER_SIZE + len(body) <= old.offset
        offset = HEADER_SIZE if front else old.offset + old.length
        os.lseek(self._fd, offset, os.SEEK_SET)
        try:
            _write(self._fd, body)
        except OSError:
            if not front:  # free the space: other files may need it on a full disk
                os.ftruncate(self._fd, offset)
            raise
        if self._fsync:
            os.fsync(self._fd)
        tag = tag_of(_PURPOSE, self._name, body)
        self._point(Header(expires, (old.revision + 1) % 2**64, offset, len(body), tag, tag))
        if front and old.offset + old.length - offset - len(body) >= _SLACK:
            os.ftruncate(self._fd, offset + len(body))
        return self.header.revision

    def renew(self, expires: float) -> None:
        """Store a new expiry."""
        self._point(self.header._replace(expires=expires))

    def before_move(self, path: str) -> None:
        """Let the file be read under another path too, or raise :class:`Damaged` if it cannot be read under its own.

        So a process that is killed before it moves the file, or after that, leaves a whole session.
        """
        body = self.body()
        tag, other_tag = (tag_of(_PURPOSE, name, body) for name in (self._name, name_of(path)))
        self._point(self.header._replace(tag=tag, other_tag=other_tag))

    def after_move(self) -> None:
        """Let the file be read under its new path only: nobody can bring the session back under the former one."""
        self._point(self.header._replace(tag=self.header.other_tag))

    def _point(self, header: Header) -> None:
        os.lseek(self._fd, 0, os.SEEK_SET)
        _write(self._fd, header.pack())
        if self._fsync:
            os.fsync(self._fd)
        self.header = header


def name_of(path: str) -> str:
    """Return the name of a session file, which is the session's id."""
    return path[path.rfind("/") + 1 :]


def read_header(path: str) -> Header:
    """Return a file's header without reading the body.

    Raises:
        FileNotFoundError: the file does not exist.
        Damaged: it has no valid header. Without the writers' lock a writer may be at work instead.
    """
    fd = _open(path, os.O_RDONLY)
    try:
        return Header.unpack(_head(fd, HEADER_SIZE))
    finally:
        os.close(fd)


def write_new(path: str, scratch: str, body: bytes, expires: float, fsync: bool = False) -> int:
    """Create the session file `path` atomically, by way of the file `scratch`, and return its first revision.

    The caller must hold the writers' lock, or two writers would use `scratch`. This overwrites the `scratch` that a
    killed process left.
    """
    recording.written(len(body))
    # Random: nobody may take a session that was created again under an old id for the old one.
    revision = int.from_bytes(os.urandom(8), "little")
    tag = tag_of(_PURPOSE, name_of(path), body)
    header = Header(expires, revision, HEADER_SIZE, len(body), tag, tag)
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o600)
    try:
        try:
            _write(fd, header.pack() + body)
        except OSError:
            os.ftruncate(fd, 0)  # free the space: other files may need it on a full disk
            raise
        if fsync:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(scratch, path)
    return revision


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | _SESSION_FLAGS)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise Damaged(f"it is not a regular file: {error.strerror}") from error
        raise


def _head(fd: int, size: int) -> bytes:
    try:
        return os.read(fd, size)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise Damaged(f"it is not a regular file: {error.strerror}") from error
        raise


def _read(fd: int, size: int) -> bytes:
    parts = []
    while size > 0 and (part := os.read(fd, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_folder(path: str) -> None:
    """Wait until the disk has every file created, renamed or removed in the folder `path`."""
    fd = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
