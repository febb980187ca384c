"""Foresees why a target would refuse a session.

It knows the limits of this package's engines, as far as their servers tell them. What a site's own storage refuses
only shows in the move.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from gsession_django.backends.database import DatabaseStorage
from gsession_django.backends.file import FileStorage
from gsession_django.backends.redis import RedisStorage
from gsession_django.backends.redis_hash import RedisHashStorage
from gsession_django.core.storage import Storage
from gsession_django.database.rows import check_new_id as check_row_id
from gsession_django.file.folder import check_new_id as check_file_name
from gsession_django.redis.commands import Batch
from gsession_django.redis.fields import field_of, pairs, stored_of
from gsession_django.redis.storage import BaseRedisStorage
from gsession_django.serializers import decode, encode

Limit = Callable[[str, Mapping[str, Any]], None]
"""Takes a session's id and pairs, and raises an error with the reason if the target would refuse it."""

# The longest statement that stores a session has fewer bytes than this beside the data.
_STATEMENT: Final = 300
# The default of proto-max-bulk-len, in bytes, for a server that does not tell.
_WORD: Final = 512 * 1024 * 1024


def limit_of(storage: Storage) -> Limit:
    """Return the Limit of a storage, after asking its server."""
    if isinstance(storage, DatabaseStorage):
        return _limit_of_database(storage)
    if isinstance(storage, FileStorage):
        return lambda session_id, data: check_file_name(session_id)
    if isinstance(storage, RedisStorage):
        most = _longest_word(storage)
        return lambda session_id, data: _check_size(len(encode(data)), most, "proto-max-bulk-len")
    if isinstance(storage, RedisHashStorage):
        return _limit_of_hash(storage)
    return lambda session_id, data: None


def _limit_of_database(storage: DatabaseStorage) -> Limit:
    connection = storage.table.connection
    if connection.vendor != "mysql":
        return lambda session_id, data: check_row_id(session_id)
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        (most,) = cursor.fetchone()

    def check(session_id: str, data: Mapping[str, Any]) -> None:
        check_row_id(session_id)
        connection.ensure_connection()
        # A driver writes the bytes escaped or in hexadecimal. An old one has no mogrify().
        mogrify = getattr(connection.connection.cursor(), "mogrify", lambda statement, parameters: parameters[0])
        written = mogrify("%s", [encode(data)])
        _check_size(len(written) + _STATEMENT, most, "max_allowed_packet")

    return check


def _limit_of_hash(storage: RedisHashStorage) -> Limit:
    most = _longest_word(storage)

    def check(session_id: str, data: Mapping[str, Any]) -> None:
        if not all(type(key) is str for key in data):
            data = decode(encode(data))  # the serializer may make text of other keys
        for key, value in data.items():
            field_of(key)
            _check_size(len(stored_of(key, value, lambda key, value: encode(value))), most, "proto-max-bulk-len")

    return check


def _longest_word(storage: BaseRedisStorage) -> int:
    try:
        (reply,) = storage.client.send(Batch(("CONFIG", "GET", "proto-max-bulk-len")))
        ((_, most),) = pairs(reply)
        return int(most)
    except Exception:  # a user or a service may lack CONFIG GET
        return _WORD


def _check_size(size: int, most: int, setting: str) -> None:
    if size > most:
        raise ValueError(f"it takes {size} bytes, and {setting} is {most}")
