"""What the Redis engines send: commands, in batches, and scripts."""

import hashlib
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import Any, Final, TypeVar

Word = str | bytes
Command = tuple[Word, ...]
"""The words of a command. A number is written as text: hiredis 3.5.0 crashes the process when a signal handler raises
while it converts an ``int``.
"""
T = TypeVar("T")

LONGEST: Final = 10**12
"""Seconds that a session lives at most: some 30,000 years. A server refuses an expiry of 10^16. A script that has
written the session by then leaves it without an expiry.
"""

_GLOB: Final = str.maketrans({character: f"\\{character}" for character in "*?[]^-\\"})


def digest(data: bytes) -> str:
    """Return what ``redis.sha1hex()`` makes of the same bytes."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def escaped(text: str) -> str:
    """Return a pattern for SCAN that matches `text` alone."""
    return text.translate(_GLOB)


def seconds(ttl: int) -> str:
    """Return a TTL as commands take it: 0 for one that is over, and :data:`LONGEST` at most."""
    return str(max(0, min(ttl, LONGEST)))


def size_of(words: Any) -> int:
    """Return the number of bytes in the words of commands or replies, at any depth, without their framing."""
    if isinstance(words, dict):
        return size_of(words.items())
    if isinstance(words, Iterable) and not isinstance(words, str | bytes):
        return sum(map(size_of, words))
    return 0 if words is None else len(words if isinstance(words, bytes) else str(words).encode())


def _pack_in_python(command: Command) -> bytes:
    parts = [b"*%d\r\n" % len(command)]
    for word in command:
        data = word if isinstance(word, bytes) else word.encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


_pack: Callable[[Any], bytes] = _pack_in_python
with suppress(ImportError):
    from hiredis import pack_command as _pack


# Commands that a replica answers too, and the digests of scripts that it runs.
_READING: Final = {"EXISTS", "GET", "HGET", "HGETALL", "SCAN"}


class Script:
    """A Lua script; called with keys and arguments, it returns the command that runs it.

    Args:
        text: the script.
        reads: whether it changes nothing.
    """

    _texts: Final[dict[Word, str]] = {}

    def __init__(self, text: str, reads: bool = False) -> None:
        self._sha = digest(text.encode())
        self._texts[self._sha] = text
        if reads:
            _READING.add(self._sha)

    def __call__(self, keys: tuple[str, ...], *arguments: Word) -> Command:
        return "EVALSHA", self._sha, str(len(keys)), *keys, *arguments

    @classmethod
    def in_full(cls, command: Command) -> Command:
        """Return a command with the text of its script, for a server that does not know it (any more)."""
        return ("EVAL", cls._texts[command[1]], *command[2:]) if command[0] == "EVALSHA" else command


class Batch:
    """Commands that are sent in one write.

    Attributes:
        commands: the commands, each a tuple of its words.
        repeat: whether they may be sent again when nobody knows whether the server has carried them out.
    """

    __slots__ = ("commands", "repeat")

    def __init__(self, *commands: Command, repeat: bool = True) -> None:
        self.commands: tuple[tuple[Any, ...], ...] = commands
        self.repeat = repeat

    def packed(self) -> bytes:
        """Return the commands as they are sent (https://redis.io/docs/latest/develop/reference/protocol-spec/).

        redis-py's own packing takes twice as long: it knows more types, and splits long words.
        """
        commands = self.commands
        return _pack(commands[0]) if len(commands) == 1 else b"".join(map(_pack, commands))

    @property
    def reads(self) -> bool:
        """Whether it changes nothing, and a replica would answer it."""
        command = self.commands[0]
        return command[1 if command[0] == "EVALSHA" else 0] in _READING

    def in_full(self) -> "Batch":
        """Return the batch for a server that does not know its scripts."""
        return Batch(*map(Script.in_full, self.commands), repeat=self.repeat)


class Spread(Batch):
    """Commands that only read, and whose keys may be on different nodes of a cluster. None of them runs a script."""

    __slots__ = ()


Operation = Generator[Batch, list[Any], T]
