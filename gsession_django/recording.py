"""The record of a call of a storage method, for tools that observe it (``observing.py``).

A storage adds to the record of its call with the functions here. While nobody observes, they do nothing.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class System:
    """The medium of a storage, by OpenTelemetry's conventions for databases
    (https://opentelemetry.io/docs/specs/semconv/db/database-spans/).

    Attributes:
        name: the product, in lower case: ``db.system.name``.
        is_server: whether the storage talks to another process.
        collection: the table, or its counterpart: ``db.collection.name``.
        namespace: the database: ``db.namespace``.
        address: the server's host or socket, as the settings name it: ``server.address``.
        port: the server's port: ``server.port``.
    """

    name: str
    is_server: bool = False
    collection: str | None = None
    namespace: str | None = None
    address: str | None = None
    port: int | None = None


@dataclass(slots=True, eq=False)
class StorageCall:
    """One call of a storage method. It holds no session key, no session id and no value.

    Attributes:
        system: the medium of the storage.
        operation: the method, without the ``a`` of a native twin.
        seconds: how long it took; 0 until it has ended.
        bytes_read, bytes_written: how much the storage read and wrote; ``None`` if it does not tell.
        merged: whether the storage merged the changes with those of another request.
        retries: how often the storage tried again.
        error: the dotted name of the exception that it raised, or for ``StorageUnavailable``, of the cause.
        unavailable: whether it raised ``StorageUnavailable``.
    """

    system: System
    operation: str
    seconds: float = 0.0
    bytes_read: int | None = None
    bytes_written: int | None = None
    merged: bool = False
    retries: int = 0
    error: str | None = None
    unavailable: bool = False


CALL: Final[ContextVar[StorageCall | None]] = ContextVar("gsession_django.call", default=None)
"""The current call of this thread or task, if anybody observes it."""


def read(size: int) -> None:
    """Record that the storage has read `size` bytes."""
    if (call := CALL.get()) is not None:
        call.bytes_read = (call.bytes_read or 0) + size


def written(size: int) -> None:
    """Record that the storage has written `size` bytes, or is about to."""
    if (call := CALL.get()) is not None:
        call.bytes_written = (call.bytes_written or 0) + size


def merged() -> None:
    """Record that the storage merges changes with those of another request."""
    if (call := CALL.get()) is not None:
        call.merged = True


def retried() -> None:
    """Record that the storage tries again."""
    if (call := CALL.get()) is not None:
        call.retries += 1
