"""System checks of the Redis engines: the entry of ``CACHES``, and the server."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured
from redis.exceptions import RedisError

from gsession_django.core.options import fits, given_options
from gsession_django.core.storage import StorageUnavailable
from gsession_django.redis.client import RedisClient
from gsession_django.redis.prefix import Prefix, function_of
from gsession_django.redis.settings import WAIT_TIMEOUT, CacheEntry, database_of, is_url, urls_of

_OLDEST = (6, 2)
# An idle server with the default hz may end a WAIT this many seconds late.
_TICK = 0.1


def check_entry(engine: str) -> Iterator[CheckMessage]:
    """Check the entry that ``SESSION_CACHE_ALIAS`` names, without connecting."""
    try:
        entry = CacheEntry.of_sessions()
    except ImproperlyConfigured as error:
        yield Error(
            f"The session engine {engine!r} has no Redis to keep sessions in. {error}",
            hint="Write an entry of CACHES for sessions, as docs/redis.md shows.",
            id="gsession_django.E012",
        )
        return
    shared = [
        alias
        for alias, other in settings.CACHES.items()
        if alias != entry.alias and _databases(other) & _databases(settings.CACHES[entry.alias])
    ]
    if entry.alias == "default" or shared:
        found = f"is shared by {', '.join(map(repr, shared))}" if shared else "is the site's default cache"
        yield Warning(
            f"SESSION_CACHE_ALIAS = {entry.alias!r}: the Redis database of {entry} {found}.",
            hint="cache.clear() flushes the whole database and signs everybody out. Give sessions an entry of their "
            "own in CACHES, with another database number in its LOCATION, or better a server or cluster of their own.",
            id="gsession_django.W003",
        )
    yield from _check_prefix(engine, entry)
    yield from _check_waiting(engine, entry)


def _check_prefix(engine: str, entry: CacheEntry) -> Iterator[CheckMessage]:
    prefix = given_options(engine).get("prefix", "")
    try:
        if fits(prefix, Prefix):
            function_of(prefix, entry)
    except ImproperlyConfigured as error:
        yield Error(
            f'GSESSION["ENGINES"][{engine!r}]: {error}',
            hint="Correct prefix, as in docs/redis-tenants.md.",
            id="gsession_django.E015",
        )


def _check_waiting(engine: str, entry: CacheEntry) -> Iterator[CheckMessage]:
    options = given_options(engine)
    timeout = options.get("wait_timeout", WAIT_TIMEOUT)
    if not options.get("wait_replicas") or not fits(timeout, float):
        return
    pool = entry.make_pool()
    # The arguments lack redis-py's default, and a connection has it.
    limit = pool.connection_class(**pool.connection_kwargs).socket_timeout
    if limit is not None and timeout > limit - _TICK:
        yield Error(
            f'GSESSION["ENGINES"][{engine!r}] has the option wait_timeout = {timeout!r}, which is not {_TICK} '
            f"seconds less than the SOCKET_TIMEOUT = {limit} of {entry}.",
            hint="The server does not answer while it waits for replicas, so a change would look like a failure. "
            "Lower wait_timeout, or raise SOCKET_TIMEOUT in the OPTIONS of the entry.",
            id="gsession_django.E014",
        )


def _databases(entry: dict[str, Any]) -> set[object]:
    """Return an identity of the Redis database of each URL in an entry."""
    if "redis" not in entry["BACKEND"].lower():
        return set()
    found: set[object] = set()
    options = entry.get("OPTIONS", {})
    sentinels = repr(options.get("SENTINELS"))  # with them, the host is only a name that they know
    for url in filter(is_url, urls_of(entry)):
        parts = urlsplit(url.strip())
        socket = parts.path if parts.scheme == "unix" else ""
        found.add((parts.hostname or "localhost", parts.port or 6379, socket, database_of(url, options), sentinels))
    return found


def check_server(engine: str) -> Iterator[CheckMessage]:
    """Ask the server under ``check --deploy`` whether sessions are safe there."""
    try:
        entry = CacheEntry.of_sessions()
    except ImproperlyConfigured:
        return  # check_entry() reports it
    try:
        for server in RedisClient(entry).servers():
            pool = server.make_pool()
            try:
                yield from _check_answers(server, server.make_client(pool))
            finally:
                pool.disconnect()
    except (StorageUnavailable, RedisError, OSError) as error:
        yield Warning(
            f"The session engine {engine!r} could not ask {entry} about its configuration: "
            f"{type(error).__name__}: {error}",
            hint="Run the check where it can reach the server, as a user who may call INFO and CONFIG GET. Or look "
            "yourself, as in docs/redis.md.",
            id="gsession_django.W004",
        )


def _check_answers(entry: CacheEntry, client: Any) -> Iterator[CheckMessage]:
    info, config = client.info(), {**client.config_get("maxmemory-policy"), **client.config_get("save")}
    version = info["redis_version"]
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        yield Error(
            f"{entry} is a Redis {version}.",
            hint="Use Redis 6.2 or later, or Valkey.",
            id="gsession_django.E013",
        )
    if config["maxmemory-policy"] != "noeviction":
        yield Warning(
            f"{entry} has the maxmemory-policy {config['maxmemory-policy']!r}.",
            hint="When its memory is full, the server drops sessions, and visitors are signed out. Set the policy to "
            "'noeviction', and give sessions a server of their own: when that is full, it refuses to write.",
            id="gsession_django.W005",
        )
    if not info["aof_enabled"] and not config["save"]:
        yield Warning(
            f"{entry} keeps nothing on disk: appendonly is off and there are no save points.",
            hint="A restart ends every session. Set appendonly to 'yes'.",
            id="gsession_django.W006",
        )
