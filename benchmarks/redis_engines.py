"""The engines on Redis. All use one server, which starts at first use."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

from django.contrib.sessions.backends.db import SessionStore as DatabaseStore
from django.db import connection
from redis import Redis

from benchmarks import bare
from benchmarks.curves import CURVES
from benchmarks.engines import CHANGES_IN_PLACE, UNTIL_THE_END, Comparison, Engine, Peer, Setup
from tests.support.redis_servers import RedisServer

DJANGO_REDIS = "django_redis.cache.RedisCache"
DJANGO = "django.core.cache.backends.redis.RedisCache"


@cache
def server() -> RedisServer:
    return UNTIL_THE_END.enter_context(RedisServer())


def spread() -> None:
    """Let the server, if it runs, use all cores of this process."""
    if server.cache_info().currsize:
        server().run_on(os.sched_getaffinity(0))


def environment() -> dict[str, str]:
    """Return the server's lines of the report; none if no engine needed it."""
    if not server.cache_info().currsize:
        return {}
    with client_of(f"redis://127.0.0.1:{server().port}") as client:
        info: Any = client.info("server")
    return {"Redis server": info["redis_version"]}


def client_of(url: str) -> "AbstractContextManager[Redis]":
    client: Redis = Redis.from_url(url)
    return client


@contextmanager
def _database(number: int) -> Iterator[str]:
    url = f"redis://127.0.0.1:{server().port}/{number}"
    with client_of(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


@contextmanager
def on_redis(backend: str, number: int) -> Iterator[Setup]:
    with _database(number) as url:
        alias = f"redis-{number}"
        entry = {"BACKEND": backend, "LOCATION": url}
        yield Setup(settings={"SESSION_CACHE_ALIAS": alias}, caches={alias: entry}, copy=partial(_copy, url))


def _copy(url: str, copies: int) -> None:
    with client_of(url) as client:
        for key in list(client.scan_iter()):
            client.eval("for n = 1, ARGV[1] do redis.call('COPY', KEYS[1], KEYS[1] .. '-' .. n) end", 1, key, copies)


@contextmanager
def _cache_and_database(number: int) -> Iterator[Setup]:
    model = DatabaseStore.get_model_class()
    if model._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(model)
    with on_redis(DJANGO_REDIS, number) as setup:
        yield setup
    model._default_manager.all().delete()


@contextmanager
def _bare(number: int) -> Iterator[Setup]:
    with _database(number) as url, client_of(url) as client:
        bare.SessionStore.client = client
        yield Setup(value_of=lambda stored: bare.value_of(stored)["_auth_user_id"])


def _engine(name: str, module: str, setup: Callable[..., AbstractContextManager[Setup]], *args: Any) -> Engine:
    return Engine(name, module, partial(setup, *args), _OPERATIONS)


def _with_curves(engine: Engine) -> Engine:
    return replace(engine, operations=engine.operations | CURVES)


_ASYNC = frozenset({"async load", "async modify", "async touch", "async create", "async login"})
_OPERATIONS = _ASYNC | CHANGES_IN_PLACE | {"load", "modify", "touch", "touch, due", "create", "login"}

OUR_REDIS = _with_curves(_engine("redis", "gsession_django.backends.redis", on_redis, DJANGO_REDIS, 1))
OUR_REDIS_HASH = _with_curves(_engine("redis_hash", "gsession_django.backends.redis_hash", on_redis, DJANGO_REDIS, 2))
DJANGO_REDIS_CACHE = _with_curves(
    _engine("cache on django-redis", "django.contrib.sessions.backends.cache", on_redis, DJANGO_REDIS, 3)
)
DJANGO_CACHE = _engine("cache on Django's RedisCache", "django.contrib.sessions.backends.cache", on_redis, DJANGO, 4)
CACHED_DB = _engine("cached_db", "django.contrib.sessions.backends.cached_db", _cache_and_database, 5)
BARE = replace(_engine("client.get", "benchmarks.bare", _bare, 6), operations=frozenset({"load"}))

_BOTH: Mapping[str, float] = {
    "load": 0.7,
    "create": 0.35,
    "modify": 0.5,
    "touch": 0.3,
    "async load": 0.55,
    "async modify": 0.4,
}
_TARGETS: Mapping[str, Mapping[str, float]] = {
    OUR_REDIS.name: {
        **_BOTH,
        "login": 0.35,
        **dict.fromkeys(("load, 1 kB", "load, 10 kB", "load, 100 kB", "load, 1 MB"), 0.9),
        "modify, 10 kB": 0.6,
        "modify, 100 kB": 0.9,
        "modify, 1 MB": 0.9,
    },
    OUR_REDIS_HASH.name: {**_BOTH, "login": 0.36, "load, 1 MB": 0.1, "modify, 1 MB": 0.1},
}

COMPARISONS = (
    Comparison(
        "redis",
        (OUR_REDIS, OUR_REDIS_HASH),
        (
            Peer(DJANGO_REDIS_CACHE, _TARGETS),
            Peer(DJANGO_CACHE),
            Peer(CACHED_DB),
            Peer(BARE, {ours: {"load": 1.0} for ours in _TARGETS}),
        ),
    ),
)
