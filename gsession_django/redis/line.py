"""An open connection's socket and parser, used directly: the quickest way to send a batch and read its replies."""

import builtins
import select
import socket
import struct
from typing import Any, Final

from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from gsession_django.redis.commands import Batch
from gsession_django.redis.exchange import looked_at

# What replies are as a rule; an error is of none of these types, and neither is what the server pushes in between.
_SIMPLE: Final = frozenset({bytes, int, dict, list, type(None)})


def line_of(connection: Any) -> "Line | None":
    """Return the line of a connection that has just been opened; ``None`` where only redis-py knows how to use it.

    Such is a socket that is not a plain one of Python's, but TLS's or gevent's, a parser that is not hiredis', and one
    that has something left already.
    """
    sock, has_data = connection._sock, getattr(getattr(connection._parser, "_reader", None), "has_data", None)
    plain = type(sock) is socket.socket and socket.socket.__module__ == "socket"
    if not plain or has_data is None or has_data() or connection.health_check_interval:
        return None
    if timeout := connection.socket_timeout:
        # Python asks the kernel whether a socket with a timeout is ready before each call. One that keeps the timeout
        # itself needs no asking.
        seconds, fraction = divmod(timeout, 1)
        kernels = struct.pack("@ll", int(seconds), max(1, int(fraction * 1_000_000)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, kernels)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, kernels)
        sock.settimeout(None)
    return Line(sock, connection._parser, timeout)


class Line:
    """A socket that keeps its timeout itself, and the parser of what comes from it.

    redis-py's ways to read a short reply, and to see whether there is anything to be read, take three times as long.

    Args:
        sock: the socket.
        parser: redis-py's parser on hiredis, with nothing in it.
        timeout: seconds, for messages.

    Attributes:
        poll: called with 0, returns something if there is anything on the socket, its end too, that nobody has read.
        has_data: returns whether the parser has anything that nobody has asked it for.
    """

    __slots__ = (
        *("_buffer", "_feed", "_gets", "_nothing", "_parser", "_recv_into", "_sendall", "_timeout"),
        *("has_data", "poll"),
    )

    def __init__(self, sock: socket.socket, parser: Any, timeout: float | None) -> None:
        self._sendall, self._recv_into, self._buffer = sock.sendall, sock.recv_into, parser._buffer
        reader = parser._reader
        self._feed, self._gets, self.has_data = reader.feed, reader.gets, reader.has_data
        self._nothing = reader.gets(False)  # what it returns where a reply is not there as a whole
        self._parser, self._timeout = parser, timeout
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        self.poll = poll.poll

    def talk(self, batch: Batch) -> list[Any]:
        """Send a batch and return the replies, as ``exchange.talk()`` does."""
        try:
            self._sendall(batch.packed())
            gets, nothing = self._gets, self._nothing
            replies: list[Any] = []
            while len(replies) < len(batch.commands):
                while (reply := gets(False)) is nothing:
                    if not (length := self._recv_into(self._buffer)):
                        raise ConnectionError("the server has closed the connection")
                    self._feed(self._buffer, 0, length)
                if type(reply) not in _SIMPLE:
                    if isinstance(reply, ConnectionError):  # it is loading its data, for one
                        raise reply
                    if isinstance(reply, list):
                        self._parser.handle_push_response(reply)
                        continue
                    if isinstance(reply, ResponseError):
                        reply = looked_at(reply)
                replies.append(reply)
        except BlockingIOError as error:  # which is how the kernel says that the time is over
            raise TimeoutError(f"no answer within {self._timeout:g} seconds") from error
        except OSError as error:
            if isinstance(error, builtins.TimeoutError) and error.errno is None:  # Python's: redis-py has set one since
                raise TimeoutError("no answer in time") from error
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        return replies
