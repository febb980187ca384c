"""One connection. redis-py opens it; a batch then goes over its socket directly.

redis-py's own sending and reading makes a load a tenth slower, and gives each read a timeout of its own.
tests/redis/test_names.py lists the private names of redis-py that are used here.
"""

import asyncio
import builtins
import math
import os
import select
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from redis._parsers.hiredis import NOT_ENOUGH_DATA, _HiredisParser
from redis.exceptions import ConnectionError, ReadOnlyError, RedisError, ResponseError, TimeoutError

from gsession_django.redis.settings import ASYNC_CONNECTIONS
from gsession_django.redis.steps import acall, call

DIRECT: Final = frozenset({*ASYNC_CONNECTIONS, *ASYNC_CONNECTIONS.values()})
"""The classes of redis-py's own connections, whose sockets are used directly."""
# The types of ordinary replies. An error has another one, and so has a message that the server pushes.
_SIMPLE: Final = frozenset({bytes, int, dict, list, type(None)})


def _looked_at(error: ResponseError) -> ResponseError:
    """Return a server's error. One of a replica becomes ``ConnectionError``: another server is the master by now."""
    # READONLY is in the middle where a script met it. A replica answers WAIT with the other text.
    if isinstance(error, ReadOnlyError) or "READONLY" in str(error) or "with replica" in str(error):
        raise ConnectionError(f"the server is a replica: {error}") from error
    return error.with_traceback(None)  # its frames hold the connection, and the replies with this error


def _meaning(error: OSError, timeout: float | None) -> RedisError:
    """Return redis-py's error for a socket's. With a number (ETIMEDOUT), the kernel has given the connection up."""
    if isinstance(error, builtins.TimeoutError) and error.errno is None:
        return TimeoutError(f"no answer within {timeout} seconds")
    return ConnectionError(f"{type(error).__name__}: {error}")


async def _through_redis(link: "Link", data: bytes, count: int, read: Callable[[], Any]) -> list[Any]:
    """Talk by redis-py's methods: with a connection class of the site's own, or without hiredis."""
    await link.call(link.connection.send_packed_command, [data])
    replies: list[Any] = []
    for _ in range(count):
        try:
            replies.append(await link.call(read))
        except ResponseError as error:
            replies.append(_looked_at(error))
    return replies


class Link:
    """A connection for threads, used by one at a time.

    Attributes:
        connection: redis-py's; it need not be open.
        used: ``time.monotonic()`` when the last batch began; minus infinity if there was none since it was opened.
        event, wait, sleep: how threads wait, for an event or some seconds.
    """

    event: Any = threading.Event
    wait: Any = staticmethod(threading.Event.wait)
    sleep: Any = staticmethod(time.sleep)
    call: Any = staticmethod(call)

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.used = -math.inf
        self._reader: Any = None

    async def open(self) -> None:
        """Connect, and log in; if it is open, close it first."""
        connection = self.connection
        connection.disconnect()
        connection.connect()
        self.used = -math.inf
        parser = connection._parser
        if type(connection) in DIRECT and issubclass(type(parser), _HiredisParser):
            self._sock, self._reader, self._buffer = connection._sock, parser._reader, parser._buffer
            while (news := self._reader.gets(False)) is not NOT_ENOUGH_DATA:  # of maintenance
                parser.handle_push_response(news)
            self._is_tls = isinstance(self._sock, ssl.SSLSocket)
            poll = select.poll()
            poll.register(self._sock, select.POLLIN)
            self._poll = poll.poll

    async def talk(self, data: bytes, count: int) -> list[Any]:
        """Send commands, and return the replies to them. The connection's timeout holds for all of it.

        A kept connection is opened again if the server has closed it, or if anything on it is unread.

        Args:
            data: the commands, packed.
            count: the number of commands.

        Returns:
            The replies. Where the server answered with an error, it is a ``ResponseError`` in the list.
        """
        try:
            if self.used > 0 and self._is_unclean():
                await self.open()
            self.used = time.monotonic()
            if self._reader is not None:
                return self._talk_directly(data, count)
            return await _through_redis(self, data, count, self._read)
        except OSError as error:
            raise _meaning(error, self.connection.socket_timeout) from error

    def _is_unclean(self) -> Any:
        """Return whether anything on its socket is unread, its end included."""
        if self._reader is None:
            try:
                return bool(self.connection.can_read())
            except RedisError:
                return True
        if not self._is_tls:
            return bool(self._reader.has_data() or self._poll(0))
        timeout = self._sock.gettimeout()
        try:
            self._sock.settimeout(0)
            self._sock.recv(1)
        except ssl.SSLWantReadError:  # the tickets of TLS make a socket readable, too
            return bool(self._reader.has_data())
        except OSError:
            pass
        finally:
            self._sock.settimeout(timeout)
        return True

    def _talk_directly(self, data: bytes, count: int) -> list[Any]:
        connection, sock, reader = self.connection, self._sock, self._reader
        if connection.health_check_interval:
            connection.check_health()
            connection.next_health_check = self.used + connection.health_check_interval
        timeout = sock.gettimeout()  # redis-py gives the server more time when it announces maintenance
        sock.sendall(data)
        replies: list[Any] = []
        while True:
            if not (length := sock.recv_into(self._buffer)):
                raise ConnectionError("the server has closed the connection")
            reader.feed(self._buffer, 0, length)
            while (reply := reader.gets(False)) is not NOT_ENOUGH_DATA:
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
                    if sock.gettimeout() != timeout:
                        sock.settimeout(timeout)
                    return replies
            if timeout is not None:
                if (left := self.used + timeout - time.monotonic()) <= 0:
                    raise builtins.TimeoutError
                sock.settimeout(left)

    def _read(self) -> Any:
        timeout = self.connection.socket_timeout
        options = {} if timeout is None else {"timeout": max(0.001, self.used + timeout - time.monotonic())}
        return self.connection.read_response(disable_decoding=True, **options)

    def close(self) -> None:
        self.connection.disconnect()

    async def release(self, pool: Any) -> None:
        """Give it back to the pool that lent it."""
        pool.release(self.connection)


class AsyncLink(Link):
    """The same for the tasks of one event loop."""

    event = asyncio.Event
    sleep = staticmethod(asyncio.sleep)
    call = staticmethod(acall)

    @staticmethod
    async def wait(event: asyncio.Event, seconds: float) -> None:
        with suppress(builtins.TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()

    async def open(self) -> None:
        self.close()
        await self.connection.connect()
        self.used = -math.inf

    async def talk(self, data: bytes, count: int) -> list[Any]:
        connection = self.connection
        if self.used > 0 and await self._is_unclean():
            await self.open()
        self.used = time.monotonic()
        try:
            async with asyncio.timeout(connection.socket_timeout):
                if connection.health_check_interval:
                    await connection.check_health()
                    connection.next_health_check = asyncio.get_running_loop().time() + connection.health_check_interval
                if type(connection) not in DIRECT:
                    read = partial(connection.read_response, disable_decoding=True)
                    return await _through_redis(self, data, count, read)
                try:
                    connection._writer.write(data)
                except RuntimeError as error:  # uvloop raises it if the connection was reset since the look
                    raise ConnectionError(str(error)) from error
                await connection._writer.drain()
                read = connection._parser.read_response
                replies = [await read(disable_decoding=True) for _ in range(count)]
        except OSError as error:
            raise _meaning(error, connection.socket_timeout) from error
        return [_looked_at(reply) if isinstance(reply, ResponseError) else reply for reply in replies]

    async def _is_unclean(self) -> bool:
        connection = self.connection
        try:
            # redis-py looks at what the event loop has read. The socket has what came while the loop stood still.
            # A connection that was reset has no end to read, and no socket.
            if await connection.can_read() or connection._writer.is_closing() or (file := _file_of(connection)) < 0:
                return True
        except RedisError:
            return True
        poll = select.poll()
        poll.register(file, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close it without waiting: a task that is being cancelled cannot wait."""
        self.connection._parser.on_disconnect()
        self.connection.reset_should_reconnect()
        self.connection._close()

    async def release(self, pool: Any) -> None:
        # A second cancellation would end it in the middle, and the pool would count the connection for ever.
        await asyncio.shield(pool.release(self.connection))


def _file_of(connection: Any) -> int:
    """Return the number of the file that an async connection's socket is; below 0 if it is closed."""
    sock = None if connection._writer is None else connection._writer.get_extra_info("socket")
    return -1 if sock is None else int(sock.fileno())


def let_go(connections: Iterable[Any]) -> None:
    """Let go of the sockets of these async connections, which a parent process goes on using.

    Another file takes the place of each socket. Closing or finalising these objects later then neither writes to the
    parent's sockets nor takes them out of its event loop, which the kernel shares between the two processes.
    """
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for connection in connections:
        if (file := _file_of(connection)) >= 0:
            os.dup2(nowhere, file, inheritable=False)
    os.close(nowhere)
