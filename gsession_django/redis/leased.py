"""Connections that are leased for each operation, from a pool that redis-py's ordinary client would use."""

import asyncio
from typing import Any

from redis.exceptions import ConnectionError, TimeoutError

from gsession_django.redis.commands import Batch
from gsession_django.redis.exchange import aconnect_and_talk, connect_and_talk, has_unread, let_go, may_repeat


class Ordinary:
    """Connections leased as redis-py's ordinary client does, for pools and classes of which none are kept."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __call__(self, batch: Batch) -> list[Any]:
        # Not through a pipeline: whatever ends one, its connection goes back to the pool with what is still unread,
        # and with RESP3 the pool does not look.
        connection = self._pool.get_connection()
        try:
            try:
                if connection.can_read():
                    connection.disconnect()
                return connect_and_talk(connection, batch)
            except (ConnectionError, TimeoutError) as error:
                if not may_repeat(batch, connection, error):
                    raise
            connection.disconnect()
            replies: list[Any] = connection.retry.call_with_retry(
                lambda: connect_and_talk(connection, batch), lambda error: connection.disconnect()
            )
            return replies
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)

    def leave_to_parent(self) -> None:
        """Nothing to do: in a child, redis-py closes what it has, and only closes it."""


class AsyncOrdinary:
    """The same for one event loop."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def __call__(self, batch: Batch) -> list[Any]:
        connection = await self._pool.get_connection()
        try:
            try:
                if await connection.can_read() or has_unread(connection):
                    await connection.disconnect(nowait=True)
                return await aconnect_and_talk(connection, batch)
            except (ConnectionError, TimeoutError) as error:
                if not may_repeat(batch, connection, error):
                    raise
            await connection.disconnect(nowait=True)
            replies: list[Any] = await connection.retry.call_with_retry(
                lambda: aconnect_and_talk(connection, batch), lambda error: connection.disconnect(nowait=True)
            )
            return replies
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            # A second cancellation would end it in the middle, and the pool would count the connection for ever.
            await asyncio.shield(self._pool.release(connection))

    def leave_to_parent(self) -> None:
        let_go([*self._pool._available_connections, *self._pool._in_use_connections])

    async def aclose(self) -> None:
        await self._pool.disconnect()
