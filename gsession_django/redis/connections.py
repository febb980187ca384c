"""The way to one server: connections that are kept between batches, and what becomes of a batch if one fails.

There is no I/O here. What waits for the server is a step that :mod:`~gsession_django.redis.steps` carries out.
"""

import logging
import math
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio.connection as aio_connection
import redis.asyncio.sentinel as aio_sentinel
import redis.connection as sync_connection
import redis.sentinel as sync_sentinel
from redis.exceptions import (
    ConnectionError,
    MaxConnectionsError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from gsession_django import recording
from gsession_django.redis.commands import Batch
from gsession_django.redis.link import AsyncLink, Link, Stale, is_direct, let_go
from gsession_django.redis.steps import Steps

logger = logging.getLogger("gsession_django")

# Pools of redis-py whose connections are kept here. One that a site has written makes and lends its own.
_KEPT_POOLS: Final = (
    sync_connection.ConnectionPool,
    sync_connection.BlockingConnectionPool,
    sync_sentinel.SentinelConnectionPool,
    aio_connection.ConnectionPool,
    aio_connection.BlockingConnectionPool,
    aio_sentinel.SentinelConnectionPool,
)
_BLOCKING_POOLS: Final = (sync_connection.BlockingConnectionPool, aio_connection.BlockingConnectionPool)
_SENTINEL_POOLS: Final = (sync_sentinel.SentinelConnectionPool, aio_sentinel.SentinelConnectionPool)
_NEED_THEIR_POOL: Final = frozenset({"cache", "cache_config", "credential_provider"})

# Seconds for which the master stays the one that Sentinel has named: no server is taken for dead in less.
_NAMED_FOR: Final = 1.0
# Seconds between two requests that try a server which does not answer.
_TRIED_EVERY: Final = 0.5
# Only a master can answer it: a replica answers with an error.
_ARE_YOU_MASTER: Final = b"*3\r\n$4\r\nWAIT\r\n$1\r\n0\r\n$1\r\n0\r\n"


@dataclass(frozen=True)
class Limits:
    """How long connections are used, and a server is waited for.

    Attributes:
        max_idle: seconds after which an idle connection is not used again: firewalls forget it without a word.
        fail_fast_after: requests in a row without an answer in time, after which others are not sent for a moment. 0
            sends each.
    """

    max_idle: float = 60.0
    fail_fast_after: int = 3


class _Waiter:
    """Someone who waits for a free connection."""

    def __init__(self, event: Any) -> None:
        self.event = event
        self.link: Any = None


class Connections:
    """The connections to one server, of all threads or of one event loop.

    One is used by one thread or task at a time, and never again once a reply on it was not read to the end.

    Args:
        pool: redis-py's. It says how connections are made, and how many there may be.
        link_class: how one is used: by threads or by tasks.
        limits: how long.
    """

    def __init__(self, pool: Any, link_class: type[Link] | type[AsyncLink], limits: Limits) -> None:
        self._pool, self._link_class = pool, link_class
        self._fail_fast_after = limits.fail_fast_after or math.inf
        self._max_idle = limits.max_idle
        self._lends = not _can_keep(pool)
        self._follows_master = isinstance(pool, _SENTINEL_POOLS)
        self._ask_at = 0.0
        self._asks_whether_master = True
        self._idle: list[Any] = []
        self._waiting: deque[_Waiter] = deque()
        self._making = threading.Lock()
        # Not a number: a connection that an exception has lost between two lines counts no longer.
        self._links: weakref.WeakSet[Any] = weakref.WeakSet()
        self._failures, self._try_at = 0, 0.0

    def exchange(self, batch: Batch) -> Steps[list[Any]]:
        """Send a batch and return the replies. An error that the server answers is a ``ResponseError`` among them.

        Raises redis-py's ``ConnectionError`` and ``TimeoutError``.
        """
        start = time.monotonic()
        if self._failures:
            self._fail_fast(start)
        if self._follows_master and start >= self._ask_at:
            yield from self._ask_for_master(start)
        data, count = batch.packed(), len(batch.commands)
        if asks := batch.reads and self._asks_whether_master:
            data, count = data + _ARE_YOU_MASTER, count + 1
        failures, now = 0, start
        while True:
            link = None
            try:
                try:
                    link = self._idle.pop()
                except IndexError:
                    link = yield from self._another(now)
                if now - link.used > self._max_idle or link.connection.should_reconnect() or self._is_no_master(link):
                    yield link.open, ()
                    now = time.monotonic()
                try:
                    replies: list[Any] = yield link.talk, (data, count, now)
                except Stale:
                    yield link.open, ()
                    now = time.monotonic()
                    replies = yield link.talk, (data, count, now)
                if asks and type(reply := replies.pop()) is not int:
                    self._cannot_ask(reply)
                link.used = now
            except (ConnectionError, TimeoutError) as error:
                if error.__context__ is not None:  # a frame of redis-py's holds it, and it holds the frame
                    error.__context__.__traceback__ = None
                failures += 1
                pause = self._pause_before_next(batch, link, error, failures)
                yield from self._give_up(link)
                if pause is None:
                    if isinstance(error, TimeoutError):
                        self._failures, self._try_at = self._failures + 1, time.monotonic() + _TRIED_EVERY
                    raise
                recording.retried()
                if pause:
                    yield self._link_class.pause, (pause,)
                now = time.monotonic()
            except BaseException as error:
                if link is not None:
                    link.close()
                    self._free(None, link)
                    if self._lends and not isinstance(error, GeneratorExit):
                        yield link.release, (self._pool,)
                raise
            else:
                self._failures = 0
                if self._lends:
                    yield link.release, (self._pool,)
                else:
                    self._free(link, link)
                return replies

    # A free connection.

    def _another(self, now: float) -> Steps[Any]:
        """Return a connection where none is idle: a new one, or else the next that is free."""
        if self._lends:
            link = self._link_class((yield self._pool.get_connection, ()))
            link.used = now  # it is open, and the pool says for how long it may be
            return link
        patience = self._patience
        while True:
            link, waiter = self._made_or_queued()
            if link is not None:
                return link
            try:
                # One may have come back, or gone, before this was in the queue.
                if self._idle or len(self._links) < self._pool.max_connections:
                    with suppress(IndexError):
                        self._free(self._idle.pop() if self._idle else None, None)
                left = None if patience is None else max(0.0, now + patience - time.monotonic())
                came = yield self._link_class.wait, (waiter.event, left)
            except BaseException:
                self._leave_queue(waiter)
                raise
            if waiter.link is not None:
                return waiter.link
            if not came:
                self._leave_queue(waiter)
                raise MaxConnectionsError(
                    f"all {self._pool.max_connections} connections were in use for {patience:g} seconds. Raise "
                    "max_connections in CONNECTION_POOL_KWARGS, or look for what keeps them in use"
                )

    def _made_or_queued(self) -> tuple[Any, Any]:
        """Return a new connection, or else a place in the queue for one that is given back."""
        with self._making:
            if len(self._links) < self._pool.max_connections:
                # Not with make_connection(), which counts what was lost, and what could not be made.
                link = self._link_class(self._pool.connection_class(**self._pool.connection_kwargs))
                self._links.add(link)
                return link, None
            waiter = _Waiter(self._link_class.event())
            self._waiting.append(waiter)
            return None, waiter

    @property
    def _patience(self) -> float | None:
        """Seconds to wait for a free connection: as long as connecting may take, or as a pool that blocks says."""
        seconds: float | None = self._pool.connection_kwargs.get("socket_connect_timeout")
        if isinstance(self._pool, _BLOCKING_POOLS):
            seconds = self._pool.timeout
        return seconds

    def _leave_queue(self, waiter: _Waiter) -> None:
        try:
            self._waiting.remove(waiter)
        except ValueError:  # it was given one at the last moment
            self._free(waiter.link, None)

    def _free(self, link: Any, used: Any) -> None:
        """Give a connection to the one who has waited longest, or keep it; without one, let another be made.

        Args:
            link: the connection, if there is one.
            used: the one that was in use; it is this one, or it is gone.
        """
        if link is None:
            self._links.discard(used)
        if self._waiting:
            with suppress(IndexError):
                waiter = self._waiting.popleft()
                waiter.link = link
                waiter.event.set()
                return
        if link is not None:
            self._idle.append(link)
            if self._waiting:  # somebody came between the two lines
                with suppress(IndexError):
                    self._free(self._idle.pop(), None)

    # Which connections may be used.

    def _is_no_master(self, link: Any) -> bool:
        """Return whether Sentinel has named another master since the connection was opened."""
        connection = link.connection
        return self._follows_master and self._pool.master_address != (connection.host, connection.port)

    def _ask_for_master(self, start: float) -> Steps[None]:
        """Ask Sentinel for the master: one that stood still does not know that it was replaced, and connections to it
        that were idle meanwhile do not show it.
        """
        with suppress(RedisError, OSError):  # the master may be there without them
            yield self._pool.get_master_address, ()
        end = time.monotonic()
        # Later if it took long, as with sentinels that are gone.
        self._ask_at = end + max(_NAMED_FOR, 10 * (end - start))

    def _cannot_ask(self, reply: Any) -> None:
        self._asks_whether_master = False
        logger.warning(
            "%r does not answer the command WAIT: %s. After a failover by address, a server that is a replica by then "
            "would be read. Allow the user of the entry in CACHES to send WAIT.",
            self._pool,
            reply,
        )

    # A failure.

    def _fail_fast(self, now: float) -> None:
        """Raise ``TimeoutError`` for a server that has not answered several requests, but let one try now and then."""
        if self._failures < self._fail_fast_after:
            return
        if now < self._try_at:
            raise TimeoutError(f"{self._failures} requests in a row had no answer in time; it is being tried again")
        self._try_at = now + _TRIED_EVERY

    def _pause_before_next(self, batch: Batch, link: Any, error: Exception, failures: int) -> float | None:
        """Return the seconds after which to send a batch once more; ``None`` if that may do harm, or was tried.

        A server that is slow to answer is not asked twice, or a visitor would wait twice as long.
        """
        if isinstance(error, MaxConnectionsError) or link is None:
            return None
        retry = link.connection.retry
        # A replica has refused it: as we found out, or redis-py. Any other context may be what the caller is about.
        refused = isinstance(error.__cause__, ResponseError)
        if not (refused or batch.repeat):
            return None
        retries = retry.get_retries() if retry.get_retries() >= 0 else math.inf
        if failures > retries + (0 if isinstance(error, TimeoutError) else 1):
            return None
        return 0.0 if failures == 1 else float(retry._backoff.compute(failures - 1))

    def _give_up(self, link: Any) -> Steps[None]:
        """Close a connection that has failed, and the idle ones, which have most likely failed too."""
        if link is None:
            return
        link.close()
        if self._lends:
            yield link.release, (self._pool,)
            yield self._pool.disconnect, (False,)
            return
        self._close_idle()
        self._free(None, link)

    def _close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                idle = self._idle.pop()
                idle.close()
                self._links.discard(idle)

    # The end.

    def leave_to_parent(self) -> None:
        """In a forked child: let go of the connections, which are the parent's."""
        if not self._lends:
            let_go([link.connection for link in self._links])
        elif self._link_class is AsyncLink:  # in a child, redis-py's sync pools only close what they have
            let_go([*self._pool._available_connections, *self._pool._in_use_connections])

    def closed(self) -> Steps[None]:
        """Close all connections that are idle."""
        for link in self._idle:
            yield link.connection.disconnect, ()
        if self._lends:
            yield self._pool.disconnect, ()
        if self._follows_master:
            for sentinel in self._pool.sentinel_manager.sentinels:
                yield (sentinel.aclose if self._link_class is AsyncLink else sentinel.close), ()

    def __del__(self) -> None:
        # redis-py's connections are left to the garbage collector, which may come to their sockets first, and warn.
        if self._link_class is Link:
            self._close_idle()
            if self._follows_master:
                for sentinel in self._pool.sentinel_manager.sentinels:
                    sentinel.close()


def _can_keep(pool: Any) -> bool:
    """Return whether connections that this pool makes may be kept."""
    return (
        type(pool) in _KEPT_POOLS
        and is_direct(pool.connection_class)
        and _NEED_THEIR_POOL.isdisjoint(name for name, value in pool.connection_kwargs.items() if value is not None)
        and getattr(pool, "cache", None) is None
    )
