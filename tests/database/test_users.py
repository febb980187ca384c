"""The column with the user, on each kind of database: what is in it, when it is written, and rows that had none."""

from typing import Any

import pytest
from django.contrib.auth import SESSION_KEY
from django.db import connections
from django.db.migrations.executor import MigrationExecutor

from gsession_django import SessionMap, SessionStore
from gsession_django.backends.database import DatabaseStorage
from gsession_django.core.pairs import EXPIRY_KEY
from tests.support.databases import KINDS, database

USER = "7"


@pytest.fixture
def storage(store_class: type[SessionStore]) -> DatabaseStorage:
    found = store_class.get_storage()
    assert isinstance(found, DatabaseStorage)
    return found


def held(storage: DatabaseStorage, **changes: Any) -> SessionMap:
    """Return the session as a request holds it that has made these changes."""
    found = storage.get_session("session", 60)
    assert found is not None
    found.update(changes)
    return found


def written(storage: DatabaseStorage, session: SessionMap) -> list[str]:
    """Save the session, and return the statements that write the column."""
    statements: list[str] = []

    def note(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("UPDATE") and "user_id" in sql:
            statements.append(sql)
        return execute(sql, *args)

    with storage.table.connection.execute_wrapper(note):
        assert storage.apply("session", session, 60)
    return statements


def user_in(storage: DatabaseStorage) -> str | None:
    user: str | None = storage.table.rows.get(id="session").user_id
    return user


def test_the_column_has_the_user_id_or_the_hash_of_one_that_no_column_takes(storage: DatabaseStorage) -> None:
    for number, (user, wanted) in enumerate(
        {
            "7": "7",
            "550e8400-e29b-41d4-a716-446655440000": "550e8400-e29b-41d4-a716-446655440000",
            "a b": "sha256 c8687a08aa5d6ed2044328fa6a697ab8e96dc34291e8c2034ae8c38e6fcc6d65",
        }.items()
    ):
        assert storage.create(f"session{number}", SessionMap({SESSION_KEY: user}), 60)
        assert storage.table.rows.get(id=f"session{number}").user_id == wanted
        assert storage.sessions_of(user) == [f"session{number}"]


def test_a_user_cannot_be_another_by_a_name_that_is_the_hash(storage: DatabaseStorage) -> None:
    assert storage.create("session", SessionMap({SESSION_KEY: "a b"}), 60)
    assert storage.sessions_of(str(user_in(storage))) == []


def test_a_save_writes_the_column_only_where_the_user_is_another(storage: DatabaseStorage) -> None:
    assert storage.create("session", SessionMap({SESSION_KEY: USER}), 60)
    assert not written(storage, held(storage, key=1))
    assert len(written(storage, held(storage, **{SESSION_KEY: "8"}))) == 1
    assert storage.sessions_of("8") == ["session"]
    session = held(storage)
    del session[SESSION_KEY]
    assert len(written(storage, session)) == 1
    assert user_in(storage) is None


def test_a_request_that_saves_twice_writes_it_once(storage: DatabaseStorage) -> None:
    assert storage.create("session", SessionMap({}), 60)
    session = held(storage, **{SESSION_KEY: USER})
    assert len(written(storage, session)) == 1
    session.saved()
    session["key"] = 1
    assert not written(storage, session)
    assert storage.sessions_of(USER) == ["session"]


def test_a_sign_in_beside_a_set_expiry_is_listed(storage: DatabaseStorage) -> None:
    """The one save that leaves the expiry as it is."""
    assert storage.create("session", SessionMap({}), 60)
    signs_in = held(storage, **{SESSION_KEY: USER})
    assert storage.apply("session", held(storage, **{EXPIRY_KEY: 600}), 600)
    assert storage.apply("session", signs_in, 60)
    assert storage.sessions_of(USER) == ["session"]
    found = held(storage)
    assert found.ttl_left is not None
    assert found.ttl_left > 500


def test_a_merge_lists_the_user_of_the_whole_session(storage: DatabaseStorage) -> None:
    assert storage.create("session", SessionMap({}), 60)
    other = held(storage, key=1)
    assert storage.apply("session", held(storage, **{SESSION_KEY: USER}), 60)
    assert not written(storage, other)
    assert storage.sessions_of(USER) == ["session"]


def test_a_move_keeps_the_user(storage: DatabaseStorage) -> None:
    assert storage.create("session", SessionMap({SESSION_KEY: USER}), 60)
    assert storage.move("session", "moved", 60)
    assert storage.sessions_of(USER) == ["moved"]


def test_a_session_that_expired_is_not_listed_before_a_purge(storage: DatabaseStorage) -> None:
    assert storage.create("session", SessionMap({SESSION_KEY: USER}), 0)
    assert storage.sessions_of(USER) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_from_before_the_migration_is_listed_once_it_is_saved(kind: str) -> None:
    with database(kind) as alias:
        storage = DatabaseStorage(using=alias)
        assert storage.create("session", SessionMap({SESSION_KEY: USER, "key": 1}), 60)
        try:
            executor = MigrationExecutor(connections[alias])
            executor.migrate([("gsession_django", "0001_initial")])
        finally:
            executor = MigrationExecutor(connections[alias])
            executor.migrate(executor.loader.graph.leaf_nodes("gsession_django"))
        assert user_in(storage) is None
        assert storage.sessions_of(USER) == []
        session = held(storage)
        assert dict(session) == {SESSION_KEY: USER, "key": 1}
        session["key"] = 2
        assert storage.apply("session", session, 60)
        assert storage.sessions_of(USER) == ["session"]


def test_sessions_are_found_by_the_index() -> None:
    with database("sqlite") as alias:
        storage = DatabaseStorage(using=alias)
        plan: list[str] = []

        def explain(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            execute(f"EXPLAIN QUERY PLAN {sql}", params, many, context)
            plan.extend(row[3] for row in context["cursor"].fetchall())
            return execute(sql, params, many, context)

        with storage.table.connection.execute_wrapper(explain):
            storage.sessions_of(USER)
    (step,) = plan
    assert step.startswith("SEARCH gsession_django_session USING INDEX gsession_django_session_user_id")
