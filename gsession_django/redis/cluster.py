"""Redis Cluster in ``CACHES``: the ``CLIENT_CLASS`` that django-redis does not have."""

import os
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from django_redis.client.default import DefaultClient
from django_redis.exceptions import ConnectionInterrupted
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisClusterException, RedisError

# Django makes a cache object a thread, django-redis shares the connections; by LOCATION and OPTIONS here.
_clusters: dict[str, RedisCluster] = {}
os.register_at_fork(after_in_child=_clusters.clear)


class ClusterClient(DefaultClient):  # type: ignore[misc]
    """What ``OPTIONS["CLIENT_CLASS"]`` names where ``LOCATION`` is a Redis Cluster: a URL, or several of its nodes.

    The sessions of such an entry are found by the Redis engines themselves. As a cache it is django-redis's on
    redis-py's ``RedisCluster``: what takes one key works, ``get_many``, ``set_many`` and ``delete_many`` ask every node
    that has some of the keys, ``clear``, ``keys`` and ``delete_pattern`` every primary. What needs several keys at one
    node (``sinter``, ``smove``) raises ``RedisClusterException``, unless a hash tag puts them there.
    """

    def connect(self, index: int = 0) -> RedisCluster:
        known = repr((self._server, self._options))
        if known not in _clusters:
            try:
                _clusters.setdefault(known, self._make())
            except RedisClusterException as error:
                raise ConnectionInterrupted(connection=None) from error
        return _clusters[known]

    def _make(self) -> RedisCluster:
        factory = self.connection_factory
        arguments = {**factory.make_connection_params(self._server[0]), **factory.pool_cls_kwargs}
        others = [ClusterNode(*node) for node in addresses(self._server[1:])]  # type: ignore[no-untyped-call]
        return RedisCluster(startup_nodes=others, **arguments, **factory.redis_client_cls_kwargs)

    def disconnect(self, index: int = 0, client: RedisCluster | None = None) -> None:
        client = client or self._clients[index]
        if client is not None:
            client.disconnect_connection_pools()

    def get_many(
        self, keys: Collection[str], version: int | None = None, client: RedisCluster | None = None
    ) -> dict[str, Any]:
        client = client or self.get_client(write=False)
        names = {self.make_key(key, version=version): key for key in keys}
        try:
            stored = client.mget_nonatomic(list(names)) if names else []
        except RedisError as error:
            raise ConnectionInterrupted(connection=client) from error
        found = zip(names.values(), stored, strict=True)
        return {key: self.decode(value) for key, value in found if value is not None}

    def keys(self, search: str, version: int | None = None, client: RedisCluster | None = None) -> list[str]:
        return list(self.iter_keys(search, itersize=1000, version=version, client=client))


def addresses(urls: Collection[str]) -> list[tuple[str, int]]:
    """Return host and port of each URL."""
    parts = [urlsplit(url.strip()) for url in urls]
    return [(each.hostname or "localhost", each.port or 6379) for each in parts]
