"""System checks of the database engine: its settings, and its database."""

from collections.abc import Iterator

from django.core.checks import CheckMessage, Error, Warning
from django.db import Error as DatabaseError
from django.db import connections, router

from gsession_django.core.options import given_options
from gsession_django.models import Session, SessionLock


def check_using(engine: str) -> Iterator[CheckMessage]:
    """Check that ``DATABASES`` has the alias in the engine's option ``using``."""
    using = given_options(engine).get("using")
    if isinstance(using, str) and using not in list(connections.settings):
        yield Error(
            f'GSESSION["ENGINES"][{engine!r}]["using"] = {using!r} is not in DATABASES.',
            hint=f"Name one of {', '.join(map(repr, connections.settings))}, or leave the option out: then the "
            "database routers choose.",
            id="gsession_django.E016",
        )


def check_table(engine: str) -> Iterator[CheckMessage]:
    """Check that the tables are there: that of the locks came with the last migration."""
    alias = given_options(engine).get("using") or router.db_for_write(Session)
    if alias not in list(connections.settings):
        return
    try:
        with connections[alias].cursor() as cursor:
            tables = connections[alias].introspection.table_names(cursor)
    except DatabaseError as error:
        yield Warning(
            f"The session engine {engine!r} could not ask DATABASES[{alias!r}] for its tables: "
            f"{' '.join(str(error).split())}.",
            hint="Run the check where it can reach the database.",
            id="gsession_django.W007",
        )
        return
    missing = next((name for model in (Session, SessionLock) if (name := model._meta.db_table) not in tables), None)
    if missing is not None:
        yield Error(
            f"DATABASES[{alias!r}] lacks the table {missing!r}, which {engine!r} needs.",
            hint=f"Run manage.py migrate gsession_django --database {alias}. If that does not create it, a router in "
            "DATABASE_ROUTERS forbids it in allow_migrate().",
            id="gsession_django.E017",
        )
