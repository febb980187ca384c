"""The database engine on Oracle and MySQL. The tests have neither, and imitate their known limits."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction
from django.test.utils import override_settings

from gsession_django import SessionMap, StorageUnavailable
from gsession_django.backends.database import DatabaseStorage
from gsession_django.models import Session
from tests.support.databases import connected, database, options_for


@pytest.fixture
def alias(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the alias of a PostgreSQL that, like Oracle, cannot lock the rows of a limited selection."""
    with database("postgresql") as found, override_settings(**options_for(found)):
        monkeypatch.setattr(connections[found].features, "supports_select_for_update_with_limit", False)
        yield found


def test_it_purges_where_a_limited_selection_cannot_be_locked(alias: str) -> None:
    storage = DatabaseStorage(using=alias)
    storage.table.rows.bulk_create([Session(id=f"old-{n}", data=b"{}", version=1, expires=n) for n in range(25)])
    storage.create("live", SessionMap({}), 60)
    assert list(storage.purge(10)) == [10, 10, 5]
    assert list(storage.ids()) == ["live"]


def test_a_conflict_in_a_transaction_is_merged_there(alias: str) -> None:
    storage = DatabaseStorage(using=alias)
    storage.create("session", SessionMap({}), 60)
    with connected(connections.settings[alias]) as other, transaction.atomic(alias):
        held = {name: DatabaseStorage(using=name).get_session("session", 60) for name in (other, alias)}
        for name, session in held.items():
            assert session is not None
            session[name] = 1
            assert DatabaseStorage(using=name).apply("session", session, 60)
    stored = storage.get_session("session", 60)
    assert stored is not None
    assert dict(stored) == dict.fromkeys(held, 1)


def test_no_statement_is_given_a_text_that_is_empty_which_oracle_takes_for_null() -> None:
    given: list[Any] = []

    def note(execute: Any, sql: str, params: Any, *args: Any) -> Any:
        given.extend(params or ())
        return execute(sql, params, *args)

    with database("sqlite") as alias, connections[alias].execute_wrapper(note):
        storage = DatabaseStorage(using=alias)
        for session_id in ("!", "session"):
            assert storage.create(session_id, SessionMap({}), 60)
        assert storage.get_session("", 60) is None
        storage.remove_all("")
        assert list(storage.ids()) == ["!", "session"]
    assert given
    assert "" not in given


def test_a_connection_that_mysql_has_ended_as_it_was_idle_is_a_database_that_cannot_be_reached() -> None:
    def refuse(*args: Any) -> Any:
        raise OperationalError(4031, "The client was disconnected by the server because of inactivity.")

    unavailable = pytest.raises(StorageUnavailable, match="because of inactivity")
    with database("mariadb") as alias, connections[alias].execute_wrapper(refuse), unavailable:
        DatabaseStorage(using=alias).get_session("session", 60)
