"""The database engine on each kind of database, with several databases in one process."""

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
    """Yield the alias of one more database. At the end all connections to it close, those of other threads too.

    Args:
        entry: the entry in ``DATABASES``.
        alias: by default a new one.
    """
    if alias is None:  # a new one each time: asgiref's thread lives on, and keeps its connection under an old alias
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
    """Create the table, as ``manage.py migrate gsession_django`` does."""
    executor = MigrationExecutor(connections[alias])
    executor.migrate(executor.loader.graph.leaf_nodes("gsession_django"))


@contextmanager
def database(kind: str, **values: Any) -> Iterator[str]:
    """Yield the alias of a database of a kind in :data:`KINDS`, with an empty table.

    Args:
        kind: SQLite gets a new file. The others share one server of each kind in this process.
        values: other values of the entry in ``DATABASES``.
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
    """Return the entry in ``DATABASES`` of a database in a file, for several threads and processes.

    Readers and a writer do not block each other. A writer waits long for its turn, and never for the disk.
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
    """A wrapper for Django that fails some statements, as a database does to end a deadlock.

    Args:
        times: the number of statements to fail. It counts down.
        word: the first word of these statements.
    """

    def __init__(self, times: int, word: str = "") -> None:
        self.times = times
        self._word = word

    def __call__(self, execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith(self._word) and self.times:
            self.times -= 1
            raise OperationalError(1213, "Deadlock found when trying to get lock; try restarting transaction")
        return execute(sql, *args)
