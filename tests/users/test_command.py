"""``manage.py sessions``."""

import json
import uuid
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection, models
from django.test import override_settings
from django.test.utils import isolate_apps

from gsession_django import SessionStore
from tests.support.engines import stored
from tests.support.sign_ins import ids_of, sign_in

pytestmark = pytest.mark.usefixtures("site")


def sessions(*arguments: str) -> str:
    out = StringIO()
    call_command("sessions", *arguments, stdout=out)
    return out.getvalue()


def as_json(*arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in sessions(*arguments, "--json").splitlines()]


@pytest.fixture
def ada() -> User:
    return User.objects.get_by_natural_key("ada")


def test_all_sessions_are_listed(store_class: type[SessionStore]) -> None:
    anonymous, signed_in = store_class(), sign_in(store_class())
    anonymous["cart"] = 1
    anonymous.save()
    users = {row["id"]: row["user"] for row in as_json("list")}
    assert users == {anonymous.session_id: None, signed_in.session_id: "7"}
    assert {line.split()[0] for line in sessions("list").splitlines()[1:]} == set(users)


def test_those_of_a_user_are_listed_by_name_and_by_primary_key(store_class: type[SessionStore], ada: User) -> None:
    mine = sign_in(store_class(), str(ada.pk))
    sign_in(store_class(), "another")
    for name in ("ada", str(ada.pk)):
        (row,) = as_json("list", "--user", name)
        assert (row["id"], row["user"]) == (mine.session_id, str(ada.pk))
        assert row["created"] is not None
        assert row["last_seen"] is not None


def test_no_session_key_is_shown(store_class: type[SessionStore], ada: User) -> None:
    key = sign_in(store_class(), str(ada.pk)).session_key
    (row,) = as_json("list")
    assert key is not None
    assert not any(key in sessions(*arguments) for arguments in (("list",), ("show", row["id"]), ("stats",)))


def test_a_session_is_shown_with_what_is_in_it(store_class: type[SessionStore]) -> None:
    store = sign_in(store_class())
    store["cart"] = {"apple": 1}
    store.save()
    text = sessions("show", str(store.session_id))
    assert "'cart': {'apple': 1}" in text
    (row,) = as_json("show", str(store.session_id))
    assert row["data"] == dict(store.items())


def test_one_session_is_ended(store_class: type[SessionStore]) -> None:
    mine, other = sign_in(store_class()), sign_in(store_class())
    assert "Ended 1 session of" in sessions("end", str(other.session_id))
    assert stored(store_class, other.session_key) is None
    assert ids_of() == {mine.session_id}


def test_all_sessions_of_a_user_are_ended(store_class: type[SessionStore], ada: User) -> None:
    keys = [sign_in(store_class(), str(ada.pk)).session_key for _ in range(3)]
    kept = sign_in(store_class(), "another")
    assert "Ended 3 sessions of" in sessions("end", "--user", "ada")
    assert all(stored(store_class, key) is None for key in keys)
    assert ids_of("another") == {kept.session_id}


def test_all_sessions_of_a_user_who_was_deleted_are_ended(store_class: type[SessionStore]) -> None:
    user = User.objects.create_user("deleted")
    number = str(user.pk)
    store = sign_in(store_class(), number)
    user.delete()
    assert "Ended 1 session of" in sessions("end", "--user", number)
    assert stored(store_class, store.session_key) is None


def test_another_engine_can_be_named(store_class: type[SessionStore], tmp_path: Path) -> None:
    store = sign_in(store_class())
    name = store_class.__module__
    with override_settings(SESSION_ENGINE="tests.support.engine_that_keeps_pairs"):
        (row,) = as_json("list", "--engine", name)
        assert row["id"] == store.session_id
        assert "Ended 1 session of" in sessions("end", "--engine", name, str(row["id"]))
    assert ids_of() == set()


def test_what_there_is_not_is_said(store_class: type[SessionStore]) -> None:
    with pytest.raises(CommandError, match="no session 'nothing'"):
        sessions("show", "nothing")
    with pytest.raises(CommandError, match="no session 'nothing'"):
        sessions("end", "nothing")
    with pytest.raises(CommandError, match="no user with the username or primary key 'nobody'"):
        sessions("list", "--user", "nobody")


def test_sessions_are_counted(store_class: type[SessionStore]) -> None:
    for user in ("7", "7", "8"):
        sign_in(store_class(), user)
    anonymous = store_class()
    anonymous["cart"] = "x" * 1000
    anonymous.save()
    (figures,) = as_json("stats")
    assert {name: figures[name] for name in ("sessions", "users", "signed_in", "of_one_user_at_most")} == {
        "sessions": 4,
        "users": 2,
        "signed_in": 3,
        "of_one_user_at_most": 2,
    }
    assert 1000 < figures["bytes_largest"] < 1100
    assert figures["bytes_median"] < 300


def test_sessions_that_expired_are_counted_where_they_do_not_go_by_themselves(store_class: type[SessionStore]) -> None:
    sign_in(store_class())
    store = sign_in(store_class())
    store_class.get_storage().update_ttl(str(store.session_id), 0)
    (figures,) = as_json("stats")
    by_itself = store_class.storage_class.expires_itself
    assert (figures["sessions"], figures["expired"]) == (1, None if by_itself else 1)
    assert f"expired: {'they go by themselves' if by_itself else 1}\n" in sessions("stats")


def test_an_engine_that_cannot_says_so() -> None:
    with override_settings(SESSION_ENGINE="tests.support.engine_that_keeps_pairs"):
        for arguments in (("list",), ("list", "--user", "ada"), ("end", "--user", "ada"), ("stats",)):
            with pytest.raises(CommandError, match=r"cannot list .*sessions"):
                sessions(*arguments)
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.db"), pytest.raises(CommandError):
        sessions("list")


def test_where_ids_are_session_keys_a_session_goes_by_its_handle(store_class: type[SessionStore]) -> None:
    given = settings.GSESSION["ENGINES"]
    options = {name: {**options, "hash_ids": False} for name, options in given.items()}
    with override_settings(GSESSION={**settings.GSESSION, "ENGINES": options}):
        store = sign_in(store_class())
        (row,) = as_json("list")
        assert row["id"] != store.session_key
        assert SESSION_KEY in sessions("show", row["id"])
        sessions("end", row["id"])
        assert ids_of() == set()


@isolate_apps("tests")
def test_a_user_who_is_not_there_is_said_in_one_line_though_primary_keys_are_uuids(
    store_class: type[SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Person(AbstractBaseUser):
        id = models.UUIDField(primary_key=True, default=uuid.uuid4)
        username = models.CharField(max_length=20, unique=True)
        USERNAME_FIELD = "username"
        objects = BaseUserManager()

        class Meta:
            app_label = "tests"

    with connection.schema_editor() as editor:
        editor.create_model(Person)
    try:
        monkeypatch.setattr("gsession_django.management.commands.sessions.get_user_model", lambda: Person)
        with pytest.raises(CommandError, match="no user"):
            sessions("list", "--user", "nobody")
    finally:
        with connection.schema_editor() as editor:
            editor.delete_model(Person)
