"""The memory that a session takes on the Redis server."""

import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

from django.test.utils import override_settings
from redis import Redis

from benchmarks.engines import Engine
from benchmarks.measure import Subject
from benchmarks.operations import SESSION, new_session
from benchmarks.redis_engines import DJANGO_CACHE, DJANGO_REDIS_CACHE, OUR_REDIS, OUR_REDIS_HASH, client_of, server
from benchmarks.report import SizeResult

SESSIONS, QUICK = 20_000, 2000
_ENGINES = (OUR_REDIS, OUR_REDIS_HASH, DJANGO_REDIS_CACHE, DJANGO_CACHE)
_SAMPLE = 1000


def measure_sizes(sessions: int) -> Iterator[SizeResult]:
    server.cache_clear()  # a new server: the buffers of a used one would shrink meanwhile
    for engine in _ENGINES:
        print(f"Measuring bytes, {engine.name} ...", file=sys.stderr)
        yield _size(engine, sessions)


def _size(engine: Engine, sessions: int) -> SizeResult:
    with engine.setup() as setup, override_settings(CACHES=setup.caches):
        subject = Subject(engine, setup)
        (entry,) = setup.caches.values()
        with subject.turn(), client_of(entry["LOCATION"]) as client:
            new_session(subject, SESSION)  # opens the connection, and loads the scripts
            client.flushdb()
            before = _used(client)
            for _ in range(sessions):
                new_session(subject, SESSION)
            used = _used(client) - before
            keys = list(islice(client.scan_iter(count=_SAMPLE), _SAMPLE))
            usage: Any = [client.memory_usage(key) for key in keys]
            return SizeResult(
                engine.name,
                sessions,
                keys=client.dbsize() / sessions,
                memory_usage=sum(usage) / len(keys) * client.dbsize() / sessions,
                used_memory=used / sessions,
            )


def _used(client: Redis) -> int:
    info: Any = client.info("memory")
    used: int = info["used_memory"]
    return used
