"""Review: session_lock."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View

from gsession_django import SessionStore, Storage, StorageUnavailable, locking
from gsession_django.backends import memory
from gsession_django.backends.database import DatabaseStorage
from gsession_django.decorators import session_lock
from gsession_django.locking import Held, aalone, alone
from tests.support import databases
from tests.support.engines import stored
from tests.support.sites import OURS
from tests.users.review_sites import Async, AsyncByKeys, Index, Whole, engine_with

inside: list[Any] = []


def new_key(store_class: type[SessionStore], **data: Any) -> str:
    store = store_class()
    store.update({"cart": {}, **data})
    store.save()
    return str(store.session_key)


@session_lock(wait=0.2)
def inner(request: HttpRequest) -> HttpResponse:
    return HttpResponse("done")


@session_lock(wait=0.2)
def nested(request: HttpRequest) -> HttpResponse:
    return inner(request)


@session_lock()
def fails(request: HttpRequest) -> HttpResponse:
    request.session["paid"] = True
    return HttpResponse(status=502)


@session_lock()
def in_place(request: HttpRequest) -> HttpResponse:
    request.session["cart"]["apple"] = 1
    return HttpResponse("done")


def in_place_without(request: HttpRequest) -> HttpResponse:
    request.session["cart"]["apple"] = 1
    return HttpResponse("done")


@method_decorator(session_lock(), name="dispatch")
class AsyncPage(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        inside.append(dict(memory_of(request).locks))
        return HttpResponse("done")


def memory_of(request: HttpRequest) -> Any:
    return type(request.session).get_storage()


urlpatterns = [
    path("nested/", nested),
    path("fails/", fails),
    path("in_place/", in_place),
    path("in_place_without/", in_place_without),
    path("page/", AsyncPage.as_view()),
]


def client_of(key: str, client: Any) -> Any:
    from django.conf import settings

    client.cookies[settings.SESSION_COOKIE_NAME] = key
    return client


@pytest.fixture(autouse=True)
def _site() -> Any:
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[OURS]):
        yield


def test_memory_can_lock() -> None:
    with override_settings(SESSION_ENGINE=memory.__name__):
        store = memory.SessionStore(new_key(memory.SessionStore))
        with alone(store, 1):
            pass


def test_an_async_class_based_view_has_its_session_alone() -> None:
    """The docstring says: method_decorator(session_lock(), name="dispatch")."""
    inside.clear()
    with engine_with(Whole) as store_class:
        key = new_key(store_class)
        response = asyncio.run(client_of(key, AsyncClient()).get("/page/"))
        assert response.status_code == 200
        assert store_class(key).session_id in inside[0]


def test_a_view_that_calls_another_with_a_lock_is_not_in_its_own_way() -> None:
    with engine_with(Whole) as store_class:
        assert client_of(new_key(store_class), Client()).get("/nested/").status_code == 200


def test_a_view_that_answers_with_500_or_more_saves_nothing() -> None:
    with engine_with(Whole) as store_class:
        key = new_key(store_class)
        assert client_of(key, Client()).get("/fails/").status_code == 502
        assert "paid" not in (stored(store_class, key) or {})


def test_a_change_in_place_renews_the_cookie_as_it_does_without_the_lock() -> None:
    with engine_with(Whole) as store_class:
        plain = client_of(new_key(store_class), Client()).get("/in_place_without/")
        locked = client_of(new_key(store_class), Client()).get("/in_place/")
        assert list(locked.cookies) == list(plain.cookies) != []


def test_an_outage_at_the_lock_is_answered_by_503() -> None:
    class Away(Whole):
        def lock(self, session_id: str, token: str, seconds: float) -> bool:
            raise StorageUnavailable("away")

    with engine_with(Away) as store_class:
        client = client_of(new_key(store_class), Client(raise_request_exception=False))
        assert client.get("/in_place/").status_code == 503


def test_an_outage_at_the_unlock_leaves_the_answer_of_the_view() -> None:
    class Away(Whole):
        def unlock(self, session_id: str, token: str) -> None:
            raise StorageUnavailable("away")

    with engine_with(Away) as store_class:
        key = new_key(store_class)
        client = client_of(key, Client(raise_request_exception=False))
        response = client.get("/in_place/")
        assert stored(store_class, key) == {"cart": {"apple": 1}}
        assert response.status_code == 200


def test_an_outage_at_the_unlock_does_not_hide_the_error_of_the_view() -> None:
    class Away(Whole):
        def unlock(self, session_id: str, token: str) -> None:
            raise StorageUnavailable("away")

    with engine_with(Away) as store_class:
        with pytest.raises(ZeroDivisionError), alone(store_class(new_key(store_class)), 1):
            _ = 1 / 0


def test_a_renewal_under_way_does_not_take_a_lock_that_was_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Whole):
        renewing, freed = threading.Event(), threading.Event()

        def lock(self, session_id: str, token: str, seconds: float) -> bool:
            if threading.current_thread().name == "gsession_django session_lock":
                self.renewing.set()
                self.freed.wait(1)  # the request for renewal is on its way
                taken = super().lock(session_id, token, 15)
                self.done.set()
                return taken
            return super().lock(session_id, token, 15)

        done = threading.Event()

        def unlock(self, session_id: str, token: str) -> None:
            super().unlock(session_id, token)
            self.freed.set()

    monkeypatch.setattr(locking, "LEASE", 0.03)
    with engine_with(Slow) as store_class:
        key = new_key(store_class)
        with alone(store_class(key), 1):
            assert Slow.renewing.wait(30)
        assert Slow.done.wait(30)
        with alone(store_class(key), 0):
            pass


def test_a_request_that_is_cancelled_while_it_takes_the_lock_lets_go() -> None:
    async def visits(store_class: type[SessionStore], key: str) -> None:
        async def visit() -> None:
            async with aalone(store_class(key), 1):
                pass

        task = asyncio.create_task(visit())
        while not store_class.get_storage().locks:  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        task.cancel()  # the visitor is gone, before the reply is here
        with pytest.raises(asyncio.CancelledError):
            await task
        async with aalone(store_class(key), 0):
            pass

    with engine_with(Async) as store_class:
        asyncio.run(visits(store_class, new_key(store_class)))


def test_an_async_lock_makes_no_blocking_call() -> None:
    async def visit(store: Any) -> None:
        await store.aget("cart")
        async with aalone(store, 1):
            pass

    with engine_with(AsyncByKeys) as store_class:
        key = new_key(store_class)
        storage: Any = store_class.get_storage()
        storage.medium.calls.clear()
        asyncio.run(visit(store_class(key)))
        assert [name for name in storage.medium.names() if not name.startswith("a")] == []


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[tuple[str, type[SessionStore]]]:
    class Locking(Index, DatabaseStorage):
        def __init__(self, **options: Any) -> None:
            DatabaseStorage.__init__(self, **options)
            self.locks, self.mutex = {}, threading.Lock()

    for name in ("sessions_of", "add_to_user", "remove_from_user"):
        setattr(Locking, name, getattr(Storage, name))
    with databases.database("sqlite") as alias:
        options = {"ENGINES": {"tests.users.review_engine_of_locking": {"using": alias}}}
        with engine_with(Locking, options) as store_class:
            yield alias, store_class


def test_what_was_saved_before_the_lock_survives_a_rollback(on_sqlite: tuple[str, type[SessionStore]]) -> None:
    alias, store_class = on_sqlite
    key = new_key(store_class)
    store = store_class(key)
    with transaction.atomic(using=alias):  # as ATOMIC_REQUESTS
        store["message"] = "of a middleware"
        with alone(store, 1):
            pass
        transaction.set_rollback(True, using=alias)
    assert store.undone
    store.settle()
    store.save()  # what the middleware does
    assert stored(store_class, key) == {"cart": {}, "message": "of a middleware"}


def test_the_next_one_sees_what_the_one_before_has_left_under_atomic_requests(
    on_sqlite: tuple[str, type[SessionStore]],
) -> None:
    alias, store_class = on_sqlite
    key = new_key(store_class)
    seen: list[Any] = []

    def second() -> None:
        store = store_class(key)
        with suppress(Held), alone(store, 0):
            seen.append(store.get("paid"))
        connections[alias].close()

    with transaction.atomic(using=alias):  # around the view and its decorators, as ATOMIC_REQUESTS is
        store = store_class(key)
        with alone(store, 1):
            store["paid"] = True
        thread = threading.Thread(target=second)  # before the commit
        thread.start()
        thread.join(30)
    assert seen in ([], [True])
