"""How the Redis engines talk to the server: batches of commands, sent and answered."""

import asyncio
import os
import weakref
from collections.abc import AsyncGenerator, Iterator
from functools import partial
from typing import Any, TypeVar

from redis.exceptions import NoScriptError, RedisError, ResponseError

from gsession_django import recording
from gsession_django.redis.commands import Batch, Operation, size_of
from gsession_django.redis.connections import Connections, Limits
from gsession_django.redis.errors import failure
from gsession_django.redis.link import AsyncLink, Link
from gsession_django.redis.nodes import Nodes
from gsession_django.redis.settings import CacheEntry
from gsession_django.redis.steps import take

T = TypeVar("T")
Way = Connections | Nodes


class RedisClient:
    """What a storage needs of Redis. One object serves all threads and event loops of an engine in a process.

    Args:
        entry: where to connect to. Nothing is connected before the first batch.
        limits: the engine's options.
    """

    def __init__(self, entry: CacheEntry, limits: Limits = Limits()) -> None:  # noqa: B008 - it is frozen
        self.entry = entry
        self._limits = limits
        self._way = self._make_way(Link)
        self._of_loops: dict[asyncio.AbstractEventLoop, tuple[Way, AsyncGenerator[None]]] = {}
        _clients.add(self)

    def _make_way(self, link_class: type[Link]) -> Way:
        make_pool = CacheEntry.make_pool if link_class is Link else CacheEntry.make_async_pool
        limits = self._limits

        def connect(entry: CacheEntry) -> Connections:
            return Connections(make_pool(entry), link_class, limits)

        return (
            Nodes(self.entry, connect, partial(link_class.call, link_class.sleep))
            if self.entry.is_cluster
            else connect(self.entry)
        )

    def carry_out(self, operation: Operation[T]) -> T:
        """Send the batches of an operation, each in one write, and return its result.

        Raises what :func:`gsession_django.redis.errors.failure` makes of an error.
        """
        return take(self._carry_out(operation, self._way))

    async def acarry_out(self, operation: Operation[T]) -> T:
        """The same, awaited, on connections of the running event loop."""
        try:
            way = self._of_loops[asyncio.get_running_loop()][0]
        except KeyError:
            way = await self._of_new_loop()
        return await self._carry_out(operation, way)

    def send(self, batch: Batch) -> list[Any]:
        """Send one batch, and return the replies."""
        return self.carry_out(alone(batch))

    async def _carry_out(self, operation: Operation[T], way: Way) -> T:
        try:
            batch = next(operation)
            while True:
                try:
                    try:
                        replies = _checked(await way.exchange(batch))
                    except NoScriptError:
                        replies = _checked(await way.exchange(batch.in_full()))
                except (RedisError, OSError) as error:
                    raise failure(self.entry, error) from error
                if recording.CALL.get() is not None:
                    recording.written(size_of(batch.commands))
                    recording.read(size_of(replies))
                batch = operation.send(replies)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def scan(self, pattern: str, count: int, kind: str) -> Iterator[bytes]:
        """Yield the keys of a type that match `pattern`, some perhaps twice. A step looks at `count` keys.

        In a cluster it may miss a key whose slot moves meanwhile.
        """
        for server in self.servers():
            way = self._way
            if isinstance(way, Nodes):
                way = way.at(server.nodes[0])
            cursor: Any = b"0"
            while True:
                step = Batch(("SCAN", cursor, "MATCH", pattern, "COUNT", str(count), "TYPE", kind))
                ((cursor, keys),) = take(self._carry_out(alone(step), way))
                yield from keys
                if int(cursor) == 0:
                    break

    def servers(self) -> list[CacheEntry]:
        """Return the servers that together have all keys: one, or in a cluster each primary as an entry of its own."""
        if not isinstance(self._way, Nodes):
            return [self.entry]
        try:
            return [self.entry.at(node) for node in take(self._way.primaries())]
        except (RedisError, OSError) as error:
            raise failure(self.entry, error) from error

    async def _of_new_loop(self) -> Way:
        for loop in list(self._of_loops):  # other threads, with loops of their own, may be here too
            if loop.is_closed():
                self._of_loops.pop(loop, None)
        way = self._make_way(AsyncLink)
        ending = self._until_loop_ends(way)
        self._of_loops[asyncio.get_running_loop()] = way, ending
        await anext(ending)
        return way

    async def _until_loop_ends(self, way: Way) -> AsyncGenerator[None]:
        """Close the connections when ``loop.shutdown_asyncgens()`` finalises this generator, which the loop does when
        it ends: in ``asyncio.run()``, in ``async_to_sync()`` and in every server.
        """
        try:
            yield
        finally:
            self._of_loops.pop(asyncio.get_running_loop(), None)
            await way.aclose()

    def forget(self) -> None:
        """Leave all connections to the process that this one was forked from."""
        for way, _ in self._of_loops.values():
            way.leave_to_parent()
        self._way = self._make_way(Link)
        _inherited.append(self._of_loops)
        self._of_loops = {}


def alone(batch: Batch) -> Operation[list[Any]]:
    """Send one batch and return the replies: the simplest operation."""
    return (yield batch)


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
# Held during a fork: the child finalises nothing of theirs before it has let go of the sockets.
_forking: list[list[RedisClient]] = []
# Kept: finalising them would talk to the parent's event loops.
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
