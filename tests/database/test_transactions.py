"""The database engine: after a rollback a save does not count, and the request saves the session again."""

import pickle
import unittest
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import pytest
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.base import CreateError, UpdateError
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, TestCase
from django.test.utils import override_settings
from django.urls import path

from gsession_django import SessionStore
from gsession_django.backends import database
from gsession_django.models import Session
from tests.database.test_engine import statements
from tests.support.databases import database as a_database
from tests.support.databases import options_for
from tests.support.engines import new_session, stored
from tests.support.sites import DJANGOS, OURS, get

BEFORE = {"cart": {"apple": 1}, "x": 0, "language": "fr"}
Deed = Callable[[SessionStore], object]


@contextmanager
def rolled_back(alias: str) -> Iterator[None]:
    with transaction.atomic(alias):
        yield
        transaction.set_rollback(True, alias)


def end(request: SessionStore) -> None:
    """End a request as Django's middleware does."""
    if request.modified and not request.is_empty():
        request.save()


def change(store_class: type[SessionStore], key: str, **values: Any) -> None:
    """Let another request set values."""
    other = store_class(key)
    other.update(values)
    other.save()


# The request's changes are stored at its end.


def sets(request: SessionStore) -> None:
    request["x"] = 1
    request.save()


def sets_twice(request: SessionStore) -> None:
    sets(request)
    request["x"] = 2
    request["y"] = 2
    request.save()


def sets_back(request: SessionStore) -> None:
    sets(request)
    request["x"] = 0
    request.save()


def sets_in_place(request: SessionStore) -> None:
    request["cart"]["pear"] = 1
    request.save()


def sets_in_place_twice(request: SessionStore) -> None:
    cart = request["cart"]
    cart["pear"] = 1
    request.save()
    del cart["apple"]
    request.save()


def sets_a_dict(request: SessionStore) -> None:
    request["cart"] = {"pear": 1}
    request.save()


def removes(request: SessionStore) -> None:
    del request["language"]
    request.save()


def removes_and_sets(request: SessionStore) -> None:
    removes(request)
    request["language"] = "de"
    request.save()


def clears(request: SessionStore) -> None:
    request.clear()
    request["y"] = 1
    request.save()


def sets_and_clears(request: SessionStore) -> None:
    sets(request)
    clears(request)


def signs_in(request: SessionStore) -> None:
    request[SESSION_KEY] = "7"
    request.cycle_key()


def signs_in_and_saves(request: SessionStore) -> None:
    signs_in(request)
    request.save()


def cycles_twice(request: SessionStore) -> None:
    signs_in_and_saves(request)
    request.cycle_key()


def signs_in_as_another(request: SessionStore) -> None:
    request.flush()
    request[SESSION_KEY] = "8"
    request.cycle_key()


DEEDS: list[tuple[Deed, dict[str, Any]]] = [
    (sets, {**BEFORE, "x": 1}),
    (sets_twice, {**BEFORE, "x": 2, "y": 2}),
    (sets_back, BEFORE),
    (sets_in_place, {**BEFORE, "cart": {"apple": 1, "pear": 1}}),
    (sets_in_place_twice, {**BEFORE, "cart": {"pear": 1}}),
    (sets_a_dict, {**BEFORE, "cart": {"pear": 1}}),
    (removes, {"cart": {"apple": 1}, "x": 0}),
    (removes_and_sets, {**BEFORE, "language": "de"}),
    (clears, {"y": 1}),
    (sets_and_clears, {"y": 1}),
    (signs_in, {**BEFORE, SESSION_KEY: "7"}),
    (signs_in_and_saves, {**BEFORE, SESSION_KEY: "7"}),
    (cycles_twice, {**BEFORE, SESSION_KEY: "7"}),
    (signs_in_as_another, {SESSION_KEY: "8"}),
]
each_deed = pytest.mark.parametrize(("deed", "expected"), DEEDS, ids=lambda value: getattr(value, "__name__", ""))


def check(store_class: type[SessionStore], request: SessionStore, key: str, expected: dict[str, Any]) -> None:
    """Check that this session is the only one."""
    assert stored(store_class, request.session_key) == expected
    if request.session_key != key:
        assert stored(store_class, key) is None
    assert len(list(store_class.get_storage().ids())) == 1


@each_deed
def test_changes_that_were_rolled_back_are_stored_at_the_end_of_the_request(
    alias: str, store_class: type[SessionStore], deed: Deed, expected: dict[str, Any]
) -> None:
    key = new_session(store_class, BEFORE)
    request = store_class(key)
    with rolled_back(alias):
        deed(request)
    assert stored(store_class, key) == BEFORE
    end(request)
    check(store_class, request, key, expected)


@each_deed
def test_committed_changes_are_stored_once(
    alias: str, store_class: type[SessionStore], deed: Deed, expected: dict[str, Any]
) -> None:
    key = new_session(store_class, BEFORE)
    request = store_class(key)
    with transaction.atomic(alias):
        deed(request)
        request.save()
    check(store_class, request, key, expected)
    end(request)
    check(store_class, request, key, expected)


@each_deed
def test_the_next_save_stores_the_changes_that_a_savepoint_undid(
    alias: str, store_class: type[SessionStore], deed: Deed, expected: dict[str, Any]
) -> None:
    key = new_session(store_class, BEFORE)
    request = store_class(key)
    with transaction.atomic(alias):
        request["before"] = 1
        request.save()
        with rolled_back(alias):
            deed(request)
        request["after"] = 1
        request.save()
    if "x" in expected:  # otherwise the deed has dropped everything
        expected = {**expected, "before": 1}
    check(store_class, request, key, {**expected, "after": 1})


@each_deed
def test_a_save_after_the_savepoint_is_undone_with_the_whole_transaction(
    alias: str, store_class: type[SessionStore], deed: Deed, expected: dict[str, Any]
) -> None:
    """One savepoint after another, and at last the whole transaction."""
    key = new_session(store_class, BEFORE)
    request = store_class(key)
    with rolled_back(alias):
        with transaction.atomic(alias):
            deed(request)
        with rolled_back(alias):
            request["z"] = 1
            request.save()
        request["z"] = 2
        request.save()
    end(request)
    check(store_class, request, key, {**expected, "z": 2})


def test_a_value_set_back_in_a_savepoint_that_is_undone_is_set_back_at_the_end(
    alias: str, store_class: type[SessionStore]
) -> None:
    key = new_session(store_class, BEFORE)
    request = store_class(key)
    with transaction.atomic(alias):
        sets(request)
        with rolled_back(alias):
            request["x"] = 0
            request.save()
    assert stored(store_class, key) == {**BEFORE, "x": 1}
    end(request)
    assert stored(store_class, key) == BEFORE


def test_changes_that_others_saved_meanwhile_are_kept(alias: str, store_class: type[SessionStore]) -> None:
    key = new_session(store_class, BEFORE)
    request = store_class(key)
    with rolled_back(alias):
        sets_in_place(request)
    change(store_class, key, theirs=1, cart={"apple": 1, "plum": 1})
    end(request)
    assert stored(store_class, key) == {**BEFORE, "theirs": 1, "cart": {"apple": 1, "pear": 1, "plum": 1}}


def test_committed_changes_are_not_written_over_later_ones_of_others(
    alias: str, store_class: type[SessionStore]
) -> None:
    key = new_session(store_class, BEFORE)
    request = store_class(key)
    with transaction.atomic(alias):
        sets(request)
    change(store_class, key, x=5)
    end(request)
    assert stored(store_class, key) == {**BEFORE, "x": 5}


# The beginning and the end of sessions.


@pytest.mark.parametrize("then", ["nothing", "sets", "cycles"])
def test_a_new_session_is_stored_at_the_end_under_its_key(
    alias: str, store_class: type[SessionStore], then: str
) -> None:
    request = store_class()
    with rolled_back(alias):
        request["y"] = 1
        request.save()
        key = request.session_key
        if then == "cycles":
            request.cycle_key()
    if then == "sets":
        request["more"] = 1
    assert list(store_class.get_storage().ids()) == []
    end(request)
    assert (request.session_key == key) is (then != "cycles")
    assert stored(store_class, request.session_key) == ({"y": 1, "more": 1} if then == "sets" else {"y": 1})
    assert len(list(store_class.get_storage().ids())) == 1


def test_a_session_with_a_given_key_is_created_again_unless_the_key_is_taken(
    alias: str, store_class: type[SessionStore]
) -> None:
    requests = [store_class("a-key-of-the-sites-own-1"), store_class("a-key-of-the-sites-own-2")]
    with rolled_back(alias):
        for request in requests:
            request.save(must_create=True)
            request["y"] = 1
            request.save()
    taken = store_class(requests[0].session_key)
    taken.save(must_create=True)
    taken["theirs"] = 1
    taken.save()
    with pytest.raises(CreateError):
        end(requests[0])
    end(requests[1])
    assert [stored(store_class, request.session_key) for request in requests] == [{"theirs": 1}, {"y": 1}]


def test_a_session_that_others_ended_meanwhile_is_not_brought_back(alias: str, store_class: type[SessionStore]) -> None:
    for deed in (sets, clears, cycles_twice):
        key = new_session(store_class, {**BEFORE, SESSION_KEY: "7"})
        request = store_class(key)
        with rolled_back(alias):
            deed(request)
        store_class(key).flush()
        with pytest.raises(UpdateError):
            end(request)
        assert list(store_class.get_storage().ids()) == []


def test_two_sign_ins_at_once_both_succeed_though_one_was_rolled_back(
    alias: str, store_class: type[SessionStore]
) -> None:
    key = new_session(store_class, BEFORE)
    request, other = store_class(key), store_class(key)
    with rolled_back(alias):
        signs_in(request)
    signs_in_and_saves(other)
    end(request)
    for store in (request, other):
        assert stored(store_class, store.session_key) == {**BEFORE, SESSION_KEY: "7"}


def test_a_session_that_ended_in_it_ends_with_the_next_save(alias: str, store_class: type[SessionStore]) -> None:
    key = new_session(store_class, BEFORE)
    request = store_class(key)
    with rolled_back(alias):
        request.flush()
    request["y"] = 1
    end(request)
    check(store_class, request, key, {"y": 1})


def test_a_session_that_ended_in_it_ends_when_the_middleware_asks(alias: str, store_class: type[SessionStore]) -> None:
    key = new_session(store_class, BEFORE)
    request = store_class(key)
    with rolled_back(alias):
        request.flush()
    assert request.undone
    request.settle()
    assert stored(store_class, key) is None
    assert not request.undone


# Touches.


def test_a_touch_that_was_rolled_back_does_not_count_as_one(alias: str, store_class: type[SessionStore]) -> None:
    key = new_session(store_class, BEFORE)
    Session._default_manager.using(alias).update(expires=0)
    key = new_session(store_class, BEFORE)
    with override_settings(SESSION_COOKIE_AGE=10_000, SESSION_SAVE_EVERY_REQUEST=True):
        request = store_class(key)
        request.get("x")
        left = request.ttl_left
        with rolled_back(alias):
            request.modified = True
            request.save()
        request.modified = False
        assert request.modified
        request.save()
        assert left is not None
        assert store_class(key).ttl_left == pytest.approx(10_000, abs=100)


# modified.


def test_the_session_is_modified_until_it_is_committed(alias: str, store_class: type[SessionStore]) -> None:
    key = new_session(store_class, BEFORE)
    request = store_class(key)
    with transaction.atomic(alias):
        sets_in_place(request)
        assert request.modified
    assert not request.modified
    with rolled_back(alias):
        sets_in_place_twice(request)
        request.modified = False
    assert request.modified


# Statements.


def test_after_a_commit_nothing_is_written_again(kind: str, alias: str, store_class: type[SessionStore]) -> None:
    request = store_class(new_session(store_class, BEFORE))
    with transaction.atomic(alias):
        sets_in_place(request)
    with statements(kind, alias) as given:
        end(request)
    assert given == []


def test_many_saves_in_a_transaction_take_the_space_of_one(alias: str, store_class: type[SessionStore]) -> None:
    key = new_session(store_class, BEFORE)
    request = store_class(key)
    connection = connections[alias]
    with rolled_back(alias):
        for number in range(5):
            request["x"] = number
            request["cart"][f"pear {number % 2}"] = number
            request[f"key {number}"] = number
            request.save()
        assert (len(connection.run_on_commit), len(request._writes)) == (1, 1)
        with transaction.atomic(alias):
            sets_back(request)
        assert (len(connection.run_on_commit), len(request._writes)) == (2, 2)
    change(store_class, key, theirs=1)  # makes the engine merge key by key
    end(request)
    keys = {f"key {number}": number for number in range(5)}
    assert stored(store_class, key) == {**BEFORE, "cart": {"apple": 1, "pear 0": 4, "pear 1": 3}, **keys, "theirs": 1}


# Transactions of other kinds.


@contextmanager
def raising_callback(alias: str) -> Iterator[None]:
    """Let the first callback after the commit raise: Django then calls no other."""

    def fail() -> None:
        raise LookupError

    with suppress(LookupError), transaction.atomic(alias):
        transaction.on_commit(fail, using=alias)
        yield


def test_a_callback_that_raises_after_the_commit_does_no_harm(alias: str, store_class: type[SessionStore]) -> None:
    for deed in (sets, signs_in_and_saves, signs_in_as_another):
        key = new_session(store_class, BEFORE)
        request = store_class(key)
        with raising_callback(alias):
            deed(request)
        assert request.session_key is not None
        change(store_class, request.session_key, theirs=1)
        end(request)
        found = stored(store_class, request.session_key)
        assert found is not None
        assert found["theirs"] == 1
        request.flush()
    request = store_class()
    with raising_callback(alias):
        request["y"] = 1
        request.save()
    end(request)
    assert stored(store_class, request.session_key) == {"y": 1}


def begins(store_class: type[SessionStore]) -> SessionStore:
    """Let a visitor sign in on the first page."""
    request = store_class()
    request[SESSION_KEY] = "7"
    request.save()
    return request


def begins_under_a_given_key(store_class: type[SessionStore]) -> SessionStore:
    request = store_class("a-key-of-the-sites-own")
    request.save(must_create=True)
    return request


def gets_another_key(store_class: type[SessionStore]) -> SessionStore:
    request = store_class(new_session(store_class, BEFORE))
    signs_in_and_saves(request)
    return request


each_beginning = pytest.mark.parametrize("begin", [begins, begins_under_a_given_key, gets_another_key])
Beginning = Callable[[type[SessionStore]], SessionStore]


def check_that_it_has_ended(store_class: type[SessionStore], request: SessionStore) -> None:
    request["y"] = 1
    with pytest.raises(UpdateError):
        end(request)
    assert list(store_class.get_storage().ids()) == []


@each_beginning
def test_a_session_that_others_ended_after_the_commit_stays_ended_though_a_callback_has_raised(
    alias: str, store_class: type[SessionStore], begin: Beginning
) -> None:
    with raising_callback(alias):
        request = begin(store_class)
    store_class(request.session_key).flush()
    check_that_it_has_ended(store_class, request)


@each_beginning
def test_an_earlier_callback_saves_the_session_with_one_statement(
    kind: str, alias: str, store_class: type[SessionStore], begin: Beginning
) -> None:
    given: list[str] = []

    def save() -> None:
        request["job"] = "queued"
        with statements(kind, alias) as found:
            request.save()
        given.extend(found)

    with transaction.atomic(alias):
        transaction.on_commit(save, using=alias)
        request = begin(store_class)
        expected = dict(request.items())
    assert stored(store_class, request.session_key) == {**expected, "job": "queued"}
    assert len(given) == 1


@contextmanager
def no_autocommit(alias: str) -> Iterator[None]:
    transaction.set_autocommit(False, alias)
    try:
        yield
    finally:
        transaction.rollback(alias)
        transaction.set_autocommit(True, alias)


@each_beginning
@pytest.mark.parametrize("in_atomic", [False, True])
def test_with_autocommit_off_no_committed_and_ended_session_comes_back(
    alias: str, store_class: type[SessionStore], begin: Beginning, in_atomic: bool
) -> None:
    with no_autocommit(alias):
        with transaction.atomic(alias) if in_atomic else nullcontext():
            request = begin(store_class)
        transaction.commit(alias)
        store_class(request.session_key).flush()
        transaction.commit(alias)
        transaction.rollback(alias)
        check_that_it_has_ended(store_class, request)


@pytest.mark.parametrize("begin", [begins, begins_under_a_given_key])
def test_with_autocommit_off_a_rollback_ends_a_new_session(
    alias: str, store_class: type[SessionStore], begin: Beginning
) -> None:
    with no_autocommit(alias):
        store_class("a-key-of-nobody").delete()  # SQLite begins a transaction at a statement that writes
        request = begin(store_class)
        transaction.rollback(alias)
        check_that_it_has_ended(store_class, request)


@pytest.mark.parametrize("deed", [sets, sets_in_place, signs_in_and_saves])
def test_with_autocommit_off_a_rollback_counts_too(alias: str, store_class: type[SessionStore], deed: Deed) -> None:
    key = new_session(store_class, BEFORE)
    request = store_class(key)
    request.get("x")
    with no_autocommit(alias):
        request.modified = True
        request.save()  # SQLite begins a transaction at a statement that writes, and not at a savepoint
        deed(request)
        transaction.rollback(alias)
        assert stored(store_class, key) == BEFORE
        end(request)
        transaction.commit(alias)
    expected = next(expected for other, expected in DEEDS if other is deed)
    check(store_class, request, key, expected)


def test_a_rollback_of_another_database_undoes_nothing_here(
    kind: str, alias: str, store_class: type[SessionStore]
) -> None:
    request = store_class(new_session(store_class, BEFORE))
    with a_database("sqlite") as other, rolled_back(other):
        sets_in_place(request)
    with statements(kind, alias) as given:
        end(request)
    assert given == []


def test_a_copy_of_the_session_can_be_pickled_in_a_transaction(alias: str, store_class: type[SessionStore]) -> None:
    request = store_class(new_session(store_class, BEFORE))
    with transaction.atomic(alias):
        sets(request)
        assert pickle.loads(pickle.dumps(request))["x"] == 1


# ATOMIC_REQUESTS, through Django's full handler.


def code(request: HttpRequest) -> HttpResponse:
    """Count wrong codes, and roll the request back as the exception handler of Django REST framework does."""
    request.session["attempts"] = request.session.get("attempts", 0) + 1
    request.session.save()
    transaction.set_rollback(True, database.DatabaseStorage(**_options()).table.alias)
    return HttpResponse(request.session["attempts"], status=400)


def sign_in(request: HttpRequest) -> HttpResponse:
    request.session[SESSION_KEY] = "7"
    request.session.cycle_key()
    return code(request)


def sign_out(request: HttpRequest) -> HttpResponse:
    request.session.flush()
    transaction.set_rollback(True, database.DatabaseStorage(**_options()).table.alias)
    return HttpResponse("out", status=400)


def seen(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"{request.session.get(SESSION_KEY)} {request.session.get('attempts')}")


def _options() -> dict[str, Any]:
    from django.conf import settings

    options: dict[str, Any] = settings.GSESSION["ENGINES"][settings.SESSION_ENGINE]
    return options


urlpatterns = [path(f"{view.__name__}/", view) for view in (code, sign_in, sign_out, seen)]


@contextmanager
def site(alias: str, middleware: str = OURS) -> Iterator[None]:
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[middleware], **options_for(alias)):
        yield


@pytest.fixture
def atomic_alias(kind: str) -> Iterator[str]:
    with a_database(kind, ATOMIC_REQUESTS=True) as found:
        yield found


class Visitor:
    def __init__(self, client_class: Any) -> None:
        self.client = client_class()

    def visits(self, view: str) -> str:
        text: str = get(self.client, f"/{view}/").content.decode()
        return text

    @property
    def key(self) -> str:
        return str(self.client.cookies["sessionid"].value)


@pytest.mark.parametrize("client_class", [Client, AsyncClient], ids=["sync", "async"])
@pytest.mark.parametrize("middleware", [OURS, DJANGOS], ids=["ours", "djangos"])
def test_a_view_that_is_rolled_back_still_counts(atomic_alias: str, middleware: str, client_class: Any) -> None:
    with site(atomic_alias, middleware):
        visitor = Visitor(client_class)
        assert [visitor.visits("code") for _ in range(3)] == ["1", "2", "3"]
        first = visitor.key
        assert visitor.visits("sign_in") == "4"
        assert visitor.key != first
        assert visitor.visits("seen") == "7 4"
        assert stored(database.SessionStore, first) is None


@pytest.mark.parametrize("client_class", [Client, AsyncClient], ids=["sync", "async"])
def test_a_sign_out_that_is_rolled_back_still_signs_out(atomic_alias: str, client_class: Any) -> None:
    with site(atomic_alias):
        visitor = Visitor(client_class)
        visitor.visits("sign_in")
        key = visitor.key
        assert visitor.visits("sign_out") == "out"
        assert visitor.key == ""
        assert stored(database.SessionStore, key) is None


def lose_the_database(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        response = get_response(request)
        connection = connections[database.DatabaseStorage(**_options()).table.alias]
        connection.close()
        connection.settings_dict["NAME"] = "/no/such/folder/sessions"
        return response

    return middleware


def test_no_reply_sends_a_key_that_was_rolled_back_before_an_outage() -> None:
    with a_database("sqlite", ATOMIC_REQUESTS=True) as alias:
        with site(alias):
            visitor = Visitor(Client)
            visitor.visits("code")
            key = visitor.key
        with site(alias), override_settings(MIDDLEWARE=[OURS, f"{__name__}.lose_the_database"]):
            client = Client()
            client.cookies["sessionid"] = key
            response = client.get("/sign_in/")
        assert response.status_code == 503
        assert "sessionid" not in response.cookies


# In a TestCase, whose own transaction is never committed.


@pytest.mark.parametrize("atomic_requests", [False, True])
def test_in_a_testcase_of_djangos_sessions_work(kind: str, atomic_requests: bool) -> None:
    with a_database(kind, ATOMIC_REQUESTS=atomic_requests) as alias, site(alias):

        class Case(TestCase):
            databases = {alias}

            def test(self) -> None:
                with self.captureOnCommitCallbacks(using=alias) as callbacks:
                    session = self.client.session
                    session["attempts"] = 1
                    session.save()
                    session["q"] = 1
                    session.save()
                    self.assertEqual(self.client.get("/seen/").content, b"None 1")
                    session["attempts"] = 2
                    session.save()
                self.assertEqual(callbacks, [])
                self.assertEqual(self.client.get("/seen/").content, b"None 2")
                calls: list[str] = []
                transaction.on_commit(lambda: calls.append("of the test"), using=alias)
                with self.captureOnCommitCallbacks(using=alias, execute=True), transaction.atomic(alias):
                    transaction.on_commit(session.save, using=alias)
                    transaction.on_commit(lambda: calls.append("of the site"), using=alias)
                    session["attempts"] = 1
                    session.save()
                self.assertEqual(calls, ["of the site"])
                session["attempts"] = 2
                session.save()
                if atomic_requests:
                    self.assertEqual(self.client.get("/code/").content, b"3")
                    self.assertEqual(self.client.get("/sign_in/").content, b"4")
                    self.assertEqual(self.client.get("/seen/").content, b"7 4")
                with rolled_back(alias):
                    session = self.client.session
                    session["attempts"] = 10
                    session.save()
                session.save()
                self.assertEqual(self.client.session["attempts"], 10)

        result = unittest.TestResult()
        Case.setUpClass()
        try:
            Case("test")(result)
        finally:
            Case.doClassCleanups()
        assert not result.errors + result.failures, (result.errors + result.failures)[0][1]
        assert list(database.SessionStore.get_storage().ids()) == []
