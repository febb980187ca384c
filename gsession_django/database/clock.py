"""The clock that sessions expire by: the database server's, because the clocks of the site's hosts may differ.

On SQLite, and on Oracle and other databases, it is the clock of the host that asks.
"""

import time
from typing import Any, ClassVar, Final

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import BigIntegerField, Func
from django.db.models.sql.compiler import SQLCompiler

# Milliseconds since 1970, UTC: the connection's time zone must not change them.
_SERVERS_CLOCK: Final = {
    "postgresql": "(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
    "mysql": "timestampdiff(MICROSECOND, '1970-01-01', utc_timestamp(3)) DIV 1000",
}


class Moment(Func):
    """A time, in milliseconds since 1970, UTC. Its one parameter comes from :func:`parameter`."""

    arity = 1
    template = "%(expressions)s"
    output_field: ClassVar[Any] = BigIntegerField()

    def as_postgresql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **extra: Any) -> Any:
        template = f"({_SERVERS_CLOCK[connection.vendor]} + %(expressions)s)"
        return self.as_sql(compiler, connection, template=template, **extra)

    as_mysql = as_postgresql


def parameter(connection: BaseDatabaseWrapper) -> int:
    """Return the parameter of the current :class:`Moment`. Add milliseconds for a later one."""
    return 0 if connection.vendor in _SERVERS_CLOCK else time.time_ns() // 1_000_000


def now(connection: BaseDatabaseWrapper) -> int:
    """Return the time, in milliseconds since 1970, UTC."""
    since = parameter(connection)
    if connection.vendor not in _SERVERS_CLOCK:
        return since
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {_SERVERS_CLOCK[connection.vendor]} + %s", [since])
        return int(cursor.fetchone()[0])
