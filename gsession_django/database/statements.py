"""The SQL statements of the database engine.

Django's ORM compiles each one once for each kind of database: that takes longer than SQLite takes to run it.
"""

from collections.abc import Callable
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import BigIntegerField, F, Func, QuerySet
from django.db.models.lookups import GreaterThan, LessThanOrEqual
from django.db.models.sql import DeleteQuery, InsertQuery, Query, UpdateQuery

from gsession_django.database.clock import Moment
from gsession_django.models import Session

Sessions = QuerySet[Session]

# Placeholders: only the SQL of a query is kept.
_ANY: Final[dict[str, Any]] = {"id": "-", "data": b"", "version": 0, "expires": Moment(0), "user_id": "-"}


class Statement:
    """One SQL statement. It takes its parameters in the order in which the query names them.

    Args:
        make: returns the ORM's query, with any values as parameters.
    """

    def __init__(self, make: Callable[[Sessions], Query]) -> None:
        self._make = make
        self._sql: dict[type[BaseDatabaseWrapper], str] = {}

    def sql(self, connection: BaseDatabaseWrapper) -> str:
        """Return its SQL for the connection's kind of database."""
        try:
            return self._sql[type(connection)]
        except KeyError:
            compiler = self._make(Session._default_manager.all()).get_compiler(connection=connection)
            compiled = compiler.as_sql()  # an insert compiles to a list
            sql: str = (compiled[0] if isinstance(compiled, list) else compiled)[0]
            self._sql[type(connection)] = sql
            return sql


def selecting(rows: Callable[[Sessions], Any]) -> Statement:
    """Return the statement that reads the query that `rows` makes of all sessions."""
    return Statement(lambda sessions: rows(sessions).query)


def updating(rows: Callable[[Sessions], Sessions], *columns: str) -> Statement:
    """Return the statement that writes to these columns. It takes their values, and then the parameters of `rows`."""

    def make(sessions: Sessions) -> Query:
        query: Any = rows(sessions).query.chain(UpdateQuery)
        query.add_update_values({column: _ANY[column] for column in columns})
        return query  # type: ignore[no-any-return]

    return Statement(make)


def inserting() -> Statement:
    """Return the statement that adds a row. It takes the values of all columns."""

    def make(sessions: Sessions) -> Query:
        query = InsertQuery(Session)
        query.insert_values(Session._meta.concrete_fields, [Session(**_ANY)])
        return query

    return Statement(make)


def deleting(rows: Callable[[Sessions], Sessions]) -> Statement:
    """Return the statement that removes `rows`."""
    return Statement(lambda sessions: rows(sessions).query.chain(DeleteQuery))


# The "+ 0" keeps the index on the expiry out. In a small table of large sessions MariaDB sometimes finds a row by it.
# Two requests that save one session then lock the entries of two indexes in opposite order: a deadlock.
_EXPIRY: Final = Func(F("expires"), template="(%(expressions)s + 0)", output_field=BigIntegerField())


def one(sessions: Sessions, session_id: str = "-") -> Sessions:
    """Return the session with this id, live or expired."""
    return sessions.filter(id=session_id)


def columns(sessions: Sessions, now: int = 0) -> Any:
    """Return the columns that a read needs: the data, the version, the milliseconds left at `now`, and the user."""
    return sessions.values_list("data", "version", F("expires") - Moment(now), "user_id")


def of_user(sessions: Sessions, user: str, now: int) -> Any:
    """Return the ids of the live sessions of a user, as :func:`gsession_django.database.rows.column_of` has it."""
    return sessions.filter(GreaterThan(_EXPIRY, Moment(now)), user_id=user).values_list("id", flat=True)


def _live(sessions: Sessions) -> Sessions:
    return one(sessions).filter(GreaterThan(_EXPIRY, Moment(0)))


def _expired(sessions: Sessions) -> Sessions:
    return one(sessions).filter(LessThanOrEqual(_EXPIRY, Moment(0)))


def _as_read(sessions: Sessions) -> Sessions:
    return _live(sessions).filter(version=0)


# Each comment lists the parameters. "now" and "expires" are parameters of a Moment.
READ: Final = selecting(lambda sessions: columns(one(sessions)))  # now; id
LOOK: Final = selecting(lambda sessions: _live(sessions).values_list("version"))  # id, now
CREATE: Final = inserting()  # id, data, version, expires, user
# By how many expiries are written, and how many users: one or none. A user who is the one that was read is not written
# again, as that makes a save on SQLite take a seventh longer, and PostgreSQL keep entries of the index for longer.
# data, version, the user, expires; id, now, the version as read
SAVES: Final = {
    (expiry, user): updating(_as_read, "data", "version", *["user_id"] * user, *["expires"] * expiry)
    for expiry in (0, 1)
    for user in (0, 1)
}
REPLACE: Final = updating(_live, "data", "version", "user_id", "expires")  # data, version, user, expires; id, now
TOUCH: Final = updating(_live, "expires")  # expires; id, now
MOVE: Final = updating(_live, "id")  # the new id; id, now
REMOVE: Final = deleting(one)  # id
REMOVE_EXPIRED: Final = deleting(_expired)  # id, now
