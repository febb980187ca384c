"""What can be said of a session before it is moved: why the target would refuse it.

That is known of the engines of this package, as far as their servers tell. What a storage of a site refuses shows when
sessions are moved there.
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
"""Raises what says why a session, with its id and its pairs, would be refused."""

# Bytes of the longest statement that stores a session, beside its data.
_STATEMENT: Final = 300
# Bytes of a word that Redis takes, where it does not say.
_WORD: Final = 512 * 1024 * 1024


def limit_of(storage: Storage) -> Limit:
    """Return what knows the limits of a storage; its server is asked for them now."""
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
        # The drivers escape the bytes, or write them in hexadecimal; an old one does not tell.
        mogrify = getattr(connection.connection.cursor(), "mogrify", lambda statement, parameters: parameters[0])
        written = mogrify("%s", [encode(data)])
        _check_size(len(written) + _STATEMENT, most, "max_allowed_packet")

    return check


def _limit_of_hash(storage: RedisHashStorage) -> Limit:
    most = _longest_word(storage)

    def check(session_id: str, data: Mapping[str, Any]) -> None:
        if not all(type(key) is str for key in data):
            data = decode(encode(data))  # the serializer knows what becomes of such keys
        for key, value in data.items():
            field_of(key)
            _check_size(len(stored_of(key, value, lambda key, value: encode(value))), most, "proto-max-bulk-len")

    return check


def _longest_word(storage: BaseRedisStorage) -> int:
    try:
        (reply,) = storage.client.send(Batch(("CONFIG", "GET", "proto-max-bulk-len")))
        ((_, most),) = pairs(reply)
        return int(most)
    except Exception:  # not everybody may ask, and not every service answers
        return _WORD


def _check_size(size: int, most: int, setting: str) -> None:
    if size > most:
        raise ValueError(f"it takes {size} bytes, and {setting} is {most}")
