"""Real sentinels for the tests: three of them, with a master and its replicas, on free ports."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.exceptions import RedisError

from tests.support.redis_servers import RedisServer

SERVICE = "sessions-master"
LOST_AFTER = 1000
"""Milliseconds after which a silent server counts as lost."""
_PATIENCE = 60.0


class _Sentinel(RedisServer):
    """One ``redis-server --sentinel``. It writes its findings to its configuration file."""

    def __init__(self, master_port: int, timeout: int) -> None:
        self._master_port, self._timeout = master_port, timeout
        super().__init__()

    def _arguments(self) -> list[str]:
        file = Path(self._folder, "sentinel.conf")
        if not file.exists():
            lines = (
                f"port {self.port}",
                "bind 127.0.0.1",
                f"dir {self._folder}",
                f"sentinel monitor {SERVICE} 127.0.0.1 {self._master_port} 2",
                f"sentinel down-after-milliseconds {SERVICE} {LOST_AFTER}",
                f"sentinel failover-timeout {SERVICE} {self._timeout}",
            )
            file.write_text("\n".join(lines) + "\n")
        return [str(file), "--sentinel"]


class Sentinels:
    """A master with replicas, and sentinels that watch them.

    Args:
        replicas: the number of replicas.
        upstream: gets the master, and returns the port from which the replicas copy it. The sentinels correct that
            after their `timeout`.
        timeout: their ``failover-timeout``, in milliseconds.

    Attributes:
        servers: the first master and its replicas.
        sentinels: the sentinels that watch them.
    """

    def __init__(
        self,
        replicas: int = 2,
        upstream: Callable[[RedisServer], int] = lambda master: master.port,
        timeout: int = 3000,
    ) -> None:
        with ExitStack() as stack:
            config = {"repl_diskless_sync": "yes", "repl_diskless_sync_delay": "0", "repl_timeout": "10"}
            self.servers = [stack.enter_context(RedisServer(**config)) for _ in range(1 + replicas)]
            port = upstream(self.servers[0])
            for replica in self.servers[1:]:
                with replica.client() as client:
                    client.replicaof("127.0.0.1", port)
            wait_until(lambda: all(_copies(replica) for replica in self.servers[1:]), "the replicas have copied")
            self.sentinels = [stack.enter_context(_Sentinel(self.servers[0].port, timeout)) for _ in range(3)]
            wait_until(
                lambda: all(self._is_ready(sentinel, replicas) for sentinel in self.sentinels),
                "the sentinels know each other and the replicas",
            )
            self._stack = stack.pop_all()

    def _is_ready(self, sentinel: RedisServer, replicas: int) -> bool:
        found = state(sentinel)
        return (found["num-other-sentinels"], found["num-slaves"], found["flags"]) == (2, replicas, "master")

    def entry(self, **options: Any) -> dict[str, Any]:
        """Return an entry of ``CACHES`` without its ``BACKEND``, as django-redis documents it."""
        return {
            "LOCATION": f"redis://{SERVICE}/0",
            "OPTIONS": {
                "CLIENT_CLASS": "django_redis.client.SentinelClient",
                "CONNECTION_FACTORY": "django_redis.pool.SentinelConnectionFactory",
                "SENTINELS": [("127.0.0.1", sentinel.port) for sentinel in self.sentinels],
                **options,
            },
        }

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Keep the sentinels from replacing a lost master inside the block."""
        self._wait_for_lost(600_000)
        yield
        self._wait_for_lost(LOST_AFTER)

    def _wait_for_lost(self, milliseconds: int) -> None:
        for sentinel in self.sentinels:
            with sentinel.client() as client:
                client.sentinel_set(SERVICE, "down-after-milliseconds", milliseconds)

    def wait_for_another_than(self, master: RedisServer) -> RedisServer:
        """Wait until all sentinels name another master, and return it."""

        def named() -> list[int]:
            return [port for port in map(self._master_port, self.sentinels) if port not in (None, master.port)]

        wait_until(lambda: len(named()) == len(self.sentinels), "the sentinels have failed over")
        (port,) = set(named())
        return next(server for server in self.servers if server.port == port)

    def _master_port(self, sentinel: RedisServer) -> Any:
        try:
            return state(sentinel)["port"]
        except RedisError:
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()


def state(sentinel: RedisServer) -> dict[str, Any]:
    """Return a sentinel's view of the master."""
    with redis.Redis(port=sentinel.port) as client:
        found: dict[str, Any] = client.sentinel_master(SERVICE)
    return found


def role(server: RedisServer) -> str:
    """Return ``"master"`` or ``"slave"``."""
    with server.client() as client:
        found: str = client.info("replication")["role"]
    return found


def _copies(replica: RedisServer) -> bool:
    with replica.client() as client:
        return bool(client.info("replication")["master_link_status"] == "up")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition without an event. Raise ``TimeoutError`` after a minute."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        with suppress(redis.ConnectionError, redis.TimeoutError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"This did not happen within a minute: {what}.")
        time.sleep(0.02)
