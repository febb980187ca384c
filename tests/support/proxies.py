"""A proxy on loopback, between a client and a real server: it delays data, or cuts connections."""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

# The fate of some bytes on their way: the bytes to pass on, and whether to cut the connection after them.
Passed = tuple[bytes, bool]


def everything(connection: int, data: bytes) -> Passed:
    """Pass all data on."""
    return data, False


class Proxy:
    """Listens on a free port and passes data on, each connection in two threads.

    Args:
        port: the port of the server.

    Attributes:
        port: the port of the proxy.
        server_port: the port of the server for the next connections. It may change at any time.
        on_request, on_reply: called with the number of the connection (0, 1, …) and some bytes on their way to the
            server, or from it. They return the bytes to pass on, and whether to cut the connection after them. They may
            block, run in many threads at once, and may change at any time.
        connections: the number of connections so far.
    """

    def __init__(self, port: int) -> None:
        self.server_port = port
        self.on_request: Callable[[int, bytes], Passed] = everything
        self.on_reply: Callable[[int, bytes], Passed] = everything
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._clients: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, query: str = "", db: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{db}{query}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.server_port))
            except OSError:  # the server refuses, so the client must see that too
                client.close()
                continue
            number = self.connections
            self.connections += 1
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            self._clients.append(client)
            for source, target, way in ((client, server, "on_request"), (server, client, "on_reply")):
                threading.Thread(target=self._pass_on, args=(number, source, target, way), daemon=True).start()

    def send_to_client(self, number: int, data: bytes) -> None:
        """Send some bytes on a connection, as if they came from the server."""
        self._clients[number].sendall(data)

    def _pass_on(self, number: int, source: socket.socket, target: socket.socket, way: str) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                passed, cut = getattr(self, way)(number, data)
                target.sendall(passed)
                if cut:
                    break
        self._close(source, target)

    def _close(self, *ends: socket.socket, reset: bool = False) -> None:
        with self._lock:
            ends = tuple(end for end in ends if end in self._open)
            self._open.difference_update(ends)
        for end in ends:
            with suppress(OSError):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                # close() alone does not end the connection while another thread reads.
                end.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
            end.close()

    def cut_all(self, reset: bool = False) -> None:
        """Cut every open connection. With `reset` the end comes as an RST, as a firewall may send."""
        with self._lock:
            ends = list(self._open)
        self._close(*ends, reset=reset)

    def stop(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
