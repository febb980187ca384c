"""Redis Cluster: which of its nodes has a session, and asking there.

All keys of a batch are in one slot, and so on one node, except those of a Spread. The node is asked like a single
server. If it refuses or does not answer, there is more to do: slots move, and nodes fail and are replaced.
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from typing import Any, Final

from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MaxConnectionsError,
    MovedError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from gsession_django.redis.commands import Batch, Spread
from gsession_django.redis.connections import Connections
from gsession_django.redis.settings import Address, CacheEntry
from gsession_django.redis.steps import Steps

PATIENCE: Final = 5.0
"""Seconds after which a batch is not tried again."""
_PAUSE: Final = 0.1


class Nodes:
    """The nodes of a cluster, and how a batch is brought to the one that has its keys.

    Args:
        entry: names the nodes to begin with.
        connect: makes the connections to the one node that an entry names.
        pause: waits for some seconds, in a thread or a task.
    """

    def __init__(
        self, entry: CacheEntry, connect: Callable[[CacheEntry], Connections], pause: Callable[[float], Steps[None]]
    ) -> None:
        self._entry = entry
        self._connect = connect
        self._pause = pause
        self._nodes: dict[Address, Connections] = {}
        # The node that has a slot. Threads share it: it is replaced, or one slot is corrected.
        self._owners: dict[int, Address] = {}
        self._members = set(entry.nodes)

    def at(self, node: Address) -> Connections:
        """Return the connections to one node."""
        try:
            return self._nodes[node]
        except KeyError:
            return self._nodes.setdefault(node, self._connect(self._entry.at(node)))

    def leave_to_parent(self) -> None:
        for connections in self._nodes.values():
            connections.leave_to_parent()

    async def aclose(self) -> None:
        await asyncio.gather(*(connections.aclose() for connections in self._nodes.values()))

    async def exchange(self, batch: Batch) -> list[Any]:
        """Send a batch to the node that has its keys, and return the replies.

        Nothing is sent twice where that does harm. A refusal by a node says that nothing was done.
        """
        if isinstance(batch, Spread):
            return await self._exchange_spread(batch)
        slot, end = _slot_of(batch.commands[0]), time.monotonic() + PATIENCE
        asked: Address | None = None
        redirected = False
        while True:
            problem: RedisError = ClusterDownError(f"No node of the cluster has the slot {slot}.")
            owners = self._owners
            owner = owners.get(slot)
            node = asked or owner
            if node is not None:
                try:
                    replies = await self.at(node).exchange(_asking(batch) if asked else batch)
                except MaxConnectionsError:  # no other node can help
                    raise
                except (ConnectionError, TimeoutError) as error:
                    if not (batch.repeat or _was_not_sent(error)):
                        self._owners = {}
                        raise
                    problem = _alone(error)
                else:
                    replies = replies[1::2] if asked else replies
                    refusal = _refusal(batch, replies, node)
                    if refusal is None:
                        return replies
                    problem = refusal
            asked, pause = None, _PAUSE
            if isinstance(problem, MovedError):
                owners[slot] = problem.node_addr
                redirected, pause = True, _PAUSE if redirected else 0
            elif isinstance(problem, AskError):
                asked, pause = problem.node_addr, 0
            elif not isinstance(problem, TryAgainError):
                if self._owners is owners:  # nobody has looked meanwhile
                    await self._look(node, end)
                moved = self._owners.get(slot) != owner
                if isinstance(problem, TimeoutError) and not moved:  # the visitor has waited once
                    raise copy(problem)
                pause = 0 if moved else _PAUSE
            if time.monotonic() + pause > end:
                raise copy(problem)
            if pause:
                await self._pause(pause)

    async def _exchange_spread(self, batch: Spread) -> list[Any]:
        """Send the commands for each node in one write. If a node refuses some, send each of them again by itself."""
        of_nodes: dict[Address | None, list[int]] = {}
        for number, command in enumerate(batch.commands):
            of_nodes.setdefault(self._owners.get(_slot_of(command)), []).append(number)
        replies: dict[int, Any] = {}
        for node, numbers in of_nodes.items():
            if node is not None:
                part = Batch(*(batch.commands[number] for number in numbers))
                with suppress(ConnectionError):  # another node may have replaced it
                    replies.update(zip(numbers, await self.at(node).exchange(part), strict=True))
        for number, command in enumerate(batch.commands):
            if number not in replies or isinstance(replies[number], ResponseError):
                (replies[number],) = await self.exchange(Batch(command))
        return [replies[number] for number in range(len(batch.commands))]

    async def _look(self, failed: Address | None, end: float) -> None:
        """Ask any node who has which slot. The one that has failed is asked last."""
        nodes = self._members.union(self._entry.nodes)
        problem: RedisError = ConnectionError("No node of the cluster could be asked for its slots.")
        for node in sorted(nodes, key=lambda node: (node == failed, random.random())):
            if time.monotonic() > end:
                break
            try:
                (reply,) = await self.at(node).exchange(Batch(("CLUSTER", "SLOTS")))
            except (ConnectionError, TimeoutError) as error:
                problem = _alone(error)
                continue
            if isinstance(reply, ResponseError):
                problem = ConnectionError(f"it does not name its slots: {reply}")
            elif reply:
                owners = {}
                for first, last, *those in reply:
                    members = [(_host(host, node), port) for host, port, *_ in those]
                    owners.update(dict.fromkeys(range(first, last + 1), members[0]))
                    self._members.update(members)
                self._owners = owners
                return
        raise copy(problem)

    async def primaries(self) -> list[Address]:
        """Return the nodes that together have all keys, as any node names them now."""
        await self._look(None, time.monotonic() + PATIENCE)
        return list(dict.fromkeys(self._owners.values()))


def _slot_of(command: tuple[Any, ...]) -> int:
    key: str = command[3 if command[0] in ("EVALSHA", "EVAL") else 1]
    return key_slot(key.encode())


def _asking(batch: Batch) -> Batch:
    """Return the batch for a node that a slot is on its way to."""
    return Batch(*(part for command in batch.commands for part in (("ASKING",), command)), repeat=batch.repeat)


def _refusal(batch: Batch, replies: list[Any], node: Address) -> ResponseError | None:
    """Return why the node refused the batch or a part of it, if so.

    While a slot is on its way, each command of a batch may meet another state of it. If only some are to be asked
    elsewhere, others were answered here: then all are asked again, once the keys are in one place.
    """
    refusals = [reply for reply in replies if isinstance(reply, AskError | TryAgainError | ClusterDownError)]
    if not refusals:
        return None
    for refusal in refusals:
        if isinstance(refusal, AskError):
            refusal.node_addr = refusal.host or node[0], refusal.port
        if not isinstance(refusal, AskError) or isinstance(refusal, MovedError):
            return refusal
    with_keys = sum(command[0] != "WAIT" for command in batch.commands)
    return refusals[0] if len(refusals) == with_keys else TryAgainError(str(refusals[0]))


def _was_not_sent(error: RedisError) -> bool:
    """Whether a batch has certainly not been carried out: nobody listens there, or the node is starting."""
    return isinstance(error, BusyLoadingError) or isinstance(error.__context__, ConnectionRefusedError)


def _alone(error: RedisError) -> RedisError:
    """Return the error without the frames that it came through. The error and its frames would hold each other and all
    connections until the garbage collector comes. An error that a variable holds is therefore raised as a copy.
    """
    error.__context__ = None
    return error.with_traceback(None)


def _host(name: bytes | None, asked: Address) -> str:
    """Return the host of a node as another names it: with nothing, or ``?``, where that is the one that was asked."""
    return name.decode() if name and name != b"?" else asked[0]
