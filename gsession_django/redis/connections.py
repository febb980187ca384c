"""The way to one server: connections are kept between batches, and a batch may be sent again if one fails.

There is no I/O here. What waits for the server is a coroutine of a link, or of redis-py's pool.
"""

import asyncio
import logging
import math
import sys
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from redis.exceptions import ConnectionError, MaxConnectionsError, RedisError, ResponseError, TimeoutError

from gsession_django import recording
from gsession_django.redis.commands import Batch
from gsession_django.redis.link import DIRECT, Link, let_go
from gsession_django.redis.settings import ASYNC_POOLS

logger = logging.getLogger("gsession_django")

# A connection with one of these arguments refers to the pool that made it.
_NEED_THEIR_POOL: Final = frozenset({"cache", "cache_config", "credential_provider"})
# Seconds after which Sentinel is asked again for the master: it takes no server for dead in less.
_NAMED_FOR: Final = 1.0
# Seconds between two requests that try a server which does not answer.
_TRIED_EVERY: Final = 0.5
# Seconds after which a waiter looks for a free connection by itself: an exception between two lines can lose the word.
_LOOKED_EVERY: Final = 1.0
# Only a master can answer it: a replica answers with an error.
_ARE_YOU_MASTER: Final = b"*3\r\n$4\r\nWAIT\r\n$1\r\n0\r\n$1\r\n0\r\n"


class Limits(NamedTuple):
    """The engine's options of these names: how long a connection may be idle, and when a server is asked no more."""

    max_idle: float = 60.0
    fail_fast_after: int = 3


@dataclass(eq=False, slots=True)
class _Place:
    """Where somebody waits for a connection. The event says that there is one, or that a new one may be made."""

    event: Any
    link: Any = None


class Connections:
    """The connections to one server, of all threads or of one event loop.

    One is used by one thread or task at a time, and never again once a reply on it was not read to the end.

    Args:
        pool: redis-py's. It says how connections are made, and how many there may be.
        link_class: how threads, or tasks, use one.
        limits: the engine's options.
    """

    def __init__(self, pool: Any, link_class: type[Link], limits: Limits) -> None:
        self._pool, self._link_class, self._call = pool, link_class, link_class.call
        self._fail_fast_after = limits.fail_fast_after or math.inf
        self._max_idle = limits.max_idle
        # A pool that a site has written makes its own connections, and lends them for a batch.
        self._lends = not _can_keep(pool)
        self._follows_master = hasattr(pool, "sentinel_manager")
        self._ask_at = 0.0
        self._asks_whether_master = True
        self._idle: list[Any] = []
        self._waiting: deque[_Place] = deque()
        self._lock = threading.RLock()  # a signal handler may use sessions, too
        # Weak: a connection that an exception has lost between two lines does not count.
        self._links: weakref.WeakSet[Any] = weakref.WeakSet()
        self._failures, self._try_at = 0, 0.0

    async def exchange(self, batch: Batch) -> list[Any]:
        """Send a batch and return the replies. A server's error is a ``ResponseError`` among them.

        Raises redis-py's ``ConnectionError`` and ``TimeoutError``.
        """
        start = time.monotonic()
        if self._failures:
            self._fail_fast(start)
        if self._follows_master and start >= self._ask_at:
            await self._ask_for_master(start)
        data, count = batch.packed(), len(batch.commands)
        if asks := self._asks_whether_master and batch.reads:
            data, count = data + _ARE_YOU_MASTER, count + 1
        failures, of_caller = 0, sys.exception()
        while True:
            link = None
            try:
                try:
                    link = self._idle.pop()
                except IndexError:
                    link = await self._another()
                if (
                    start - link.used > self._max_idle
                    or link.connection.should_reconnect()  # as the server wants it
                    or (self._follows_master and self._is_former(link.connection))
                ):
                    await link.open()
                replies: list[Any] = await link.talk(data, count)
                if asks and type(reply := replies.pop()) is not int:
                    self._cannot_ask(reply)
            except BaseException as error:
                if error.__context__ not in (None, of_caller):  # a frame of redis-py's holds it, and it the frame
                    error.__context__.__traceback__ = None
                failures += 1
                pause = self._pause_before_next(batch, link, error, failures)
                await self._give_up(link, error)
                if pause is None:
                    raise
                recording.retried()
                if pause:
                    await self._call(self._link_class.sleep, pause)
            else:
                self._failures = 0
                if self._lends:
                    await link.release(self._pool)
                else:
                    self._free(link)
                return replies

    # A free connection.

    def _free_one(self, place: _Place) -> Any:
        """Return an idle connection or a new one; ``None`` if there may be no more, and `place` gets the next."""
        with self._lock:
            if place not in self._waiting:
                self._waiting.append(place)
            with suppress(IndexError):
                return self._idle.pop()
            if len(self._links) < self._pool.max_connections:
                # Not with make_connection(), which counts what was lost, and what could not be made.
                link = self._link_class(self._pool.connection_class(**self._pool.connection_kwargs))
                self._links.add(link)
                return link
            return None

    async def _another(self) -> Any:
        """Return the next free connection. Waits as long as connecting may take, or as the pool says."""
        pool = self._pool
        if self._lends:
            lent = self._link_class(await self._call(pool.get_connection))
            lent.used = time.monotonic()  # it is open, and the pool looks after its age
            return lent
        patience = getattr(pool, "timeout", pool.connection_kwargs.get("socket_connect_timeout"))
        end = math.inf if patience is None else time.monotonic() + patience
        place = _Place(self._link_class.event())
        link: Any = None
        try:
            while (link := place.link or self._free_one(place)) is None:
                if (left := end - time.monotonic()) <= 0:
                    raise MaxConnectionsError(
                        f"all {pool.max_connections} connections were in use for {patience:g} seconds. Raise "
                        "max_connections in CONNECTION_POOL_KWARGS, or look for what keeps them in use"
                    )
                await self._call(self._link_class.wait, place.event, min(left, _LOOKED_EVERY))
                place.event.clear()
            return link
        finally:
            with self._lock, suppress(ValueError):
                self._waiting.remove(place)
            if link is None or link is not place.link:  # it came at the last moment, and goes to the next waiter
                self._free(place.link)

    def _free(self, link: Any) -> None:
        """Keep a connection, or give it to the first waiter. ``None`` tells the waiter that a new one may be made."""
        if link is not None:
            self._idle.append(link)
        if self._waiting:
            with self._lock, suppress(IndexError):  # somebody else may come first
                place = self._waiting.popleft()
                place.link = self._idle.pop() if self._idle else None
                place.event.set()

    # Which connections may be used.

    def _is_former(self, connection: Any) -> bool:
        """Return whether Sentinel has named another master since the connection was opened."""
        return bool(self._pool.master_address != (connection.host, connection.port))

    async def _ask_for_master(self, start: float) -> None:
        """Ask Sentinel for the master. A master that stood still does not know that it was replaced, and idle
        connections to it do not show it.
        """
        with suppress(RedisError, OSError):  # the master may be there without them
            await self._call(self._pool.get_master_address)
        end = time.monotonic()
        # Later if it took long: some sentinels are gone.
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
        """Raise ``TimeoutError`` if the server left several requests unanswered. Now and then one request tries."""
        if self._failures < self._fail_fast_after:
            return
        if now < self._try_at:
            raise TimeoutError(f"{self._failures} requests in a row had no answer in time; it is being tried again")
        self._try_at = now + _TRIED_EVERY

    def _pause_before_next(self, batch: Batch, link: Any, error: BaseException, failures: int) -> float | None:
        """Return the seconds to wait before a batch is sent again; ``None`` if that may do harm, or was done.

        A server that is slow to answer is not asked twice, or a visitor would wait twice as long.
        """
        is_late = isinstance(error, TimeoutError)
        if link is not None and (is_late or isinstance(error, ConnectionError)):
            retry = link.connection.retry
            # A replica has refused it, as we or redis-py found out. The context may be an error of the caller's.
            refused = isinstance(error.__cause__, ResponseError)
            retries = retry.get_retries() if retry.get_retries() >= 0 else math.inf
            if (refused or batch.repeat) and failures <= retries + (not is_late):
                return 0.0 if failures == 1 else float(retry._backoff.compute(failures - 1))
        if is_late:
            self._failures, self._try_at = self._failures + 1, time.monotonic() + _TRIED_EVERY
        return None

    async def _give_up(self, link: Any, error: BaseException) -> None:
        """Close a connection. If it has failed, close the idle ones, which have most likely failed too."""
        failed = isinstance(error, ConnectionError | TimeoutError)
        if link is None:
            # redis-py takes a connection for open even if an exception has interrupted the opening.
            if self._lends and not failed and not isinstance(error, GeneratorExit):
                await self._call(self._pool.disconnect, False)
            return
        link.close()
        if not self._lends:
            if failed:
                self._close_idle()
            self._links.discard(link)
            self._free(None)
        elif not isinstance(error, GeneratorExit):
            await link.release(self._pool)
            if failed:
                await self._call(self._pool.disconnect, False)

    def _close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                idle = self._idle.pop()
                idle.close()
                self._links.discard(idle)

    # The end.

    def leave_to_parent(self) -> None:
        """In a forked child: let go of the async connections, which are the parent's. Sync ones are only closed."""
        lent = [*self._pool._available_connections, *self._pool._in_use_connections] if self._lends else []
        let_go([*lent, *(link.connection for link in self._links)])

    async def aclose(self) -> None:
        """Close the connections of an event loop that ends."""
        ends = [link.connection.disconnect() for link in self._idle]
        if self._lends:
            ends.append(self._pool.disconnect())
        if self._follows_master:
            ends += [sentinel.aclose() for sentinel in self._pool.sentinel_manager.sentinels]
        await asyncio.gather(*ends, return_exceptions=True)

    def __del__(self) -> None:
        # The garbage collector may come to a socket before redis-py's connection, and would warn.
        if self._link_class is Link:
            self._close_idle()
            if self._follows_master:
                for sentinel in self._pool.sentinel_manager.sentinels:
                    sentinel.close()


def _can_keep(pool: Any) -> bool:
    """Return whether connections that this pool makes may be kept: those of redis-py's own pools."""
    return (
        type(pool) in {*ASYNC_POOLS, *ASYNC_POOLS.values()}
        and pool.connection_class in DIRECT
        and _NEED_THEIR_POOL.isdisjoint(name for name, value in pool.connection_kwargs.items() if value is not None)
        and getattr(pool, "cache", None) is None
    )
