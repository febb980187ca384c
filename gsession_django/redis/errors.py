"""What an error of the server means: an outage, a key that holds no session, or a mistake in what it was asked."""

import re
from typing import Final

from redis.exceptions import ResponseError

from gsession_django.core.storage import StorageUnavailable
from gsession_django.serializers import DecodeError

# Lua could not carry out a line of a script ("@user_script" would name a line whose command failed), or a command has a
# number that no server takes.
_MISTAKE: Final = re.compile(r"(?<!@)user_script:\d|invalid expire time|not an integer or out of range")


def failure(where: object, error: Exception) -> Exception:
    """Return what a storage raises in place of what redis-py raised.

    Args:
        where: the server, for messages.
        error: what redis-py raised.

    Returns:
        :class:`StorageUnavailable` where the server cannot be reached, does not answer in time, or cannot do now what
        it was asked; ``DecodeError`` where a key of ours holds no session but another type of Redis.

    Raises:
        ResponseError: `error` itself, where the server will never do what it was asked.
    """
    reason = f"{type(error).__name__}: {error}".rstrip(". :")
    if isinstance(error, ResponseError):
        if "WRONGTYPE" in reason:  # in the middle, where a script met it
            return DecodeError(f"{where} has something else than a session under its key: {reason}.")
        if _MISTAKE.search(reason):
            raise error
    return StorageUnavailable(f"{where} cannot answer: {reason}. Look at the server, and at this entry.")
