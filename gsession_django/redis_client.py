"""How the Redis engines talk to the server.

A storage writes what it does once, as a generator that yields the batches of commands it wants sent and is sent their
replies. :meth:`RedisClient.run` drives it with blocking calls, :meth:`RedisClient.arun` by awaiting.
"""

import asyncio
import os
import weakref
from collections.abc import AsyncGenerator, Iterator
from typing import Any, TypeVar

from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from gsession_django.redis_commands import Batch, Operation
from gsession_django.redis_connections import (
    AsyncExchange,
    AsyncKept,
    AsyncOrdinary,
    Exchange,
    Kept,
    Ordinary,
    can_keep,
)
from gsession_django.redis_settings import CacheEntry
from gsession_django.storage import StorageUnavailable

T = TypeVar("T")


class RedisClient:
    """All that a storage needs of Redis: one an engine and process, for all its threads and event loops.

    Args:
        entry: where to connect to. Nothing is connected before the first batch.
    """

    def __init__(self, entry: CacheEntry) -> None:
        self.entry = entry
        self._exchange = self._make_exchange()
        self._of_loops: dict[asyncio.AbstractEventLoop, tuple[AsyncExchange, AsyncGenerator[None]]] = {}
        _clients.add(self)

    def _make_exchange(self) -> Exchange:
        pool = self.entry.make_pool()
        return Kept(pool) if can_keep(pool) else Ordinary(self.entry.make_client(pool))

    def _make_async_exchange(self) -> AsyncExchange:
        pool = self.entry.make_async_pool()
        return AsyncKept(pool) if can_keep(pool) else AsyncOrdinary(AsyncRedis(connection_pool=pool))

    def run(self, operation: Operation[T]) -> T:
        """Carry out an operation and return what it returns.

        Raises :class:`StorageUnavailable` when the server cannot be reached, does not answer in time, or says that it
        cannot do what it was asked for.
        """
        try:
            batch = next(operation)
            while True:
                batch = operation.send(self._send(batch))
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def arun(self, operation: Operation[T]) -> T:
        """The same, awaited, on connections of the running event loop."""
        try:
            batch = next(operation)
            while True:
                batch = operation.send(await self._asend(batch))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def scan(self, pattern: str, count: int) -> Iterator[bytes]:
        """Yield the keys that match `pattern`, some of them perhaps twice; `count` are looked at in a step."""
        cursor: Any = 0
        while True:
            ((cursor, keys),) = self._send(Batch(("SCAN", cursor, "MATCH", pattern, "COUNT", count)))
            yield from keys
            if int(cursor) == 0:
                return

    def _send(self, batch: Batch) -> list[Any]:
        try:
            try:
                return _checked(self._exchange(batch))
            except NoScriptError:
                return _checked(self._exchange(batch.in_full()))
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    async def _asend(self, batch: Batch) -> list[Any]:
        try:
            exchange = self._of_loops[asyncio.get_running_loop()][0]
        except KeyError:
            exchange = await self._of_new_loop()
        try:
            try:
                return _checked(await exchange(batch))
            except NoScriptError:
                return _checked(await exchange(batch.in_full()))
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StorageUnavailable:
        return StorageUnavailable(
            f"{self.entry} cannot answer: {type(error).__name__}: {error} Look at the server, and at this entry."
        )

    async def _of_new_loop(self) -> AsyncExchange:
        for loop in list(self._of_loops):  # other threads, with loops of their own, may be here too
            if loop.is_closed():
                self._of_loops.pop(loop, None)
        exchange = self._make_async_exchange()
        ending = self._until_loop_ends(exchange)
        self._of_loops[asyncio.get_running_loop()] = exchange, ending
        await anext(ending)
        return exchange

    async def _until_loop_ends(self, exchange: AsyncExchange) -> AsyncGenerator[None]:
        """Close the connections when ``loop.shutdown_asyncgens()`` finalises this generator, which the loop does when
        it ends: in ``asyncio.run()``, in ``async_to_sync()`` and in every server.
        """
        try:
            yield
        finally:
            self._of_loops.pop(asyncio.get_running_loop(), None)
            await exchange.aclose()

    def forget(self) -> None:
        """Leave all connections to the process that this one was forked from."""
        if isinstance(self._exchange, Kept):  # what redis-py's client has, it closes itself, and only closes
            self._exchange.leave_to_parent()
        for exchange, _ in self._of_loops.values():
            exchange.leave_to_parent()
        self._exchange = self._make_exchange()
        _inherited.append(self._of_loops)
        self._of_loops = {}


def _checked(replies: list[Any]) -> list[Any]:
    """Return the replies; raise the first of them that is an error."""
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise reply
    return replies


_clients: "weakref.WeakSet[RedisClient]" = weakref.WeakSet()
# Held while a process forks, so that nothing of theirs is finalised in the child before it has let go of it.
_forking: list[list[RedisClient]] = []
# Kept, since what finalises them would talk to event loops of the parent.
_inherited: list[Any] = []


def _before_fork() -> None:
    _forking.append(list(_clients))


def _after_fork() -> None:
    _forking.pop()


def _leave_to_parent() -> None:
    for client in list(_clients):
        client.forget()
    _forking.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_leave_to_parent)
