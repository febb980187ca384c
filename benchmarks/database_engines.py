"""The engines in a database: SQLite in a file, and a PostgreSQL server that starts at first use."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache, partial
from tempfile import TemporaryDirectory
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.management.color import no_style
from django.db import connections

from benchmarks.curves import CURVES
from benchmarks.engines import CHANGES_IN_PLACE, UNTIL_THE_END, Comparison, Engine, Peer, Setup
from benchmarks.redis_engines import DJANGO_REDIS, on_redis
from tests.support.database_servers import PostgreSQL
from tests.support.databases import connected, migrate

# By name: Django must be set up before anything imports the models.
OURS, DJANGO = "gsession_django.Session", "sessions.Session"


class Router:
    """Sends every model to the database of the engine whose turn it is."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        alias: str | None = getattr(settings, "BENCHMARK_DATABASE", None)
        return alias

    db_for_write = db_for_read


@cache
def server() -> PostgreSQL:
    return UNTIL_THE_END.enter_context(PostgreSQL(durable=True))


def environment() -> dict[str, str]:
    """Return the server's lines of the report; none if no engine needed it."""
    if not server.cache_info().currsize:
        return {}
    with server().connect() as connection:
        return {"PostgreSQL": connection.execute("SHOW server_version").fetchone()[0]}


@cache
def postgresql() -> str:
    return _with_tables(server().entry(CONN_MAX_AGE=None))


@cache
def sqlite() -> str:
    folder = UNTIL_THE_END.enter_context(TemporaryDirectory(prefix="benchmark-database-"))
    # The settings that the documentation advises: without them each save would wait for the disk.
    options = {"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"}
    return _with_tables(
        {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{folder}/db.sqlite3", "OPTIONS": options},
    )


def _with_tables(entry: dict[str, Any]) -> str:
    alias = UNTIL_THE_END.enter_context(connected(entry))
    migrate(alias)
    with connections[alias].schema_editor() as editor:
        editor.create_model(apps.get_model(DJANGO))
    return alias


@contextmanager
def _in_table(model: str, database: Callable[[], str]) -> Iterator[Setup]:
    alias = database()
    table = apps.get_model(model)._meta.db_table
    yield Setup(settings={"BENCHMARK_DATABASE": alias}, copy=partial(_copy, alias, model))
    # Not by DELETE: a million dead rows would slow down the next measurement.
    operations = connections[alias].ops
    operations.execute_sql_flush(operations.sql_flush(no_style(), [table]))


def _copy(alias: str, model: str, copies: int) -> None:
    options = apps.get_model(model)._meta
    assert options.pk is not None
    key = options.pk.column
    others = ", ".join(field.column for field in options.local_concrete_fields if not field.primary_key)
    with connections[alias].cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {options.db_table} ({key}, {others}) "
            f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {copies}) "
            f"SELECT {key} || '-' || n, {others} FROM {options.db_table}, numbers"
        )
        for statement in _SETTLE[connections[alias].vendor]:
            cursor.execute(statement)


# A database would do this by itself after so many rows, and disturb a later measurement.
_SETTLE = {"postgresql": ("VACUUM ANALYZE", "CHECKPOINT"), "sqlite": ("ANALYZE", "PRAGMA wal_checkpoint(TRUNCATE)")}


@contextmanager
def _cached_db(database: Callable[[], str]) -> Iterator[Setup]:
    with _in_table(DJANGO, database) as of_database, on_redis(DJANGO_REDIS, 7) as of_cache:
        yield Setup(settings={**of_database.settings, **of_cache.settings}, caches=of_cache.caches)


_OPERATIONS = CHANGES_IN_PLACE | {
    *("load", "create", "modify", "touch", "touch, due", "login", "async load", "async modify"),
}


def _comparison(name: str, database: Callable[[], str], **targets: float) -> Comparison:
    def engine(engine: str, module: str, setup: Callable[..., AbstractContextManager[Setup]], *args: Any) -> Engine:
        return Engine(f"{engine} on {name}", module, partial(setup, *args, database), _OPERATIONS | CURVES)

    ours = engine("database", "gsession_django.backends.database", _in_table, OURS)
    django = engine("Django db", "django.contrib.sessions.backends.db", _in_table, DJANGO)
    cached = engine("cached_db", "django.contrib.sessions.backends.cached_db", _cached_db)
    peers = Peer(django, {ours.name: targets}), Peer(replace(cached, operations=_OPERATIONS))
    return Comparison(name, (ours,), peers)


COMPARISONS = (
    _comparison("SQLite", sqlite, load=0.9, modify=0.95, create=0.75, login=0.75),
    _comparison("PostgreSQL", postgresql, load=0.9, modify=0.9, create=0.5, login=0.6),
)
