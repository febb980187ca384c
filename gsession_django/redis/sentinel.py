"""Finding the master behind Redis Sentinel while several threads or tasks look for it at once.

redis-py moves the sentinel that answers to the front of its list by exchanging it with the first. Where two do that at
the same time, as when the master is lost, one sentinel is in the list twice and another no more. Here each looks
through a list of its own.
"""

from collections.abc import Mapping
from copy import copy
from typing import Any

import redis.asyncio.sentinel as aio_sentinel
import redis.sentinel
from redis.backoff import NoBackoff
from redis.retry import Retry


class Sentinel(redis.sentinel.Sentinel):
    """The sentinels, for threads."""

    def discover_master(self, service_name: str) -> Any:
        looking = copy(self)
        looking.sentinels = list(self.sentinels)
        found = super(Sentinel, looking).discover_master(service_name)  # type: ignore[no-untyped-call]
        self.sentinels = looking.sentinels
        return found


class AsyncSentinel(aio_sentinel.Sentinel):
    """The same for one event loop."""

    async def discover_master(self, service_name: str) -> Any:
        looking = copy(self)
        looking.sentinels = list(self.sentinels)
        found = await super(AsyncSentinel, looking).discover_master(service_name)
        self.sentinels = looking.sentinels
        return found


def sentinel_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a sentinel is connected to with: ``SENTINEL_KWARGS``, and where it has none, the server's timeouts.

    One that does not answer is not asked again, as redis-py's client would ten times: there are others to ask.
    """
    timeouts = {name.lower(): options[name] for name in ("SOCKET_TIMEOUT", "SOCKET_CONNECT_TIMEOUT") if options[name]}
    of_pool = options.get("CONNECTION_POOL_KWARGS", {})
    sockets = {name: value for name, value in of_pool.items() if name.startswith("socket_")}
    once = Retry(NoBackoff(), 0)
    return {**timeouts, **sockets, "retry": once, **(options.get("SENTINEL_KWARGS") or {})}
