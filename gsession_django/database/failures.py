"""The errors of a database that cannot answer, and the reaction to each: here and for Django's database engines.

PostgreSQL reports an SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html), MySQL and MariaDB a
number (https://mariadb.com/kb/en/mariadb-error-code-reference/), SQLite a name (https://www.sqlite.org/rescode.html).
"""

from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from django.db import Error, InterfaceError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

from gsession_django import recording
from gsession_django.core.storage import StorageUnavailable

T = TypeVar("T")

# Attempts of a statement that conflicts with others. At each conflict another one succeeds.
_ATTEMPTS: Final = 100


class _Outage(NamedTuple):
    """Why a database cannot answer.

    Attributes:
        what: the problem, as the rest of a sentence that begins with the database.
        cure: what to do, in one or two sentences.
        reconnects: whether a new connection may reach a server that can answer.
    """

    what: str
    cure: str
    reconnects: bool


_UNREACHABLE: Final = _Outage(
    "cannot be reached",
    "Check that it runs, that HOST, PORT, USER and PASSWORD are right, and that it allows enough connections.",
    True,
)
_READ_ONLY: Final = _Outage(
    "is read-only",
    "If it is a replica now, point HOST and PORT at the primary. Otherwise make it writable again.",
    True,
)
_IDLE: Final = _Outage(
    "has ended a transaction that was idle for too long",
    "Make the transaction shorter, or raise idle_in_transaction_session_timeout.",
    True,
)
_LOCKED: Final = _Outage(
    "did not answer in time",
    "Find what holds a lock, or slows the server down, for so long. Or raise its timeout: on SQLite, "
    '"timeout" in OPTIONS.',
    False,
)
_FULL: Final = _Outage(
    "cannot use its disk",
    "Check that the disk is neither full nor broken, that the database's files exist, and that the right user owns "
    "them.",
    False,
)
_OUTAGES: Final[dict[str | int, _Outage]] = {
    **dict.fromkeys(("25006", 1290, 1792, 1836, "SQLITE_READONLY"), _READ_ONLY),
    "25P03": _IDLE,
    **dict.fromkeys(("55P03", "57014", 1205, 1317, 1969, 3024, "SQLITE_BUSY", "SQLITE_LOCKED"), _LOCKED),
    **dict.fromkeys(("53100", 1021, 1030, 1114, "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN"), _FULL),
}
_CONFLICTS: Final = frozenset({"40001", "40P01", 1213})
# On MySQL and MariaDB: the server is shutting down, somebody killed the connection, or it was idle for too long.
_ENDED: Final = frozenset({1053, 1927, 4031})
# On SQLite a transaction that has read cannot write after another writer. Waiting does not help.
_SNAPSHOT: Final = "SQLITE_BUSY_SNAPSHOT"


def answered(connected: Callable[[], BaseDatabaseWrapper], whose: str, ask: Callable[[], T]) -> T:
    """Call `ask` and return its result.

    Outside a transaction this repeats `ask` after some errors: once on a new connection, when an existing one is lost
    or leads to a read-only server; up to a hundred times, when the database refuses it because of a conflict with other
    statements.

    This also closes a lost or read-only connection, and Django opens a new one for the site's next query. Inside an
    ``atomic()`` block Django itself closes a lost one, and raises if the site tries to commit. With autocommit off this
    closes nothing: the site would go on without knowing that its transaction is lost.

    Args:
        connected: returns the connection that `ask` uses. Only an error calls it.
        whose: which database it is, as a message begins.
        ask: a call that can be repeated, even when the outcome of the first attempt is unknown.

    Raises:
        StorageUnavailable: the database cannot answer now. Every other error passes unchanged.
    """
    may_reconnect, attempts = True, _ATTEMPTS
    while True:
        try:
            return ask()
        except Error as error:
            connection = connected()
            outage = _outage(connection, error)
            was_there, alone = connection.connection is not None, not _in_transaction(connection)
            if outage is None:
                attempts -= 1
                if alone and attempts and _code(error) in _CONFLICTS:
                    recording.retried()
                    continue
                raise
            if outage.reconnects and (alone or (outage is _READ_ONLY and connection.in_atomic_block)):
                _drop(connection)
            if not (outage.reconnects and may_reconnect and was_there and alone):
                raise StorageUnavailable(
                    f"{whose}, DATABASES[{connection.alias!r}], {outage.what}: {' '.join(str(error).split())}. "
                    f"{outage.cure}"
                ) from error
            may_reconnect = False
            recording.retried()


def _drop(connection: BaseDatabaseWrapper) -> None:
    """Close the connection, before a pool can take it back."""
    if connection.vendor == "postgresql" and connection.connection is not None:
        connection.connection.close()
    connection.close()


def _in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """As ``SessionTable.in_transaction``, but without opening a connection when it is closed."""
    return connection.in_atomic_block or (connection.connection is not None and not connection.autocommit)


def _outage(connection: BaseDatabaseWrapper, error: Error) -> _Outage | None:
    """Return why the database cannot answer; ``None`` if the error is its answer."""
    return _OUTAGES.get(_code(error)) or (_UNREACHABLE if _is_lost(connection, error) else None)


def _code(error: Error) -> str | int:
    """Return the database's own code for an error; ``""`` if it has none."""
    if error.args and isinstance(error.args[0], int):  # MySQL and MariaDB: their SQLSTATE says less
        return error.args[0]
    cause = error.__cause__
    if name := getattr(cause, "sqlite_errorname", None):
        return name if name == _SNAPSHOT else "_".join(name.split("_")[:2])
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or ""  # psycopg 3 and psycopg2


def _is_lost(connection: BaseDatabaseWrapper, error: Error) -> bool:
    """Whether the connection is lost or was never made. Otherwise the database refused a statement."""
    if isinstance(error, InterfaceError) or connection.closed_in_transaction:
        return True
    if connection.connection is None:
        return isinstance(error, OperationalError)
    if connection.vendor == "postgresql":  # is_usable() would run a statement, which a failed transaction refuses
        return bool(connection.connection.closed)
    if connection.vendor == "mysql":
        code = _code(error)
        return isinstance(code, int) and (2000 <= code < 3000 or code in _ENDED)
    return not connection.is_usable()
