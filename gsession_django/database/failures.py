"""What a database says when it cannot answer, and what is done then: of the sessions' own, and of Django's engines.

PostgreSQL says it by an SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html), MySQL and MariaDB by
a number (https://mariadb.com/kb/en/mariadb-error-code-reference/), SQLite by a name
(https://www.sqlite.org/rescode.html).
"""

from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from django.db import Error, InterfaceError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

from gsession_django import recording
from gsession_django.core.storage import StorageUnavailable

T = TypeVar("T")

# How often a statement is tried that others get in the way of: each time one of them gets further.
_ATTEMPTS: Final = 100


class _Outage(NamedTuple):
    """A reason for which a database cannot answer.

    Attributes:
        what: what is the matter with it, for a message that has named it.
        cure: what to do, as a sentence.
        reconnects: whether another connection may lead to a server that can.
    """

    what: str
    cure: str
    reconnects: bool


_UNREACHABLE: Final = _Outage(
    "cannot be reached",
    "See that it runs, that HOST, PORT, USER and PASSWORD are right, and that it allows for as many connections as "
    "there are.",
    True,
)
_READ_ONLY: Final = _Outage(
    "can only be read",
    "If it is a replica now, see that HOST and PORT lead to the primary; else let it be written to again.",
    True,
)
_IDLE: Final = _Outage(
    "has ended a transaction that was idle for too long",
    "Let the transaction take less time, or raise idle_in_transaction_session_timeout.",
    True,
)
_LOCKED: Final = _Outage(
    "did not get to it in time",
    'See what holds a lock, or the server up, for so long; or let it wait longer, on SQLite by "timeout" in OPTIONS.',
    False,
)
_FULL: Final = _Outage(
    "cannot use its disk",
    "See that it is neither full nor broken, and that the files are there and belong to the right user.",
    False,
)
_OUTAGES: Final[dict[str | int, _Outage]] = {
    **dict.fromkeys(("25006", 1290, 1792, 1836, "SQLITE_READONLY"), _READ_ONLY),
    "25P03": _IDLE,
    **dict.fromkeys(("55P03", "57014", 1205, 1317, 1969, 3024, "SQLITE_BUSY", "SQLITE_LOCKED"), _LOCKED),
    **dict.fromkeys(("53100", 1021, 1030, 1114, "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN"), _FULL),
}
_CONFLICTS: Final = frozenset({"40001", "40P01", 1213})
# Of MySQL and MariaDB: the server is shutting down, the connection was killed, or idle for too long.
_ENDED: Final = frozenset({1053, 1927, 4031})
# On SQLite a transaction that has read cannot write, as somebody else has since: no waiting helps.
_SNAPSHOT: Final = "SQLITE_BUSY_SNAPSHOT"


def answered(connected: Callable[[], BaseDatabaseWrapper], whose: str, ask: Callable[[], T]) -> T:
    """Return what `ask` returns.

    Outside a transaction it is asked again: once on a new connection, where one that was there is lost or leads to a
    server that can only be read; and up to a hundred times, where the database has refused it because of what others
    did at that moment. Such a connection is closed in any case, so that Django makes a new one for the site's next
    query. Inside an ``atomic()`` block Django does that itself with one that is lost, and raises if the site tries to
    commit. With autocommit off nothing is closed: the site would go on without knowing that its transaction is lost.

    Args:
        connected: returns the connection that it uses; only asked where something failed.
        whose: whose database it is, for the message.
        ask: may be repeated, also when nobody knows what came of it the first time.

    Raises:
        StorageUnavailable: the database cannot answer now. Every other error comes through as it is.
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
    """Close the connection, so that no pool keeps it either."""
    if connection.vendor == "postgresql" and connection.connection is not None:
        connection.connection.close()
    connection.close()


def _in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """The same as ``SessionTable.in_transaction``, without a new connection where there is none any more."""
    return connection.in_atomic_block or (connection.connection is not None and not connection.autocommit)


def _outage(connection: BaseDatabaseWrapper, error: Error) -> _Outage | None:
    """Return why the database cannot answer; ``None`` if it did."""
    return _OUTAGES.get(_code(error)) or (_UNREACHABLE if _is_lost(connection, error) else None)


def _code(error: Error) -> str | int:
    """Return the database's own code for an error; nothing if it has none."""
    if error.args and isinstance(error.args[0], int):  # of MySQL and MariaDB, whose SQLSTATE says less
        return error.args[0]
    cause = error.__cause__
    if name := getattr(cause, "sqlite_errorname", None):
        return name if name == _SNAPSHOT else "_".join(name.split("_")[:2])
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or ""  # psycopg 3 and psycopg2


def _is_lost(connection: BaseDatabaseWrapper, error: Error) -> bool:
    """Whether the connection is lost, or was never made, rather than that the database refused a statement."""
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
