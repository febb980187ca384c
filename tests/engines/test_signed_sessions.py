"""A session that something other than this site has written, changed or copied is no session, as with Django's engines.

On each engine that signs what it stores: the file engine, and the database engine on each kind of database.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
from django.contrib.auth import SESSION_KEY
from django.db import connections
from django.test import override_settings

from gsession_django import SessionMap, SessionStore
from gsession_django.models import Session
from gsession_django.serializers import DecodeError
from tests.support.databases import KINDS
from tests.support.engines import engine, id_of, new_session, path_of, stored

LOG = "django.security.SuspiciousSession"
VISITOR = {SESSION_KEY: "5", "cart": {"apple": 1}}


class Medium(Protocol):
    """What somebody does who can write to the medium, and does not have the secret key."""

    def take(self, session_id: str) -> Any:
        """Return what is stored for a session."""

    def put(self, session_id: str, content: Any) -> None:
        """Store it under the id of a session that was taken before."""

    def changed(self, content: Any, old: bytes, new: bytes) -> Any:
        """Return it with other bytes in the data of the session."""


class Files:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: dict[str, Path] = {}

    def take(self, session_id: str) -> bytes:
        path = self._paths[session_id] = path_of(self._folder, session_id)
        return path.read_bytes()

    def put(self, session_id: str, content: bytes) -> None:
        self._paths[session_id].write_bytes(content)

    def changed(self, content: bytes, old: bytes, new: bytes) -> bytes:
        assert content.count(old) == 1
        return content.replace(old, new)


class Rows:
    def __init__(self, alias: str) -> None:
        self._rows = Session._default_manager.using(alias)

    def take(self, session_id: str) -> Mapping[str, Any]:
        row = self._rows.values("data", "version", "expires", "user_id").get(id=session_id)
        return {**row, "data": bytes(row["data"])}

    def put(self, session_id: str, content: Mapping[str, Any]) -> None:
        self._rows.update_or_create(id=session_id, defaults=dict(content))

    def changed(self, content: Mapping[str, Any], old: bytes, new: bytes) -> Mapping[str, Any]:
        assert content["data"].count(old) == 1
        return {**content, "data": content["data"].replace(old, new)}


@pytest.fixture(params=["file", *KINDS])
def store_class(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[SessionStore]]:
    with engine(request.param, tmp_path) as found:
        yield found


@pytest.fixture
def medium(store_class: type[SessionStore], tmp_path: Path) -> Medium:
    storage: Any = store_class.get_storage()
    return Rows(storage.table.alias) if hasattr(storage, "table") else Files(tmp_path)


def secret_keys(current: str, *former: str) -> override_settings:
    return override_settings(SECRET_KEY=current, SECRET_KEY_FALLBACKS=list(former))


def is_refused(store_class: type[SessionStore], medium: Medium, key: str, caplog: pytest.LogCaptureFixture) -> None:
    """Check that a visitor with this key finds an empty session, and that nothing is lost by that."""
    session_id, storage = id_of(store_class, key), store_class.get_storage()
    content = medium.take(session_id)
    caplog.clear()
    visitor = store_class(key)
    assert dict(visitor.items()) == {}
    assert visitor.session_key == key, "the visitor would lose the cookie"
    (record,) = caplog.records
    assert record.name == LOG
    assert "SECRET_KEY_FALLBACKS" in record.getMessage()
    visitor["new"] = 1
    visitor.save()
    assert visitor.session_key != key
    for operation in (
        lambda: storage.get_session(session_id, 60),
        lambda: storage.apply(session_id, SessionMap({"key": 1}), 60),
        lambda: storage.move(session_id, "0" * 64, 60),
    ):
        with pytest.raises(DecodeError, match="SECRET_KEY"):
            operation()
    assert medium.take(session_id) == content


def test_a_changed_session_is_no_session(
    store_class: type[SessionStore], medium: Medium, caplog: pytest.LogCaptureFixture
) -> None:
    session_id = id_of(store_class, key := new_session(store_class, VISITOR))
    genuine = medium.take(session_id)
    medium.put(session_id, medium.changed(genuine, b'"_auth_user_id":"5"', b'"_auth_user_id":"1"'))
    is_refused(store_class, medium, key, caplog)
    medium.put(session_id, genuine)
    assert stored(store_class, key) == VISITOR


def test_a_large_session_is_signed_to_its_end(
    store_class: type[SessionStore], medium: Medium, caplog: pytest.LogCaptureFixture
) -> None:
    session_id = id_of(store_class, key := new_session(store_class, {"text": "x" * 100_000 + "!"}))
    medium.put(session_id, medium.changed(medium.take(session_id), b'x!"', b'x?"'))
    is_refused(store_class, medium, key, caplog)


def test_a_session_in_the_place_of_another_is_no_session(
    store_class: type[SessionStore], medium: Medium, caplog: pytest.LogCaptureFixture
) -> None:
    mine, admins = new_session(store_class, {SESSION_KEY: "5"}), new_session(store_class, {SESSION_KEY: "1"})
    my_id, admins_id = (id_of(store_class, key) for key in (mine, admins))
    medium.take(my_id)
    medium.put(my_id, medium.take(admins_id))
    is_refused(store_class, medium, mine, caplog)
    assert stored(store_class, admins) == {SESSION_KEY: "1"}


def test_a_planted_session_is_no_session(
    store_class: type[SessionStore], medium: Medium, caplog: pytest.LogCaptureFixture
) -> None:
    with secret_keys("the attacker's own"):
        key = new_session(store_class, {SESSION_KEY: "1"})
        assert stored(store_class, key) == {SESSION_KEY: "1"}
    is_refused(store_class, medium, key, caplog)


def test_a_request_that_holds_the_session_does_not_merge_with_a_changed_one(
    store_class: type[SessionStore], medium: Medium
) -> None:
    session_id = id_of(store_class, key := new_session(store_class, VISITOR))
    request = store_class(key)
    request["cart"]["pear"] = 1
    former = medium.take(session_id)
    other = store_class(key)
    other["more"] = 1
    other.save()
    changed = medium.changed(medium.take(session_id), b'"more":1', b'"more":2')
    medium.put(session_id, changed)
    request.save()
    assert request.session_key != key
    assert stored(store_class, request.session_key) == {SESSION_KEY: "5", "cart": {"apple": 1, "pear": 1}}
    assert medium.take(session_id) == changed != former


@pytest.mark.parametrize("user", ["1", None])
@pytest.mark.parametrize("store_class", KINDS, indirect=True)
def test_a_row_in_the_name_of_another_user_is_no_session(
    store_class: type[SessionStore], medium: Medium, user: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise a thief could hide a session from its user, who would not end it then."""
    session_id = id_of(store_class, key := new_session(store_class, VISITOR))
    medium.put(session_id, {**medium.take(session_id), "user_id": user})
    is_refused(store_class, medium, key, caplog)


def test_a_changed_secret_key_ends_no_session_and_a_fallback_reads_it(
    store_class: type[SessionStore], medium: Medium, caplog: pytest.LogCaptureFixture
) -> None:
    with secret_keys("first"):
        key = new_session(store_class, VISITOR)
        assert stored(store_class, key) == VISITOR
    with secret_keys("second"):
        is_refused(store_class, medium, key, caplog)
    with secret_keys("third", "second", "first"):
        assert stored(store_class, key) == VISITOR
    with secret_keys("first"):
        assert stored(store_class, key) == VISITOR


@pytest.mark.parametrize("ending", ["save", "cycle_key"])
def test_a_session_is_signed_with_the_current_key_when_it_is_next_written(
    store_class: type[SessionStore], ending: str
) -> None:
    with secret_keys("first"):
        key: str | None = new_session(store_class, VISITOR)
    with secret_keys("second", "first"):
        request = store_class(key)
        if ending == "save":
            request["cart"]["pear"] = 1
            request.save()
        else:
            request.cycle_key()
        key = request.session_key
        expected = stored(store_class, key)
        assert expected
    with secret_keys("second"):
        assert stored(store_class, key) == expected


def test_a_moved_session_is_signed_for_its_new_key_only(
    store_class: type[SessionStore], medium: Medium, caplog: pytest.LogCaptureFixture
) -> None:
    old_id = id_of(store_class, key := new_session(store_class, VISITOR))
    medium.take(old_id)
    request = store_class(key)
    request.cycle_key()
    assert request.session_key is not None
    assert stored(store_class, key) is None
    assert stored(store_class, request.session_key) == VISITOR
    medium.put(old_id, medium.take(id_of(store_class, request.session_key)))
    is_refused(store_class, medium, key, caplog)


def test_a_session_of_another_engine_is_no_session(tmp_path: Path) -> None:
    """The tags of the engines differ, even for the same id and data."""
    with engine("file", tmp_path) as files:
        session_id = id_of(files, key := new_session(files, {"key": 1}))
        tag = path_of(tmp_path, session_id).read_bytes()[28:44]
    with engine("sqlite", tmp_path) as rows:
        storage: Any = rows.get_storage()
        assert storage.create(session_id, SessionMap({"key": 1}), 60)
        medium = Rows(storage.table.alias)
        content = medium.take(session_id)
        assert content["data"][:16] != tag
        medium.put(session_id, {**content, "data": tag + content["data"][16:]})
        assert stored(rows, key) == {}


@pytest.mark.parametrize("store_class", KINDS, indirect=True)
def test_a_save_between_the_two_statements_of_a_move_is_moved_too(store_class: type[SessionStore]) -> None:
    session_id = id_of(store_class, key := new_session(store_class, VISITOR))
    storage: Any = store_class.get_storage()
    connection, others = connections[storage.table.alias], iter(range(2))

    def first_somebody_saves(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("UPDATE") and (number := next(others, None)) is not None:
            wrappers, connection.execute_wrappers = connection.execute_wrappers, []
            held = storage.get_session(session_id, 60)
            held["cart"][f"item {number}"] = 1
            assert storage.apply(session_id, held, 60)
            connection.execute_wrappers = wrappers
        return execute(sql, *args)

    request = store_class(key)
    request.load()
    with connection.execute_wrapper(first_somebody_saves):
        request.cycle_key()
    assert stored(store_class, request.session_key) == {**VISITOR, "cart": {"apple": 1, "item 0": 1, "item 1": 1}}
