"""Requests pages from a site on 127.0.0.1 and takes the time.

The generator shares the machine with the servers that it measures, so it must cost little itself: it uses uvloop, and
httptools, which parses in C. It checks every reply, and a wrong one ends the run.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import cast

import httptools


class WrongReply(Exception):
    """A page is wrong, so its time means nothing."""


class _Connection(asyncio.Protocol):
    """One request at a time, and the parser's callbacks."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reply: asyncio.Future[tuple[int, bytes]] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from it

    def ask(self, request: bytes) -> "asyncio.Future[tuple[int, bytes]]":
        assert self.transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._reply = self._loop.create_future()
        self.transport.write(request)
        return self._reply

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        assert self.transport is not None
        assert self._reply is not None
        if not self._parser.should_keep_alive():
            self.transport.close()
            self.transport = None
        self._reply.set_result((self._parser.get_status_code(), self._body))

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error or ConnectionResetError("closed before the reply was complete"))


async def ask_for(port: int, requests: Sequence[bytes], body: bytes, clients: int) -> int:
    """Send the requests from `clients` clients at once, and return the nanoseconds that all took together."""
    waiting = iter(requests)
    start = time.perf_counter_ns()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(_client(port, waiting, body))
    return time.perf_counter_ns() - start


async def _client(port: int, waiting: Iterator[bytes], body: bytes) -> None:
    loop = asyncio.get_running_loop()
    connection = _Connection()
    for request in waiting:
        if connection.transport is None:
            _, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
        reply = await connection.ask(request)
        if reply != (200, body):
            raise WrongReply(f"{request!r} got {reply!r} in place of {(200, body)!r}")
    if connection.transport is not None:
        connection.transport.close()
