"""A batch on a connection: what is common to all the ways to the server."""

import os
import select
from collections.abc import Iterable
from typing import Any, Protocol

import redis.asyncio.connection as aio_connection
from redis.exceptions import ConnectionError, ReadOnlyError, ResponseError, TimeoutError

from gsession_django.redis.commands import Batch


class Exchange(Protocol):
    """A way to send a batch and get its replies. What the server answers as an error is a ``ResponseError`` in them."""

    def __call__(self, batch: Batch) -> list[Any]: ...

    def leave_to_parent(self) -> None:
        """In a forked child: let go of the connections, which are the parent's."""


class AsyncExchange(Protocol):
    """The same, awaited. It belongs to one event loop."""

    async def __call__(self, batch: Batch) -> list[Any]: ...

    def leave_to_parent(self) -> None: ...

    async def aclose(self) -> None: ...


def talk(connection: Any, batch: Batch) -> list[Any]:
    """Send a batch on an open connection and return the replies, as redis-py does, which looks after its health."""
    connection.send_packed_command([batch.packed()])
    replies: list[Any] = []
    for _ in batch.commands:
        try:
            replies.append(connection.read_response(disable_decoding=True))
        except ResponseError as error:
            replies.append(looked_at(error))
    return replies


def connect_and_talk(connection: Any, batch: Batch) -> list[Any]:
    """The same, after connecting if need be."""
    connection.connect()
    return talk(connection, batch)


async def atalk(connection: Any, batch: Batch) -> list[Any]:
    """The same, awaited. redis-py has a timeout for each reply, and before Python 3.12 begins a task to send."""
    try:
        await connection.send_packed_command([batch.packed()])
    except RuntimeError as error:  # uvloop's, where the connection has been reset since it was looked at
        raise ConnectionError(str(error)) from error
    replies: list[Any] = []
    for _ in batch.commands:
        try:
            replies.append(await connection.read_response(disable_decoding=True))
        except ResponseError as error:
            replies.append(looked_at(error))
    return replies


async def aconnect_and_talk(connection: Any, batch: Batch) -> list[Any]:
    """The same, awaited."""
    await connection.connect()
    return await atalk(connection, batch)


def looked_at(error: ResponseError) -> ResponseError:
    """Return the error, unless it comes from a server that is a replica by now: Sentinel knows another."""
    if isinstance(error, ReadOnlyError) or "READONLY" in str(error):  # in the middle, where a script met it
        raise ConnectionError(str(error)) from error
    return error.with_traceback(None)  # its frames hold the replies, and so the error, and the connection


def may_repeat(batch: Batch, connection: Any, error: Exception) -> bool:
    """Whether to try once more, where that does no harm: after a connection was dropped, or as the settings say.

    A server that is slow to answer is not asked twice, or a visitor would wait twice as long.
    """
    # A replica has refused it: as we found out, or redis-py. Any other context may be what the caller is about.
    if isinstance(error.__cause__, ResponseError) or isinstance(error.__context__, ReadOnlyError):
        return True
    return batch.repeat and (not isinstance(error, TimeoutError) or connection.retry.get_retries() != 0)


def has_unread(connection: Any) -> bool:
    """Whether there is something on an async connection's socket, its end too, that the event loop has not read."""
    # Where it was reset, there is no end to read, and no socket any more.
    if connection._writer.is_closing() or (file := file_of(connection)) < 0:
        return True
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(0))


def file_of(connection: Any) -> int:
    """Return the number of the file that a connection's socket is; below 0 if it is closed."""
    if isinstance(connection, aio_connection.AbstractConnection):
        sock = None if connection._writer is None else connection._writer.get_extra_info("socket")
    else:
        sock = connection._sock
    return -1 if sock is None else int(sock.fileno())


def let_go(connections: Iterable[Any]) -> None:
    """Let go of the sockets of these connections, which a parent process goes on using.

    Whatever is done to these objects later, to close or finalise them, meets another file in their place: it neither
    writes to the parent's sockets nor takes them out of its event loop, which the kernel shares between the two.
    """
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for connection in connections:
        if (file := file_of(connection)) >= 0:
            os.dup2(nowhere, file, inheritable=False)
    os.close(nowhere)
