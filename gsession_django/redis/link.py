"""One connection: redis-py opens it, and a batch then goes over its socket directly.

redis-py's own way to send a batch and to read short replies makes a load a tenth slower, and gives each read a timeout
of its own. The names of redis-py's that this takes are listed in tests/test_redis_names.py.
"""

import asyncio
import builtins
import math
import os
import select
import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any, Final

import redis.asyncio.connection as aio_connection
import redis.asyncio.sentinel as aio_sentinel
import redis.connection as sync_connection
import redis.sentinel as sync_sentinel
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.exceptions import ConnectionError, ReadOnlyError, RedisError, ResponseError, TimeoutError

_DIRECT: Final = (
    sync_connection.Connection,
    sync_connection.SSLConnection,
    sync_connection.UnixDomainSocketConnection,
    sync_sentinel.SentinelManagedConnection,
    sync_sentinel.SentinelManagedSSLConnection,
    aio_connection.Connection,
    aio_connection.SSLConnection,
    aio_connection.UnixDomainSocketConnection,
    aio_sentinel.SentinelManagedConnection,
    aio_sentinel.SentinelManagedSSLConnection,
)
# What replies are as a rule; an error is of none of these types, and neither is what the server pushes in between.
_SIMPLE: Final = frozenset({bytes, int, dict, list, type(None)})


class Stale(ConnectionError):
    """A kept connection was closed by the server, or something unread lies on it. Nothing has been sent."""


def is_direct(connection_class: type) -> bool:
    """Return whether connections of this class are redis-py's own, and their sockets may be used directly."""
    return connection_class in _DIRECT


def _looked_at(error: ResponseError) -> ResponseError:
    """Return the error, unless a replica has answered it: then another server is the master by now."""
    # In the middle, where a script met it; the other is what WAIT is answered.
    if isinstance(error, ReadOnlyError) or "READONLY" in str(error) or "with replica" in str(error):
        raise ConnectionError(f"the server is a replica: {error}") from error
    return error.with_traceback(None)  # its frames hold the replies, and so the error, and the connection


def _no_answer(timeout: float | None) -> TimeoutError:
    return TimeoutError("no answer in time" if timeout is None else f"no answer within {timeout:g} seconds")


class Link:
    """A connection for threads, used by one at a time.

    Args:
        connection: redis-py's; it need not be open.

    Attributes:
        connection: the same.
        used: ``time.monotonic()`` when the last batch began; minus infinity if there was none since it was opened.
    """

    event = threading.Event
    pause = staticmethod(time.sleep)

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.used = -math.inf
        self._reader: Any = None

    @staticmethod
    def wait(event: threading.Event, seconds: float | None) -> bool:
        """Return whether the event has come within some seconds; ``None`` waits for ever."""
        return event.wait(seconds)

    def open(self) -> None:
        """Connect, and log in; if it is open, close it first."""
        connection = self.connection
        connection.disconnect()
        connection.connect()
        self.used = -math.inf
        parser = connection._parser
        if is_direct(type(connection)) and hasattr(getattr(parser, "_reader", None), "gets"):
            self._sock, self._reader, self._buffer = connection._sock, parser._reader, parser._buffer
            while (news := self._reader.gets(False)) is not NOT_ENOUGH_DATA:  # of maintenance
                parser.handle_push_response(news)
            self._is_tls = isinstance(self._sock, ssl.SSLSocket)
            poll = select.poll()
            poll.register(self._sock, select.POLLIN)
            self._poll = poll.poll

    def talk(self, data: bytes, count: int, start: float) -> list[Any]:
        """Send commands, and return the replies to them.

        Args:
            data: the commands, packed.
            count: the number of commands.
            start: ``time.monotonic()``, from when on the connection's timeout counts, for all of it.

        Returns:
            The replies. Where the server answered with an error, it is a ``ResponseError`` in the list.
        """
        try:
            return (self._talk_directly if self._reader else self._talk_through_redis)(data, count, start)
        except OSError as error:
            if isinstance(error, builtins.TimeoutError) and error.errno is None:
                raise _no_answer(self.connection.socket_timeout) from error
            # ETIMEDOUT too: the kernel has given the connection up.
            raise ConnectionError(f"{type(error).__name__}: {error}") from error

    def _is_unclean(self) -> bool:
        if self._reader is None:
            try:
                return bool(self.connection.can_read())
            except RedisError:
                return True
        if self._reader.has_data():
            return True
        if not self._is_tls:
            return bool(self._poll(0))
        if self._sock.pending():
            return True
        timeout = self._sock.gettimeout()
        try:
            self._sock.settimeout(0)
            self._sock.recv(1)
        except ssl.SSLWantReadError:  # the tickets of TLS make a socket readable, too
            return False
        finally:
            self._sock.settimeout(timeout)
        return True

    def _talk_directly(self, data: bytes, count: int, start: float) -> list[Any]:
        if self.used > 0 and self._is_unclean():
            raise Stale("the server has closed the connection")
        connection, sock, reader = self.connection, self._sock, self._reader
        gets = reader.gets
        if connection.health_check_interval:
            connection.check_health()
            connection.next_health_check = start + connection.health_check_interval
        timeout = sock.gettimeout()  # redis-py gives the server more time when it announces maintenance
        replies: list[Any] = []
        sock.sendall(data)
        while True:
            if not (length := sock.recv_into(self._buffer)):
                raise ConnectionError("the server has closed the connection")
            reader.feed(self._buffer, 0, length)
            while len(replies) < count and (reply := gets(False)) is not NOT_ENOUGH_DATA:
                if type(reply) not in _SIMPLE:
                    if isinstance(reply, ConnectionError):  # it is loading its data, for one
                        raise reply
                    if isinstance(reply, list):
                        connection._parser.handle_push_response(reply)
                        continue
                    if isinstance(reply, ResponseError):
                        reply = _looked_at(reply)
                replies.append(reply)
            if len(replies) == count:
                break
            if timeout is not None:
                if (left := start + timeout - time.monotonic()) <= 0:
                    raise _no_answer(timeout)
                sock.settimeout(left)
        if sock.gettimeout() != timeout:
            sock.settimeout(timeout)
        return replies

    def _talk_through_redis(self, data: bytes, count: int, start: float) -> list[Any]:
        """The same for a connection class of the site's own, and without hiredis: the deadline is for each reply."""
        connection, timeout = self.connection, self.connection.socket_timeout
        if self.used > 0 and self._is_unclean():
            raise Stale("the server has closed the connection")
        connection.send_packed_command([data])
        replies: list[Any] = []
        for _ in range(count):
            options = {} if timeout is None else {"timeout": max(0.001, start + timeout - time.monotonic())}
            try:
                replies.append(connection.read_response(disable_decoding=True, **options))
            except ResponseError as error:
                replies.append(_looked_at(error))
        return replies

    def close(self) -> None:
        self.connection.disconnect()

    def release(self, pool: Any) -> None:
        """Give it back to the pool that lent it."""
        pool.release(self.connection)


class AsyncLink:
    """The same for one event loop."""

    event = asyncio.Event
    pause = staticmethod(asyncio.sleep)

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.used = -math.inf
        self._direct = is_direct(type(connection))

    @staticmethod
    async def wait(event: asyncio.Event, seconds: float | None) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await event.wait()
        except builtins.TimeoutError:
            return False

    async def open(self) -> None:
        self.close()
        await self.connection.connect()
        self.used = -math.inf

    async def talk(self, data: bytes, count: int, start: float) -> list[Any]:
        connection = self.connection
        if self.used > 0 and await self._is_unclean():
            raise Stale("the server has closed the connection")
        try:
            async with asyncio.timeout(connection.socket_timeout):
                if connection.health_check_interval:
                    await connection.check_health()
                if not self._direct:
                    return await self._talk_through_redis(data, count)
                try:
                    connection._writer.write(data)
                except RuntimeError as error:  # uvloop's, where the connection was reset since it was looked at
                    raise ConnectionError(str(error)) from error
                await connection._writer.drain()
                read = connection._parser.read_response
                replies = [await read(disable_decoding=True) for _ in range(count)]
                replies = [_looked_at(reply) if isinstance(reply, ResponseError) else reply for reply in replies]
        except builtins.TimeoutError as error:
            if error.errno is not None:  # ETIMEDOUT: the kernel has given the connection up
                raise ConnectionError(f"{type(error).__name__}: {error}") from error
            raise _no_answer(connection.socket_timeout) from error
        except OSError as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        if connection.health_check_interval:
            connection.next_health_check = asyncio.get_running_loop().time() + connection.health_check_interval
        return replies

    async def _is_unclean(self) -> bool:
        try:
            # redis-py looks at what the event loop has read; what came while the loop stood still is in the socket.
            return await self.connection.can_read() or _has_unread(self.connection)
        except RedisError:
            return True

    async def _talk_through_redis(self, data: bytes, count: int) -> list[Any]:
        await self.connection.send_packed_command([data])
        replies: list[Any] = []
        for _ in range(count):
            try:
                replies.append(await self.connection.read_response(disable_decoding=True))
            except ResponseError as error:
                replies.append(_looked_at(error))
        return replies

    def close(self) -> None:
        """Close it without waiting: a task that is being cancelled cannot wait."""
        self.connection._parser.on_disconnect()
        self.connection.reset_should_reconnect()
        self.connection._close()

    async def release(self, pool: Any) -> None:
        # A second cancellation would end it in the middle, and the pool would count the connection for ever.
        await asyncio.shield(pool.release(self.connection))


def _has_unread(connection: Any) -> bool:
    """Return whether there is something on an async connection's socket, its end too, that the loop has not read."""
    # Where it was reset, there is no end to read, and no socket any more.
    if connection._writer.is_closing() or (file := _file_of(connection)) < 0:
        return True
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(0))


def _file_of(connection: Any) -> int:
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
        if (file := _file_of(connection)) >= 0:
            os.dup2(nowhere, file, inheritable=False)
    os.close(nowhere)
