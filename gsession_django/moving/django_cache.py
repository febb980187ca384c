"""Moves sessions from Django's engine ``cache``, if the cache is on Redis."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from django.contrib.sessions.backends import cached_db
from django.contrib.sessions.backends.cache import SessionStore as CacheStore
from django.core.cache.backends.redis import RedisCache
from django.core.exceptions import ImproperlyConfigured
from django_redis.cache import RedisCache as DjangoRedisCache
from django_redis.client.herd import HerdClient
from django_redis.client.sharded import ShardClient
from django_redis.exceptions import ConnectionInterrupted
from redis.exceptions import RedisError

from gsession_django.core.pairs import EXPIRY_KEY
from gsession_django.moving.django_engines import cache_unavailable, expiry_age
from gsession_django.moving.source import Found
from gsession_django.redis.commands import escaped

T = TypeVar("T")

# A sample, which shows how the cache makes its keys of session keys.
_SOME_KEY: Final = "anykeyofasession"
# Keys of cached_db may be in the same cache, and the pattern for this engine's keys matches them.
_OTHERS: Final = cached_db.KEY_PREFIX
# How many keys one SCAN looks at.
_SCAN_COUNT: Final = 1000


class CacheSource:
    """``django.contrib.sessions.backends.cache`` and its subclasses, on django-redis or Django's own Redis cache.

    It asks the server itself, as the engine takes an outage for an empty session, and so does django-redis with
    ``IGNORE_EXCEPTIONS``. It asks the primary, as replicas may lag behind.
    """

    def __init__(self, name: str, store_class: type[CacheStore]) -> None:
        self.name = name
        self._store_class = store_class
        self._before, found, self._after = self._key(_SOME_KEY).partition(_SOME_KEY)
        if not found:
            raise ImproperlyConfigured(
                f"The engine {name!r} cannot list its sessions, so they cannot be moved: the KEY_FUNCTION of its cache "
                f"makes {self._before!r} of the session key {_SOME_KEY!r}, and nothing can turn that back."
            )

    def ref_of(self, session_key: str) -> str:
        return session_key

    def batches(self, size: int) -> Iterator[Sequence[str]]:
        pattern = f"{escaped(self._before)}*{escaped(self._after)}"
        keys = self._redis().scan_iter(match=pattern, count=_SCAN_COUNT)
        seen, batch = set(), []  # SCAN may return a key twice
        while (key := self._asked(lambda: next(keys, None))) is not None:
            ref = key.decode(errors="replace").removeprefix(self._before).removesuffix(self._after)
            if ref not in seen and not f"{self._store_class.cache_key_prefix}{ref}".startswith(_OTHERS):
                seen.add(ref)
                batch.append(ref)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def read(self, refs: Sequence[str]) -> Mapping[str, Found | None]:
        pipeline = self._redis().pipeline(transaction=False)
        for ref in refs:
            pipeline.get(self._key(ref))
            pipeline.pttl(self._key(ref))
        replies, found = self._asked(pipeline.execute), {}
        for ref, stored, left in zip(refs, replies[::2], replies[1::2], strict=True):
            if stored is None or left == -2:  # it expired between GET and PTTL
                continue
            session = self._session(stored, left)
            if session is None or session.ttl_left > 0:
                found[ref] = session
        return found

    def _session(self, stored: bytes, left: int) -> Found | None:
        try:
            data = self._decode(stored)
        except Exception:  # pickle may raise anything
            return None
        if not isinstance(data, dict):
            return None
        # PTTL is -1 if the key has no TTL.
        age = left / 1000 if left >= 0 else expiry_age(self._store_class(), data.get(EXPIRY_KEY))
        return None if age is None else Found(data, age)

    def present(self, refs: Sequence[str]) -> set[str]:
        pipeline = self._redis().pipeline(transaction=False)
        for ref in refs:
            pipeline.exists(self._key(ref))
        return {ref for ref, there in zip(refs, self._asked(pipeline.execute), strict=True) if there}

    def remove(self, refs: Sequence[str]) -> None:
        pipeline = self._redis().pipeline(transaction=False)
        for ref in refs:
            pipeline.delete(self._key(ref))
        self._asked(pipeline.execute)

    # django-redis and Django's own Redis cache differ in these.

    def _cache(self) -> Any:
        """Return the cache of this thread."""
        cache: Any = self._store_class()._cache  # type: ignore[attr-defined]
        if isinstance(cache, RedisCache):
            return cache
        if not isinstance(cache, DjangoRedisCache):
            raise ImproperlyConfigured(
                f"The engine {self.name!r} keeps sessions in a cache of {type(cache).__module__}."
                f"{type(cache).__qualname__}, which can neither list them nor tell their TTL. Sessions can only be "
                "moved from django-redis and from Django's own Redis cache."
            )
        if isinstance(cache.client, ShardClient | HerdClient):
            raise ImproperlyConfigured(
                f"The engine {self.name!r} keeps sessions in a cache of django-redis with the CLIENT_CLASS "
                f"{type(cache.client).__qualname__}. Sessions can only be moved from the default client, from Sentinel "
                "and from Redis Cluster."
            )
        return cache

    def _redis(self) -> Any:
        cache = self._cache()
        client = cache.client if hasattr(cache, "client") else cache._cache
        return self._asked(lambda: client.get_client(write=True))

    def _key(self, ref: str) -> str:
        return str(self._cache().make_key(f"{self._store_class.cache_key_prefix}{ref}"))

    def _decode(self, stored: bytes) -> Any:
        cache: Any = self._cache()
        return cache.client.decode(stored) if hasattr(cache, "client") else cache._cache._serializer.loads(stored)

    def _asked(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except (RedisError, OSError, ConnectionInterrupted) as error:
            raise cache_unavailable(self.name, error) from error
