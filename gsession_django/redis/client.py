"""How the Redis engines talk to the server: batches of commands, sent and answered."""

import asyncio
import os
import weakref
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from redis.exceptions import NoScriptError, RedisError, ResponseError

from gsession_django.redis.commands import Batch
from gsession_django.redis.errors import failure
from gsession_django.redis.exchange import AsyncExchange, Exchange
from gsession_django.redis.kept import AsyncKept, Kept, can_keep
from gsession_django.redis.leased import AsyncOrdinary, Ordinary
from gsession_django.redis.nodes import AsyncClusterExchange, ClusterExchange
from gsession_django.redis.settings import CacheEntry


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
        return ClusterExchange(self.entry, _server) if self.entry.is_cluster else _server(self.entry)

    def _make_async_exchange(self) -> AsyncExchange:
        return AsyncClusterExchange(self.entry, _aserver) if self.entry.is_cluster else _aserver(self.entry)

    def scan(self, pattern: str, count: int, kind: str) -> Iterator[bytes]:
        """Yield the keys of a type that match `pattern`, some of them perhaps twice; `count` are looked at in a step.

        In a cluster, one whose slot moves meanwhile may be missed.
        """
        for server in self.servers():
            exchange = self._exchange
            if isinstance(exchange, ClusterExchange):
                exchange = exchange.at(server.nodes[0])
            cursor: Any = b"0"
            while True:
                step = Batch(("SCAN", cursor, "MATCH", pattern, "COUNT", str(count), "TYPE", kind))
                ((cursor, keys),) = self.send(step, exchange)
                yield from keys
                if int(cursor) == 0:
                    break

    def servers(self) -> list[CacheEntry]:
        """Return the servers that together have all keys: one, or in a cluster each primary as an entry of its own."""
        if not isinstance(self._exchange, ClusterExchange):
            return [self.entry]
        try:
            return [self.entry.at(node) for node in self._exchange.primaries()]
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    def send(self, batch: Batch, exchange: Exchange | None = None) -> list[Any]:
        """Send a batch, in one write, and return the replies; by another exchange than the client's where one is given.

        Raises what :func:`gsession_django.redis.errors.failure` says of an error.
        """
        exchange = exchange or self._exchange
        try:
            try:
                return _checked(exchange(batch))
            except NoScriptError:
                return _checked(exchange(batch.in_full()))
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    async def asend(self, batch: Batch) -> list[Any]:
        """The same, awaited, on connections of the running event loop."""
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

    def _unavailable(self, error: Exception) -> Exception:
        return failure(self.entry, error)

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
        self._exchange.leave_to_parent()
        for exchange, _ in self._of_loops.values():
            exchange.leave_to_parent()
        self._exchange = self._make_exchange()
        _inherited.append(self._of_loops)
        self._of_loops = {}


def _server(entry: CacheEntry) -> Exchange:
    pool = entry.make_pool()
    return Kept(pool) if can_keep(pool) else Ordinary(pool)


def _aserver(entry: CacheEntry) -> AsyncExchange:
    pool = entry.make_async_pool()
    return AsyncKept(pool) if can_keep(pool) else AsyncOrdinary(pool)


def _checked(replies: list[Any]) -> list[Any]:
    """Return the replies; raise the first of them that is an error."""
    for reply in replies:
        if isinstance(reply, ResponseError):
            try:
                raise reply
            finally:
                del replies, reply  # the traceback holds this frame
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
