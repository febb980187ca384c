"""The database engine on each kind of database, several of them in one process."""

import functools
import itertools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.migrations.executor import MigrationExecutor

from tests.support.database_servers import SERVERS, shared

KINDS = ["sqlite", *SERVERS]
ENGINE = "gsession_django.backends.database"

_numbers = itertools.count()


@contextmanager
def connected(entry: Mapping[str, Any], alias: str | None = None) -> Iterator[str]:
    """Yield the alias of one more database; all connections to it are closed at the end, those of other threads too.

    Args:
        entry: what would stand in ``DATABASES``.
        alias: by default one that was never used before.
    """
    if alias is None:  # not one again, as a thread that lives on, such as asgiref's, keeps what it had by that name
        alias = f"sessions {next(_numbers)}"
    opened: list[BaseDatabaseWrapper] = []

    def note(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
        if connection.alias == alias:
            opened.append(connection)

    (completed := connections.configure_settings({"default": {}, alias: {**entry}})).pop("default")
    connections.settings.update(completed)
    connection_created.connect(note)
    try:
        yield alias
    finally:
        connection_created.disconnect(note)
        for connection in opened:
            connection.inc_thread_sharing()
            connection.close()
        del connections.settings[alias]


def migrate(alias: str) -> None:
    """Make the table, as ``manage.py migrate gsession_django`` does."""
    executor = MigrationExecutor(connections[alias])
    executor.migrate(executor.loader.graph.leaf_nodes("gsession_django"))


@contextmanager
def database(kind: str, **values: Any) -> Iterator[str]:
    """Yield the alias of a database of a kind in :data:`KINDS`, with the table, which is empty.

    Args:
        kind: SQLite is a file of its own, the others are the server that this process has of each kind.
        values: what else stands in the entry in ``DATABASES``.
    """
    if kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder, connected(sqlite_entry(folder, **values)) as alias:
            migrate(alias)
            yield alias
        return
    _migrate_shared(kind)
    with connected(shared(kind).entry(**values)) as alias:
        empty(alias)
        yield alias


def empty(alias: str) -> None:
    """Remove all sessions, and all locks."""
    from gsession_django.models import Session, SessionLock

    for model in (Session, SessionLock):
        model._default_manager.using(alias).all()._raw_delete(alias)


@functools.cache
def _migrate_shared(kind: str) -> None:
    with connected(shared(kind).entry()) as alias:
        migrate(alias)


def sqlite_entry(folder: str | Path, **values: Any) -> dict[str, Any]:
    """Return the entry in ``DATABASES`` of a database in a file, which threads and processes share.

    It lets readers and a writer pass each other, waits long for its turn to write, and not at all for the disk.
    """
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(Path(folder, "sessions.sqlite3")),
        "OPTIONS": {"timeout": 60, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF"},
        **values,
    }


def options_for(alias: str, **options: Any) -> dict[str, Any]:
    """Return the settings of a site whose sessions are in a database."""
    return {"SESSION_ENGINE": ENGINE, "GSESSION": {"ENGINES": {ENGINE: {"using": alias, **options}}}}


class Refusal:
    """Lets the database undo a number of statements, as when it ends a deadlock: a wrapper for Django.

    Args:
        times: how many; from then on, how many are left.
        word: what they begin with.
    """

    def __init__(self, times: int, word: str = "") -> None:
        self.times = times
        self._word = word

    def __call__(self, execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith(self._word) and self.times:
            self.times -= 1
            raise OperationalError(1213, "Deadlock found when trying to get lock; try restarting transaction")
        return execute(sql, *args)
