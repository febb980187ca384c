"""The table of sessions in one database."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from django.db import connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from gsession_django import recording
from gsession_django.core.signing import NOT_OURS, TAG_SIZE, has_tag, tag_of
from gsession_django.core.transactions import SiteTransaction, blocks_of_tests, call_first
from gsession_django.database import clock
from gsession_django.database.failures import answered
from gsession_django.database.rows import signed_name
from gsession_django.database.statements import Sessions, Statement
from gsession_django.models import Session
from gsession_django.serializers import DecodeError

P = ParamSpec("P")
T = TypeVar("T")

# OpenTelemetry's names of databases, where Django's differ. MariaDB counts as MySQL, as in Django.
_SYSTEMS: Final = {"oracle": "oracle.db", "microsoft": "microsoft.sql_server"}

_PURPOSE: Final = "database"
_DATA: Any = Session._meta.get_field("data")
_DATA_COLUMN = _DATA.get_col(Session._meta.db_table)


class HasTable(Protocol):
    """An object with a table of sessions."""

    table: "SessionTable"


def available(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Let a repeatable method raise ``StorageUnavailable`` when the database cannot answer: see `answered`.

    Even a move may be repeated when its first outcome is unknown: the visitor does not have the new key yet.
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
        using: the alias of the database. ``None`` is the one that the routers write to. The table is read there too,
            because a replica that lags behind would sign people out.
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
        """Return the parameter of the current moment. Add milliseconds for a later one."""
        return clock.parameter(self.connection)

    @property
    def system(self) -> recording.System:
        """The database and the table, as tracing tools name them."""
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
        """Run a statement that reads, and return the first row; ``None`` without one."""
        connection = self.connection
        with connection.cursor() as cursor:
            cursor.execute(statement.sql(connection), parameters)
            row: tuple[Any, ...] | None = cursor.fetchone()
            return row

    def change(self, statement: Statement, *parameters: Any) -> int:
        """Run a statement that writes, and return how many rows it matched."""
        connection = self.connection
        with connection.cursor() as cursor:
            cursor.execute(statement.sql(connection), parameters)
            return int(cursor.rowcount)

    def data(self, session_id: str, user: str | None, pairs: bytes) -> Any:
        """Return the encoded pairs of a session, with their tag, as a parameter for the database."""
        recording.written(len(pairs))
        signed = tag_of(_PURPOSE, signed_name(session_id, user), pairs) + pairs
        return _DATA.get_db_prep_value(signed, self.connection)

    def data_of(self, session_id: str, user: str | None, column: Any) -> bytes:
        """Return the encoded pairs in a column that the database returned with the session's id and user.

        Raises ``DecodeError`` if this site has not stored all three together.
        """
        connection = self.connection
        for convert in connection.ops.get_db_converters(_DATA_COLUMN):
            column = convert(column, _DATA_COLUMN, connection)
        signed = bytes(column)
        pairs = signed[TAG_SIZE:]
        if not has_tag(_PURPOSE, signed_name(session_id, user), pairs, signed[:TAG_SIZE]):
            raise DecodeError(NOT_OURS)
        recording.read(len(pairs))
        return pairs

    @property
    def in_transaction(self) -> bool:
        """Whether a statement runs in a transaction that continues after it."""
        connection = self.connection
        return connection.in_atomic_block or not connection.get_autocommit()

    def transaction(self) -> "SiteTransaction | None":
        """Return the site's transaction that a statement was part of; ``None`` if the statement is final."""
        connection = self.connection
        if connection.in_atomic_block:
            if blocks_of_tests(connection) == len(connection.atomic_blocks):
                return None  # every block is TestCase's own, so the site has no transaction
        elif connection.get_autocommit():
            return None
        savepoints = set(connection.savepoint_ids)
        for since, callback, *_ in connection.run_on_commit:
            if isinstance(callback, SiteTransaction) and since == savepoints:
                return callback  # an earlier write registered it
        transaction = SiteTransaction(connection)
        call_first(connection, transaction)
        return transaction

    def savepoint(self) -> AbstractContextManager[None]:
        """Return a context manager that keeps a failed statement from breaking the transaction around it."""
        return transaction.atomic(self.alias) if self.in_transaction else nullcontext()
