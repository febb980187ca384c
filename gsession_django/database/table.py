"""The table that sessions are in, in one database."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from django.db import connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from gsession_django import recording
from gsession_django.core.transactions import SiteTransaction, blocks_of_tests, call_first
from gsession_django.database import clock
from gsession_django.database.failures import answered
from gsession_django.database.statements import Sessions, Statement
from gsession_django.models import Session

P = ParamSpec("P")
T = TypeVar("T")

# OpenTelemetry's names of databases, where Django has another. MariaDB is known as what it is driven as.
_SYSTEMS: Final = {"oracle": "oracle.db", "microsoft": "microsoft.sql_server"}

_DATA: Any = Session._meta.get_field("data")
_DATA_COLUMN = _DATA.get_col(Session._meta.db_table)


class HasTable(Protocol):
    """What has the table of sessions."""

    table: "SessionTable"


def available(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Let a method that can be repeated raise StorageUnavailable where the database cannot answer: see `answered`.

    If what it did the first time is not known, and it was a move, the visitor has not got the new key.
    """

    @functools.wraps(method)
    def wrapper(self: HasTable, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return answered(
            lambda: self.table.connection, "The database of the sessions", lambda: method(self, *args, **kwargs)
        )

    return wrapper


class SessionTable:
    """The table in one database.

    Args:
        using: the alias of the database; ``None`` for the one that the routers write to, also for reading, since a
            replica that lags behind would sign people out.
    """

    def __init__(self, using: str | None) -> None:
        self._using = using

    @property
    def alias(self) -> str:
        """The alias of the database."""
        return self._using or router.db_for_write(Session)

    @property
    def connection(self) -> BaseDatabaseWrapper:
        return connections[self.alias]

    def now(self) -> int:
        """Return the parameter of the present moment. That of a later one is as many milliseconds more."""
        return clock.parameter(self.connection)

    @property
    def system(self) -> recording.System:
        """The table, as tracing tools name it."""
        connection = self.connection
        settings = connection.settings_dict
        return recording.System(
            name=_SYSTEMS.get(connection.vendor, connection.vendor),
            is_server=connection.vendor != "sqlite",
            collection=Session._meta.db_table,
            namespace=str(settings["NAME"]) if settings["NAME"] else None,
            address=settings["HOST"] or None,
            port=int(settings["PORT"]) if str(settings["PORT"]).isdigit() else None,
        )

    @property
    def rows(self) -> Sessions:
        return Session._default_manager.using(self.alias)

    def read(self, statement: Statement, *parameters: Any) -> tuple[Any, ...] | None:
        """Run a statement that reads, and return the first row, if there is one."""
        connection = self.connection
        with connection.cursor() as cursor:
            cursor.execute(statement.sql(connection), parameters)
            row: tuple[Any, ...] | None = cursor.fetchone()
            return row

    def change(self, statement: Statement, *parameters: Any) -> int:
        """Run a statement that writes, and return how many rows it was about."""
        connection = self.connection
        with connection.cursor() as cursor:
            cursor.execute(statement.sql(connection), parameters)
            return int(cursor.rowcount)

    def data(self, stored: bytes) -> Any:
        """Return encoded pairs as the database takes them."""
        recording.written(len(stored))
        return _DATA.get_db_prep_value(stored, self.connection)

    def data_of(self, column: Any) -> bytes:
        """Return encoded pairs, of what the database returned."""
        connection = self.connection
        for convert in connection.ops.get_db_converters(_DATA_COLUMN):
            column = convert(column, _DATA_COLUMN, connection)
        data = bytes(column)
        recording.read(len(data))
        return data

    @property
    def in_transaction(self) -> bool:
        """Whether a statement is part of a transaction that goes on after it."""
        connection = self.connection
        return connection.in_atomic_block or not connection.get_autocommit()

    def transaction(self) -> "SiteTransaction | None":
        """Return the transaction of the site that a statement was part of; ``None`` where it is final."""
        connection = self.connection
        if connection.in_atomic_block:
            if blocks_of_tests(connection) == len(connection.atomic_blocks):
                return None  # the site has none: it is TestCase's own
        elif connection.get_autocommit():
            return None
        savepoints = set(connection.savepoint_ids)
        for since, callback, *_ in connection.run_on_commit:
            if isinstance(callback, SiteTransaction) and since == savepoints:
                return callback  # that of a write before
        transaction = SiteTransaction(connection)
        call_first(connection, transaction)
        return transaction

    def savepoint(self) -> AbstractContextManager[None]:
        """Return what keeps a failed statement from spoiling the transaction that it is in, if it is in one."""
        return transaction.atomic(self.alias) if self.in_transaction else nullcontext()
