"""The ways to the server: connections that are kept between operations, or redis-py's ordinary client."""

import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

import redis.asyncio.connection as aio_connection
import redis.asyncio.sentinel as aio_sentinel
import redis.connection as sync_connection
import redis.sentinel as sync_sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ConnectionError,
    MaxConnectionsError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from gsession_django.redis_commands import Batch

# What connections are kept of: not what a site has written itself, or what needs its pool between two operations.
_KEPT_POOLS: Final = (
    sync_connection.ConnectionPool,
    sync_sentinel.SentinelConnectionPool,
    aio_connection.ConnectionPool,
    aio_sentinel.SentinelConnectionPool,
)
_SENTINEL_POOLS: Final = (sync_sentinel.SentinelConnectionPool, aio_sentinel.SentinelConnectionPool)
_KEPT_CONNECTIONS: Final = (
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
# Seconds for which the master stays the one that Sentinel has named: no server is taken for dead in less.
_NAMED_FOR: Final = 1.0
_NEED_THEIR_POOL: Final = frozenset({"cache", "cache_config", "credential_provider"})


class Exchange(Protocol):
    """A way to send a batch and get its replies. What the server answers as an error is a ``ResponseError`` in them."""

    def __call__(self, batch: Batch) -> list[Any]: ...


class AsyncExchange(Protocol):
    """The same, awaited. It belongs to one event loop."""

    async def __call__(self, batch: Batch) -> list[Any]: ...

    async def aclose(self) -> None: ...


class _Kept:
    """Connections that are kept between operations: leasing one from redis-py's pool costs as much as using it.

    One is used by one thread or task at a time, and never again once a reply on it was not read to the end.

    Args:
        pool: makes the connections, and says how many there may be (``max_connections``).
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._follows_master = isinstance(pool, _SENTINEL_POOLS)
        self._ask_at = 0.0
        self._idle: list[Any] = []
        self._closed: list[Any] = []
        self._making = threading.Lock()
        self._made = 0

    def _another(self) -> Any:
        """Return a connection that is not open."""
        try:
            return self._closed.pop()
        except IndexError:
            with self._making:
                if self._made >= self._pool.max_connections:
                    raise MaxConnectionsError(
                        f"All {self._made} connections are in use. Raise max_connections in CONNECTION_POOL_KWARGS."
                    ) from None
                connection = self._pool.make_connection()
                self._made += 1
                return connection

    def _has_to_ask(self) -> bool:
        """Whether it is time to ask Sentinel for the master: one that stood still does not know that it was replaced,
        and connections to it that were idle meanwhile do not show it.
        """
        return time.monotonic() >= self._ask_at

    def _asked(self, start: float) -> None:
        """Take note of when to ask again: later if it took long, as with sentinels that are gone."""
        end = time.monotonic()
        self._ask_at = end + max(_NAMED_FOR, 10 * (end - start))

    def _has_to_go(self, connection: Any) -> bool:
        """Whether the server asked to connect anew, or Sentinel has named another one since."""
        if self._follows_master and self._pool.master_address != (connection.host, connection.port):
            return True
        asked: bool = connection.should_reconnect()
        return asked


class Kept(_Kept):
    """Kept connections for threads."""

    def __init__(self, pool: Any) -> None:
        super().__init__(pool)
        self._unread: dict[Any, Callable[[], object]] = {}

    def __call__(self, batch: Batch) -> list[Any]:
        try:
            connection, kept = self._idle.pop(), True
        except IndexError:
            connection, kept = self._another(), False
        try:
            if not (kept and self._is_clean(connection)):
                connection.disconnect()
                connection.connect()
                self._unread[connection] = _settled(connection)
            try:
                replies = _talk(connection, batch)
            except (ConnectionError, TimeoutError) as error:
                if not _may_repeat(batch, connection, error):
                    raise
                connection.disconnect()
                replies = connection.retry.call_with_retry(
                    lambda: _connect_and_talk(connection, batch), lambda error: connection.disconnect()
                )
                self._unread[connection] = _settled(connection)
        except BaseException:
            connection.disconnect()
            self._closed.append(connection)
            raise
        self._idle.append(connection)
        return replies

    def __del__(self) -> None:
        # redis-py's connections are left to the garbage collector, which may come to their sockets first, and warn.
        for connection in self._idle:
            connection.disconnect()
        if self._follows_master:
            for sentinel in self._pool.sentinel_manager.sentinels:
                sentinel.close()

    def _is_clean(self, connection: Any) -> bool:
        """Whether a kept connection is still open, with nothing on it that nobody has read."""
        try:
            if self._follows_master and self._has_to_ask():
                start = time.monotonic()
                with suppress(RedisError, OSError):  # the master may be there without them
                    self._pool.get_master_address()
                self._asked(start)
            return not (self._unread[connection]() or self._has_to_go(connection))
        except (RedisError, OSError):
            return False


def _settled(connection: Any) -> Callable[[], object]:
    """Make an open connection quick to use, and return what tells whether anything on it, its end too, is unread.

    Python asks the kernel whether a socket with a timeout is ready before each call; a kernel that keeps the timeout
    itself needs no asking. And redis-py's ``can_read()`` makes what it polls with anew each time, which takes longer
    than to poll. Both are left as they are where the socket is not a plain one of Python's, but TLS's or gevent's.
    """
    sock, has_data = connection._sock, getattr(getattr(connection._parser, "_reader", None), "has_data", None)
    plain = type(sock) is socket.socket and socket.socket.__module__ == "socket"
    if not plain or has_data is None or connection.health_check_interval:
        look: Callable[[], object] = connection.can_read
        return look
    if timeout := connection.socket_timeout:
        seconds, fraction = divmod(timeout, 1)
        kernels = struct.pack("@ll", int(seconds), max(1, int(fraction * 1_000_000)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, kernels)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, kernels)
        sock.settimeout(None)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return lambda: poll.poll(0) or has_data()


def _talk(connection: Any, batch: Batch) -> list[Any]:
    try:
        connection.send_packed_command(batch.packed())
        read = connection._parser.read_response  # the connection's own takes three times as long for a short reply
        replies = [read(disable_decoding=True) for _ in batch.commands]
    except ConnectionError as error:
        if isinstance(error.__context__, BlockingIOError):  # which is how the kernel says that the time is over
            raise TimeoutError(f"no answer within {connection.socket_timeout:g} seconds.") from error
        raise
    except OSError as error:
        raise ConnectionError(f"{type(error).__name__}: {error}.") from error
    for reply in replies:
        if isinstance(reply, ResponseError):
            _looked_at(reply)
    return replies


def _connect_and_talk(connection: Any, batch: Batch) -> list[Any]:
    connection.connect()
    return _talk(connection, batch)


class AsyncKept(_Kept):
    """Kept connections of one event loop."""

    async def __call__(self, batch: Batch) -> list[Any]:
        try:
            connection, kept = self._idle.pop(), True
        except IndexError:
            connection, kept = self._another(), False
        try:
            if not (kept and await self._is_clean(connection)):
                await connection.disconnect(nowait=True)
                await connection.connect()
            try:
                replies = await _atalk(connection, batch)
            except (ConnectionError, TimeoutError) as error:
                if not _may_repeat(batch, connection, error):
                    raise
                await connection.disconnect(nowait=True)
                replies = await connection.retry.call_with_retry(
                    lambda: _aconnect_and_talk(connection, batch), lambda error: connection.disconnect(nowait=True)
                )
        except BaseException:
            self._closed.append(connection)
            await connection.disconnect(nowait=True)
            raise
        self._idle.append(connection)
        return replies

    async def _is_clean(self, connection: Any) -> bool:
        try:
            if self._follows_master and self._has_to_ask():
                start = time.monotonic()
                with suppress(RedisError, OSError):
                    await self._pool.get_master_address()
                self._asked(start)
            # redis-py looks at what the event loop has read; what came while the loop stood still is in the socket.
            return not (await connection.can_read() or _has_unread(connection) or self._has_to_go(connection))
        except (RedisError, OSError):
            return False

    async def aclose(self) -> None:
        for connection in self._idle:
            await connection.disconnect()
        if self._follows_master:
            for sentinel in self._pool.sentinel_manager.sentinels:
                await sentinel.aclose()


def _has_unread(connection: Any) -> bool:
    """Whether there is something on the socket, its end too, that the event loop has not read."""
    if connection._writer.is_closing():  # it was reset: then there is no end to read, and no socket any more
        return True
    poll = select.poll()
    poll.register(connection._writer.get_extra_info("socket"), select.POLLIN)
    return bool(poll.poll(0))


async def _atalk(connection: Any, batch: Batch) -> list[Any]:
    try:
        await connection.send_packed_command(batch.packed())
    except RuntimeError as error:  # uvloop's, where the connection has been reset since it was looked at
        raise ConnectionError(str(error)) from error
    replies: list[Any] = []
    for _ in batch.commands:
        try:
            replies.append(await connection.read_response(disable_decoding=True))
        except ResponseError as error:
            replies.append(_looked_at(error))
    return replies


async def _aconnect_and_talk(connection: Any, batch: Batch) -> list[Any]:
    await connection.connect()
    return await _atalk(connection, batch)


def _looked_at(error: ResponseError) -> ResponseError:
    """Return the error, unless it comes from a server that is a replica by now: Sentinel knows another."""
    if isinstance(error, ReadOnlyError) or "READONLY" in str(error):  # in the middle, where a script met it
        raise ConnectionError(str(error)) from error
    return error.with_traceback(None)  # its frames hold the replies, and so the error, and the connection


def _may_repeat(batch: Batch, connection: Any, error: Exception) -> bool:
    """Whether to try once more, where that does no harm: after a connection was dropped, or as the settings say.

    A server that is slow to answer is not asked twice, or a visitor would wait twice as long.
    """
    if isinstance(error.__cause__ or error.__context__, ResponseError):  # a replica has refused it
        return True
    return batch.repeat and (not isinstance(error, TimeoutError) or connection.retry.get_retries() != 0)


class Ordinary:
    """redis-py's own client, for what no connections are kept of. It too tries once more after a dropped connection."""

    def __init__(self, client: Any) -> None:
        self._client = client
        client.connection_pool.connection_kwargs.setdefault("retry", Retry(NoBackoff(), 1, (ConnectionError,)))

    def __call__(self, batch: Batch) -> list[Any]:
        with self._client.pipeline(transaction=False) as pipeline:
            for command in batch.commands:
                pipeline.execute_command(*command)
            replies: list[Any] = pipeline.execute(raise_on_error=False)
        return replies


class AsyncOrdinary:
    """The same for one event loop."""

    def __init__(self, client: Any) -> None:
        self._client = client
        errors: Any = ConnectionError, RuntimeError  # the latter is uvloop's, where the connection was reset
        client.connection_pool.connection_kwargs.setdefault("retry", AsyncRetry(NoBackoff(), 1, errors))

    async def __call__(self, batch: Batch) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipeline:
            for command in batch.commands:
                pipeline.execute_command(*command)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies

    async def aclose(self) -> None:
        await self._client.aclose(close_connection_pool=True)


def can_keep(pool: Any) -> bool:
    """Return whether connections may be kept that this pool makes."""
    return (
        type(pool) in _KEPT_POOLS
        and pool.connection_class in _KEPT_CONNECTIONS
        and _NEED_THEIR_POOL.isdisjoint(name for name, value in pool.connection_kwargs.items() if value is not None)
        and getattr(pool, "cache", None) is None
    )
