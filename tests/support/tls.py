"""TLS in front of a real Redis server that has none: certificates, and a proxy on loopback."""

import asyncio
import ssl
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import trustme

T = TypeVar("T")


class TlsProxy:
    """Listens on a free port with TLS, and passes the data on to a server without.

    Args:
        port: the port of the server.
        folder: the folder for the certificate of the authority.

    Attributes:
        port: the port of the proxy.
        authority: the file with the certificate of the authority.
        on_reply: gets bytes on their way to a client, and returns the bytes to pass on, in one TLS record if they are
            few. It may change at any time.
        connections: the number of connections so far.
    """

    def __init__(self, port: int, folder: Path) -> None:
        self._server_port = port
        authority = trustme.CA()
        self.authority = str(folder / "authority.pem")
        authority.cert_pem.write_to_path(self.authority)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(self._context)
        self.on_reply: Callable[[bytes], bytes] = bytes
        self.connections = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None] | None] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._listener = self._run(asyncio.start_server(self._connect, "127.0.0.1", 0, ssl=self._context))
        self.port: int = self._listener.sockets[0].getsockname()[1]

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _connect(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        self._tasks.add(task)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._open |= {client_writer, writer}
        await asyncio.gather(
            self._pass_on(client_reader, writer, bytes),
            self._pass_on(reader, client_writer, lambda data: self.on_reply(data)),
        )
        self._open -= {client_writer, writer}
        self._tasks.discard(task)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: Callable[[bytes], bytes]
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(what(data))
                await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    def cut_all(self) -> None:
        """Cut every open connection, and wait until all are gone."""

        async def cut() -> None:
            for writer in self._open:
                if not writer.is_closing():  # otherwise Python 3.11.2 raises an error
                    writer.transport.abort()
            await asyncio.gather(*(task for task in self._tasks if task is not None))

        self._run(cut())

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._listener.close)
        self.cut_all()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
