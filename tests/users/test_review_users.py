"""Review: what is shown of sessions, signals, limits and the command."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import SESSION_KEY, login
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_in
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection, models
from django.template import Context, Engine
from django.test import override_settings
from django.test.utils import isolate_apps

from gsession_django import SessionStore
from gsession_django.core.engine import engine_of
from gsession_django.signals import Ended, session_ended
from gsession_django.users import end_session, end_sessions, sessions_of
from gsession_django.users.listing import Sessions, describe
from tests.support.engines import engine, stored
from tests.support.sign_ins import ids_of, request_of, sign_in
from tests.support.sites import BACKEND, InMemoryUser


@pytest.fixture
def ended() -> Iterator[list[Any]]:
    told: list[Any] = []

    def receive(**arguments: Any) -> None:
        told.append(arguments["reason"])

    session_ended.connect(receive)
    yield told
    session_ended.disconnect(receive)


def with_setting(**more: Any) -> Any:
    return override_settings(GSESSION={**settings.GSESSION, **more})


# Signals: "once".


def test_a_session_that_was_ended_twice_is_told_once(store_class: type[SessionStore], ended: list[Any]) -> None:
    sign_in(store_class())
    (session,) = sessions_of("7")
    end_session(session)
    end_session(session)
    assert len(ended) == 1


def test_a_sign_out_of_a_session_that_was_ended_is_not_told(store_class: type[SessionStore], ended: list[Any]) -> None:
    request = store_class(sign_in(store_class()).session_key)
    assert request[SESSION_KEY] == "7"
    end_sessions("7")
    request.flush()
    assert len(ended) == 1


def test_a_session_that_never_was_does_not_end(store_class: type[SessionStore], ended: list[Any]) -> None:
    store_class("a" * 32).flush()  # the cookie of a session that expired long ago
    assert ended == []


@pytest.mark.parametrize("name", ["memory", "file"])
def test_a_purge_tells_of_the_sessions_that_it_removes(name: str, tmp_path: Path, ended: list[Any]) -> None:
    with engine(name, tmp_path) as store_class:
        store = sign_in(store_class())
        storage: Any = store_class.get_storage()
        storage.update_ttl(store.session_id, 0)
        assert sum(engine_of(store_class).purge(1000, dry_run=True)) == 1
        assert ended == []
        store_class.clear_expired()
    assert ended == [Ended.EXPIRED]


# ANONYMOUS_AGE.


def test_an_anonymous_session_was_seen_when_it_was_saved(store_class: type[SessionStore]) -> None:
    with with_setting(ANONYMOUS_AGE=600):
        store = store_class()
        store["cart"] = 1
        store.save()
        session = engine_of(store_class).run(Sessions(store_class).look(str(store.session_id)))
        seen = describe(str(store.session_id), session).last_seen
        assert seen is not None
        assert datetime.now(UTC) - seen < timedelta(minutes=1)


# What shows through.


def test_encode_shows_no_hidden_pairs(store_class: type[SessionStore]) -> None:
    store = store_class(sign_in(store_class()).session_key)
    assert set(store.decode(store.encode(store._session))) == set(store.keys())


# Limits.


def test_a_sign_in_without_a_session_makes_none(store_class: type[SessionStore]) -> None:
    """Packages that hand out tokens send user_logged_in, with a request whose session is nobody's."""
    with with_setting(MAX_SESSIONS_PER_USER=5):
        request = request_of(store_class())
        user_logged_in.send(sender=User, request=request, user=InMemoryUser(pk="7", username="ada"))
        assert list(store_class.get_storage().ids()) == []


def test_a_sign_in_is_not_undone_by_itself(store_class: type[SessionStore]) -> None:
    """The limit was lowered, and the user signs in again in the session that is the oldest."""
    ada = InMemoryUser(pk=7, username="ada", password="a hash")

    def visit(store: SessionStore) -> SessionStore:
        login(request_of(store), ada, BACKEND)
        store.save()
        return store

    first = visit(store_class())
    for _ in range(2):
        visit(store_class())
    with with_setting(MAX_SESSIONS_PER_USER=1):
        again = visit(store_class(first.session_key))
    assert again.get(SESSION_KEY) == "7"  # login() has returned, so the view believes it
    assert ids_of() == {again.session_id}


# The command.


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("store_class", ["memory", "file"], indirect=True)
@isolate_apps("tests")
def test_a_user_with_a_uuid_who_is_not_there_is_said_in_one_line(
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
            call_command("sessions", "list", "--user", "nobody", stdout=StringIO())
    finally:
        with connection.schema_editor() as editor:
            editor.delete_model(Person)


@pytest.mark.django_db
@pytest.mark.parametrize("store_class", ["memory", "file"], indirect=True)  # a database beside them is forbidden
def test_all_sessions_of_a_user_who_was_deleted_can_be_ended(store_class: type[SessionStore]) -> None:
    ada = User.objects.create_user("ada")
    store = sign_in(store_class(), str(ada.pk))
    number = str(ada.pk)
    ada.delete()
    call_command("sessions", "end", "--user", number, stdout=StringIO())
    assert stored(store_class, store.session_key) is None


def test_the_items_in_a_template_show_no_hidden_pairs(store_class: type[SessionStore]) -> None:
    store = store_class(sign_in(store_class()).session_key)
    assert "_gs." not in Engine().from_string("{{ session.items }}").render(Context({"session": store}))
