"""gsession_django.redis.link uses private names of redis-py; `setup.cfg` bounds redis for their sake."""

import asyncio
from typing import Any

import hiredis
import pytest
import redis
import redis.asyncio as aio
from redis._parsers.hiredis import NOT_ENOUGH_DATA, _HiredisParser
from redis.retry import Retry

from tests.support.redis_servers import shared

pytestmark = pytest.mark.once


def test_a_connection_has_its_socket_and_its_parser() -> None:
    client = redis.Redis(port=shared().port)
    connection: Any = client.connection_pool.get_connection()
    assert connection._sock.fileno() >= 0
    parser = connection._parser
    assert isinstance(parser, _HiredisParser)
    assert isinstance(parser._reader, hiredis.Reader)
    assert isinstance(parser._buffer, bytearray)
    assert parser._reader.gets(False) is NOT_ENOUGH_DATA
    assert callable(parser.handle_push_response)
    assert isinstance(connection.retry, Retry)
    assert connection.retry._backoff.compute(1) >= 0
    client.connection_pool.release(connection)
    client.close()


def test_an_async_connection_has_its_writer_and_its_parser() -> None:
    async def look() -> None:
        pool: Any = aio.ConnectionPool(port=shared().port)
        connection = await pool.get_connection()
        assert connection._writer.get_extra_info("socket").fileno() >= 0
        assert callable(connection._parser.read_response)
        assert connection in pool._in_use_connections
        await pool.release(connection)
        assert connection in pool._available_connections
        connection._parser.on_disconnect()
        connection._close()
        assert connection._writer is None

    asyncio.run(look())
