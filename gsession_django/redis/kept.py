"""Connections that are kept between operations: the quickest way to the server."""

import asyncio
import builtins
import threading
import time
import weakref
from contextlib import suppress
from typing import Any, Final

import redis.asyncio.connection as aio_connection
import redis.asyncio.sentinel as aio_sentinel
import redis.connection as sync_connection
import redis.sentinel as sync_sentinel
from redis.exceptions import ConnectionError, MaxConnectionsError, RedisError, ResponseError, TimeoutError

from gsession_django.redis.commands import Batch
from gsession_django.redis.exchange import (
    aconnect_and_talk,
    atalk,
    connect_and_talk,
    has_unread,
    let_go,
    looked_at,
    may_repeat,
    talk,
)
from gsession_django.redis.line import line_of

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
        # Not a number: a connection that an exception has lost between two lines counts no longer.
        self._made: weakref.WeakSet[Any] = weakref.WeakSet()

    def leave_to_parent(self) -> None:
        let_go(self._made)

    def _another(self) -> Any:
        """Return a connection that is not open."""
        try:
            return self._closed.pop()
        except IndexError:
            with self._making:
                if len(self._made) >= self._pool.max_connections:
                    raise MaxConnectionsError(
                        f"All {len(self._made)} connections are in use. Raise max_connections in "
                        "CONNECTION_POOL_KWARGS."
                    ) from None
                # Not with make_connection(), which counts what was lost, and what could not be made.
                connection = self._pool.connection_class(**self._pool.connection_kwargs)
                self._made.add(connection)
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

    def __call__(self, batch: Batch) -> list[Any]:
        try:
            connection, kept = self._idle.pop(), True
        except IndexError:
            connection, kept = self._another(), False
        try:
            if not (kept and self._is_clean(connection)):
                connection.disconnect()
                connection.connect()
                connection.line = line_of(connection)
            try:
                replies = talk(connection, batch) if (line := connection.line) is None else line.talk(batch)
            except (ConnectionError, TimeoutError) as error:
                if not may_repeat(batch, connection, error):
                    raise
                connection.disconnect()
                replies = connection.retry.call_with_retry(
                    lambda: connect_and_talk(connection, batch), lambda error: connection.disconnect()
                )
                connection.line = line_of(connection)
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
            line = connection.line
            unread = connection.can_read() if line is None else line.poll(0) or line.has_data()
            return not (unread or self._has_to_go(connection))
        except (RedisError, OSError):
            return False


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
                replies = await (atalk if connection.health_check_interval else _atalk_quickly)(connection, batch)
            except (ConnectionError, TimeoutError) as error:
                if not may_repeat(batch, connection, error):
                    raise
                await connection.disconnect(nowait=True)
                replies = await connection.retry.call_with_retry(
                    lambda: aconnect_and_talk(connection, batch), lambda error: connection.disconnect(nowait=True)
                )
        except BaseException:
            await connection.disconnect(nowait=True)
            self._closed.append(connection)
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
            return not (await connection.can_read() or has_unread(connection) or self._has_to_go(connection))
        except (RedisError, OSError):
            return False

    async def aclose(self) -> None:
        for connection in self._idle:
            await connection.disconnect()
        if self._follows_master:
            for sentinel in self._pool.sentinel_manager.sentinels:
                await sentinel.aclose()


async def _atalk_quickly(connection: Any, batch: Batch) -> list[Any]:
    """The same on an open connection, with one timeout for all of it."""
    try:
        async with asyncio.timeout(connection.socket_timeout):
            try:
                connection._writer.write(batch.packed())
            except RuntimeError as error:
                raise ConnectionError(str(error)) from error
            await connection._writer.drain()
            read = connection._parser.read_response
            replies = [await read(disable_decoding=True) for _ in batch.commands]
    except builtins.TimeoutError as error:
        raise TimeoutError(f"no answer within {connection.socket_timeout:g} seconds") from error
    except OSError as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error
    return [looked_at(reply) if isinstance(reply, ResponseError) else reply for reply in replies]


def can_keep(pool: Any) -> bool:
    """Return whether connections may be kept that this pool makes."""
    return (
        type(pool) in _KEPT_POOLS
        and pool.connection_class in _KEPT_CONNECTIONS
        and _NEED_THEIR_POOL.isdisjoint(name for name, value in pool.connection_kwargs.items() if value is not None)
        and getattr(pool, "cache", None) is None
    )
