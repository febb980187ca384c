"""Where the Redis engines connect to: a django-redis entry of ``CACHES``, read as django-redis reads it.

``SESSION_CACHE_ALIAS`` names the entry. What it says about connections holds for sessions too (URL, TLS, user and
password, timeouts, pool size, client and pool class); what it says about cached values has no meaning here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit, urlunsplit

import redis.asyncio as aio
import redis.asyncio.connection as aio_connection
import redis.asyncio.retry as aio_retry
import redis.asyncio.sentinel as aio_sentinel
import redis.connection
import redis.sentinel
from django.conf import settings
from django.core.cache.backends.base import default_key_func
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string
from django_redis.cache import RedisCache
from django_redis.client.sentinel import SentinelClient
from django_redis.client.sharded import ShardClient
from django_redis.pool import SentinelConnectionFactory, get_connection_factory
from redis.connection import PythonRespSerializer, to_bool
from redis.retry import Retry

from gsession_django.recording import System
from gsession_django.redis.cluster import ClusterClient, addresses
from gsession_django.redis.sentinel import AsyncSentinel, Sentinel, sentinel_arguments

TIMEOUTS: Final = {"SOCKET_CONNECT_TIMEOUT": 1, "SOCKET_TIMEOUT": 2}
"""Seconds, for an entry without timeouts. django-redis leaves them to redis-py, which may wait for ever."""

WAIT_TIMEOUT: Final = 0.1
"""Seconds to wait for replicas, without the engine's option."""

# redis-py's own classes that an entry may name, and their async counterparts. Of a subclass, the nearest base counts.
ASYNC_POOLS: Final[dict[type, Any]] = {
    redis.connection.ConnectionPool: aio.ConnectionPool,
    redis.connection.BlockingConnectionPool: aio.BlockingConnectionPool,
    redis.sentinel.SentinelConnectionPool: aio_sentinel.SentinelConnectionPool,
}
ASYNC_CONNECTIONS: Final[dict[type, Any]] = {
    redis.connection.Connection: aio_connection.Connection,
    redis.connection.SSLConnection: aio_connection.SSLConnection,
    redis.connection.UnixDomainSocketConnection: aio_connection.UnixDomainSocketConnection,
    redis.sentinel.SentinelManagedConnection: aio_sentinel.SentinelManagedConnection,
    redis.sentinel.SentinelManagedSSLConnection: aio_sentinel.SentinelManagedSSLConnection,
}
_KEY_FUNCTIONS_OF_DJANGO: Final = (None, default_key_func, f"{default_key_func.__module__}.{default_key_func.__name__}")
# What OPTIONS may name by a dotted path. redis-py 5 has renamed its parsers.
_CLASSES: Final = ("CLIENT_CLASS", "CONNECTION_FACTORY", "CONNECTION_POOL_CLASS", "PARSER_CLASS", "REDIS_CLIENT_CLASS")
# Packs what redis-py sends by itself, such as the number of the database. Its default is hiredis, which crashes the
# process when a signal handler raises while it converts an int. Async connections of redis-py do not use hiredis.
_PACKER: Final = PythonRespSerializer(6000, lambda word: word if isinstance(word, bytes) else str(word).encode())
# A host and its port.
Address = tuple[str, int]
# Arguments that only redis-py's sync classes take.
_SYNC_ONLY: Final = frozenset({"parser_class", "himport_registry", "event_dispatcher"})


@dataclass(frozen=True)
class CacheEntry:
    """An entry of ``CACHES``.

    Attributes:
        alias: its name there.
        url: the server, or the first of several: the one that is written to, or any node of a cluster.
        options: its ``OPTIONS``, with timeouts where it has none.
        key_prefix: its ``KEY_PREFIX``.
        urls: all of its ``LOCATION``.
        key_function: its ``KEY_FUNCTION``, if that is not Django's.
    """

    alias: str
    url: str = field(repr=False)  # as the others, it may hold a password
    options: Mapping[str, Any] = field(repr=False)
    key_prefix: str
    urls: tuple[str, ...] = field(repr=False)
    key_function: Any = None

    @classmethod
    def of_sessions(cls) -> "CacheEntry":
        """Return the entry that ``SESSION_CACHE_ALIAS`` names.

        Raises ``ImproperlyConfigured`` if there is none, none of django-redis, or none that sessions can be kept with.
        """
        alias = settings.SESSION_CACHE_ALIAS
        entry = settings.CACHES.get(alias)
        if entry is None:
            raise ImproperlyConfigured(
                f"SESSION_CACHE_ALIAS = {alias!r} is not in CACHES, which has {', '.join(map(repr, settings.CACHES))}. "
                "Add an entry with the BACKEND 'django_redis.cache.RedisCache', and name it there."
            )
        if not _is_django_redis(entry["BACKEND"]):
            raise ImproperlyConfigured(
                f"SESSION_CACHE_ALIAS = {alias!r}: CACHES[{alias!r}] has the BACKEND {entry['BACKEND']!r}. Name an "
                "entry there whose BACKEND is 'django_redis.cache.RedisCache'."
            )
        urls = urls_of(entry)
        if not urls or not urls[0]:
            raise ImproperlyConfigured(
                f"CACHES[{alias!r}] has no LOCATION. Give it a URL such as 'redis://host:6379/1'."
            )
        options = {**TIMEOUTS, **entry.get("OPTIONS", {})}
        function = entry.get("KEY_FUNCTION")
        custom = None if function in _KEY_FUNCTIONS_OF_DJANGO else function
        found = cls(alias, urls[0], options, entry.get("KEY_PREFIX", ""), tuple(urls), custom)
        found._check()
        return found

    def __str__(self) -> str:
        """The entry as messages name it: without the password that the URL may hold."""
        parts = urlsplit(self.url)
        return f"CACHES[{self.alias!r}] ({parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path})"

    def _check(self) -> None:
        """Raise ``ImproperlyConfigured`` for what no session can be kept with."""
        for name in _CLASSES:
            if path := self.options.get(name):
                try:
                    import_string(path)
                except ImportError as error:
                    raise ImproperlyConfigured(
                        f"CACHES[{self.alias!r}] has {name!r}: {path!r} in its OPTIONS, which cannot be imported: "
                        f"{error}. Correct the dotted path, or take it out."
                    ) from error
        if not all(is_url(url) for url in (self.urls if self.is_cluster else self.urls[:1]) if url):
            raise ImproperlyConfigured(
                f"CACHES[{self.alias!r}] has a LOCATION that cannot be read as a URL. Write it like "
                "'redis://user:password@host:6379/1', and in a password '%23' for '#', '%2F' for '/', '%3F' for '?', "
                "'%40' for '@' and '%5B' for '['."
            )
        if issubclass(self._client_class, ShardClient):
            raise ImproperlyConfigured(
                f"{self}: the CLIENT_CLASS {self._client_class.__qualname__} spreads keys over several servers. Name "
                "an entry with one server, Sentinel or a Redis Cluster in SESSION_CACHE_ALIAS."
            )
        if self.is_cluster and (self.url.startswith("unix:") or database_of(self.url, self.options) != "0"):
            raise ImproperlyConfigured(
                f"{self}: the CLIENT_CLASS {self._client_class.__qualname__} takes URLs such as 'redis://host:6379', "
                "without a database number, as a cluster has only one database. Correct the LOCATION."
            )
        in_url = parse_qs(urlsplit(self.url).query)
        wants_sentinel = issubclass(self._client_class, SentinelClient) or issubclass(
            self._factory.pool_cls, redis.sentinel.SentinelConnectionPool
        )
        if wants_sentinel and not isinstance(self._factory, SentinelConnectionFactory):
            raise ImproperlyConfigured(
                f"{self} is for Sentinel, but its connections are made by {type(self._factory).__qualname__}. Set "
                "'CONNECTION_FACTORY' in its OPTIONS, or DJANGO_REDIS_CONNECTION_FACTORY, to "
                "'django_redis.pool.SentinelConnectionFactory'."
            )
        if isinstance(self._factory, SentinelConnectionFactory) and urlsplit(self.url).scheme != "redis":
            raise ImproperlyConfigured(
                f"{self}: behind Sentinel a LOCATION begins with redis://, which names a master. For TLS, give "
                "CONNECTION_POOL_KWARGS the entry 'ssl': True."
            )
        if not to_bool(in_url.get("is_master", ["1"])[-1]):  # type: ignore[no-untyped-call]
            raise ImproperlyConfigured(
                f"{self} begins with a replica (is_master=0), to which no session can be saved. Put the URL of the "
                "master first in LOCATION."
            )
        decodes = in_url.get("decode_responses", ["false"])[-1]
        if decodes.lower() not in ("false", "no", "0") or self._factory.pool_cls_kwargs.get("decode_responses"):
            raise ImproperlyConfigured(
                f"{self} has decode_responses, but sessions and cached values are bytes. Take it out of the LOCATION "
                "and of CONNECTION_POOL_KWARGS."
            )

    @cached_property
    def is_cluster(self) -> bool:
        """Whether it is a Redis Cluster."""
        return issubclass(self._client_class, ClusterClient)

    @property
    def system(self) -> System:
        """The server, as tracing tools name it. Sentinel knows where a master is, and the entry only its name."""
        parts = urlsplit(self.url)
        database = None if self.is_cluster else database_of(self.url, self.options)
        if parts.scheme == "unix":
            return System("redis", True, namespace=database, address=parts.path)
        if isinstance(self._factory, SentinelConnectionFactory):
            return System("redis", True, namespace=database)
        return System("redis", True, None, database, parts.hostname or "localhost", parts.port or 6379)

    @property
    def nodes(self) -> list[Address]:
        """Host and port of each URL: of a cluster, the nodes to begin with."""
        return addresses(self.urls)

    def at(self, node: Address) -> "CacheEntry":
        """Return the same entry for one node of the cluster."""
        host, port = node
        parts = urlsplit(self.url)
        login, sign, _ = parts.netloc.rpartition("@")
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        url = urlunsplit(parts._replace(netloc=login + sign + place))
        return replace(self, url=url, urls=(url,))

    @cached_property
    def _client_class(self) -> type:
        client_class: type = import_string(self.options.get("CLIENT_CLASS", "django_redis.client.DefaultClient"))
        return client_class

    @cached_property
    def _factory(self) -> Any:
        return get_connection_factory(options=dict(self.options))  # Sentinel's adds to them

    @cached_property
    def _pool_arguments(self) -> dict[str, Any]:
        return {**self._factory.make_connection_params(self.url), **self._factory.pool_cls_kwargs}

    def make_pool(self) -> Any:
        """Return a connection pool of our own; django-redis shares its pools by URL, whatever their timeouts are."""
        arguments = self._factory.make_connection_params(self.url)
        pool = self._factory.get_connection_pool({**arguments, "command_packer": _PACKER})
        if isinstance(pool, redis.sentinel.SentinelConnectionPool):
            manager = Sentinel(  # type: ignore[no-untyped-call]
                self.options["SENTINELS"], sentinel_kwargs=sentinel_arguments(self.options)
            )
            for sentinel in manager.sentinels:
                sentinel.connection_pool.connection_kwargs["command_packer"] = _PACKER
            pool.sentinel_manager = pool.proxy.sentinel_manager = manager
        return pool

    def make_client(self, pool: Any) -> Any:
        """Return redis-py's ordinary client on a pool."""
        return self._factory.redis_client_cls(connection_pool=pool, **self._factory.redis_client_cls_kwargs)

    def make_async_pool(self) -> Any:
        """Return the same pool for ``redis.asyncio``."""
        arguments = {name: value for name, value in self._pool_arguments.items() if name not in _SYNC_ONLY}
        _await_retries(arguments)
        if "connection_class" in arguments:
            arguments["connection_class"] = _counterpart(arguments["connection_class"], ASYNC_CONNECTIONS)
        pool_class = _counterpart(self._factory.pool_cls, ASYNC_POOLS)
        if pool_class is aio_sentinel.SentinelConnectionPool:
            of_sentinels = sentinel_arguments(self.options)
            _await_retries(of_sentinels)
            arguments["service_name"] = urlsplit(arguments["url"]).hostname
            arguments["sentinel_manager"] = AsyncSentinel(  # type: ignore[no-untyped-call]
                self.options["SENTINELS"], sentinel_kwargs=of_sentinels
            )
        return pool_class.from_url(**arguments)


def urls_of(entry: Mapping[str, Any]) -> list[str]:
    """Return the URLs in ``LOCATION``: one, or several with commas between them, or in a list."""
    location = entry.get("LOCATION") or ""
    return location.split(",") if isinstance(location, str) else list(location)


def is_url(url: str) -> bool:
    """Return whether a URL can be read as it was meant: ``False`` where a sign in its password ends its host part."""
    try:
        addresses([url])
    except ValueError:  # which quotes what it could not read
        return False
    parts = urlsplit(url.strip())
    rest = parts.fragment if parts.scheme == "unix" else parts.path + parts.fragment
    return "://" in url and "@" not in rest


def database_of(url: str, options: Mapping[str, Any]) -> str:
    """Return the number of the Redis database that an entry with this URL and these ``OPTIONS`` uses."""
    parts = urlsplit(url)
    number = parse_qs(parts.query).get("db", [""])[0] or (parts.path.strip("/") if parts.scheme != "unix" else "")
    return number or str(options.get("db", options.get("CONNECTION_POOL_KWARGS", {}).get("db", 0)))


def _await_retries(arguments: dict[str, Any]) -> None:
    if isinstance(retry := arguments.get("retry"), Retry):
        arguments["retry"] = aio_retry.Retry(retry._backoff, retry.get_retries(), retry._supported_errors)  # type: ignore[arg-type]


def _is_django_redis(backend: str) -> bool:
    try:
        return issubclass(import_string(backend), RedisCache)
    except ImportError:
        return False


def _counterpart(sync_class: type, table: Mapping[type, Any]) -> Any:
    for base in sync_class.__mro__:
        if base in table:
            return table[base]
    raise ImproperlyConfigured(
        f"{sync_class.__module__}.{sync_class.__qualname__}, named in CACHES, has no counterpart in redis.asyncio. "
        f"Name one of {', '.join(known.__qualname__ for known in table)}, or a subclass."
    )
