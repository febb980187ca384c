"""``session_lock``: one request of a session at a time, on each engine."""

import asyncio
import logging
import threading
import unittest
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, RequestFactory, TestCase, override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View

from gsession_django import SessionStore, locking
from gsession_django.backends import database, redis, redis_hash
from gsession_django.decorators import session_lock
from gsession_django.locking import Held, aalone, alone
from gsession_django.testing.threads import in_threads
from tests.support import databases, engine_by_keys
from tests.support.engines import Place, engine, new_session, stored
from tests.support.processes import TIMEOUT, Parent, Worker, workers
from tests.support.proxies import Passed, Proxy
from tests.support.redis_servers import RedisServer, settings_for, shared
from tests.support.sites import BETWEEN, DJANGOS, OURS, either_client, get, is_503

SHARED = ["file", "redis", "redis_hash", *databases.KINDS]
EACH = ["memory", *SHARED]

meanwhile: Callable[[HttpRequest], object] = lambda request: None  # noqa: E731
"""What the views below call while they have the session."""


@session_lock(wait=30)
def count(request: HttpRequest) -> HttpResponse:
    request.session["count"] = request.session.get("count", 0) + 1
    return HttpResponse("counted")


@session_lock(wait=30)
async def acount(request: HttpRequest) -> HttpResponse:
    await request.session.aset("count", await request.session.aget("count", 0) + 1)
    return HttpResponse("counted")


@session_lock(wait=0.05)
def brief(request: HttpRequest) -> HttpResponse:
    meanwhile(request)
    return HttpResponse("done")


@session_lock(wait=0.05)
async def abrief(request: HttpRequest) -> HttpResponse:
    meanwhile(request)
    return HttpResponse("done")


@session_lock(wait=0)
def not_atomic(request: HttpRequest) -> HttpResponse:
    meanwhile(request)
    return HttpResponse("done")


@session_lock(wait=0)
def nested(request: HttpRequest) -> HttpResponse:
    answer: HttpResponse = brief(request)
    meanwhile(request)
    return answer


@session_lock(wait=0)
async def anested(request: HttpRequest) -> HttpResponse:
    answer: HttpResponse = await abrief(request)
    meanwhile(request)
    return answer


@session_lock()
def fails(request: HttpRequest) -> HttpResponse:
    request.session["paid"] = True
    return HttpResponse(status=502)


@session_lock()
def raises(request: HttpRequest) -> HttpResponse:
    request.session["paid"] = True
    meanwhile(request)
    raise ZeroDivisionError


@session_lock()
def in_place(request: HttpRequest) -> HttpResponse:
    request.session["cart"]["apple"] = 1
    return HttpResponse("done")


@session_lock()
async def ain_place(request: HttpRequest) -> HttpResponse:
    cart: Any = await request.session.aget("cart")
    cart["apple"] = 1
    return HttpResponse("done")


def in_place_without(request: HttpRequest) -> HttpResponse:
    request.session["cart"]["apple"] = 1
    return HttpResponse("done")


@method_decorator(session_lock(wait=0.05), name="dispatch")
class Page(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        meanwhile(request)
        return HttpResponse("done")


def unchanged(view: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return view(*args, **kwargs)

    return wrapper


@method_decorator([session_lock(wait=0.05), unchanged], name="dispatch")
class AsyncPage(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        meanwhile(request)
        return HttpResponse("done")


class LockedMethod(View):
    @method_decorator(session_lock(wait=0))
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("done")


urlpatterns = [
    path("count/", count),
    path("acount/", acount),
    path("brief/", brief),
    path("abrief/", abrief),
    path("nested/", nested),
    path("anested/", anested),
    path("fails/", fails),
    path("raises/", raises),
    path("in_place/", in_place),
    path("ain_place/", ain_place),
    path("in_place_without/", in_place_without),
    path("page/", Page.as_view()),
    path("async_page/", AsyncPage.as_view()),
    path("not_atomic/", not_atomic),
    path("locked_method/", LockedMethod.as_view()),
]


@pytest.fixture(autouse=True)
def _site() -> Iterator[None]:
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[OURS, BETWEEN]):
        yield


@pytest.fixture(params=EACH)
def each_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[SessionStore]]:
    with engine(request.param, tmp_path) as store_class:
        yield store_class


@pytest.fixture(params=SHARED)
def shared_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[SessionStore]]:
    with engine(request.param, tmp_path) as store_class:
        yield store_class


@pytest.fixture
def store_class(tmp_path: Path) -> Iterator[type[SessionStore]]:
    with engine("memory", tmp_path) as store_class:
        yield store_class


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[HttpRequest], object]], None]:
    """Let the views do this while they have the session."""
    return lambda what: monkeypatch.setattr(f"{__name__}.meanwhile", what)


def visitor(key: str | None, client_class: Any = Client, **options: Any) -> Any:
    client = client_class(**options)
    client.cookies[settings.SESSION_COOKIE_NAME] = key
    return client


def is_free(store_class: type[SessionStore], key: str | None) -> bool:
    """Whether another request gets the session at once."""
    storage, session_id = store_class.get_storage(), str(store_class(key).session_id)
    free = storage.lock(session_id, "of a test", 60)
    storage.unlock(session_id, "of a test")
    return free


@contextmanager
def on_redis(url: str, module: Any = redis) -> Iterator[type[SessionStore]]:
    with override_settings(**settings_for(module.__name__, url)):
        yield module.SessionStore


@contextmanager
def on_database(kind: str, **values: Any) -> Iterator[tuple[type[SessionStore], str]]:
    """Yield the database engine, and its database."""
    with databases.database(kind, **values) as alias, override_settings(**databases.options_for(alias)):
        yield database.SessionStore, alias


# One after the other.


def visit(key: str, times: int) -> None:
    for _ in range(times):
        assert visitor(key).get("/count/").status_code == 200


async def avisit(key: str, times: int) -> None:
    for _ in range(times):
        assert (await visitor(key, AsyncClient).get("/acount/")).status_code == 200


def test_threads_see_what_the_one_before_has_left(each_store: type[SessionStore]) -> None:
    key = new_session(each_store, {"count": 0})
    in_threads(3, lambda number: visit(key, 4))
    assert stored(each_store, key) == {"count": 12}


def test_tasks_see_what_the_one_before_has_left(each_store: type[SessionStore]) -> None:
    async def all_at_once(key: str) -> None:
        await asyncio.gather(*(avisit(key, 4) for _ in range(3)))

    key = new_session(each_store, {"count": 0})
    asyncio.run(all_at_once(key))
    assert stored(each_store, key) == {"count": 12}


def visit_in_process(parent: Parent, number: int, place: Place, key: str) -> None:
    with place.opened(), override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[OURS, BETWEEN]):
        parent.meet()
        if number % 2:
            asyncio.run(avisit(key, 6))
        else:
            visit(key, 6)
        parent.say()


@pytest.mark.once
def test_processes_see_what_the_one_before_has_left(shared_store: type[SessionStore], tmp_path: Path) -> None:
    key = new_session(shared_store, {"count": 0})
    with workers(tmp_path, 2, visit_in_process, Place.here(), key) as processes:
        for process in processes:
            process.hear()
        for process in processes:
            process.say()
        for process in processes:
            process.hear()
    assert stored(shared_store, key) == {"count": 12}


@either_client
def test_who_waits_in_vain_gets_409(each_store: type[SessionStore], client_class: Any) -> None:
    key = new_session(each_store, {})
    storage, session_id = each_store.get_storage(), str(each_store(key).session_id)
    assert storage.lock(session_id, "somebody else", 60)
    url = "/brief/" if client_class is Client else "/abrief/"
    assert get(visitor(key, client_class), url).status_code == 409
    assert get(visitor(new_session(each_store, {}), client_class), url).status_code == 200, "another session"
    storage.unlock(session_id, "somebody else")
    assert get(visitor(key, client_class), url).status_code == 200
    assert is_free(each_store, key)


LEASE = 0.8


def hold(parent: Parent, place: Place, key: str) -> None:
    locking.LEASE = LEASE  # type: ignore[misc]
    with place.opened() as store_class, alone(store_class(key), 0):
        parent.say()
        parent.hear()


@pytest.mark.once
def test_a_holder_keeps_the_session_as_long_as_it_lives(shared_store: type[SessionStore], tmp_path: Path) -> None:
    key = new_session(shared_store, {})
    with Worker(tmp_path, hold, Place.here(), key) as process:
        process.hear()
        with pytest.raises(Held), alone(shared_store(key), 1.5 * LEASE):
            pass
        process.kill()
    with alone(shared_store(key), TIMEOUT):
        pass


@either_client
@pytest.mark.parametrize("url", ["/page/", "/async_page/"])
def test_a_class_based_view_has_its_session_alone(
    store_class: type[SessionStore], client_class: Any, url: str, during: Any
) -> None:
    key = new_session(store_class, {})
    free: list[bool] = []
    during(lambda request: free.append(is_free(store_class, key)))
    response = get(visitor(key, client_class), url)
    assert (response.status_code, free) == (200, [False])
    assert is_free(store_class, key)
    assert store_class.get_storage().lock(str(store_class(key).session_id), "somebody else", 60)
    assert get(visitor(key, client_class), url).status_code == 409


@either_client
def test_a_view_that_calls_another_one_keeps_the_session(
    store_class: type[SessionStore], client_class: Any, during: Any
) -> None:
    key = new_session(store_class, {})
    free: list[bool] = []
    during(lambda request: free.append(is_free(store_class, key)))
    url = "/nested/" if client_class is Client else "/anested/"
    assert get(visitor(key, client_class), url).status_code == 200
    assert free == [False, False], "in the view within, and after it"


def test_a_request_without_a_session_does_not_wait(store_class: type[SessionStore]) -> None:
    assert Client().get("/brief/").status_code == 200
    assert Client().get("/count/").status_code == 200


def test_a_storage_without_locks_is_named() -> None:
    store_class = engine_by_keys.SessionStore
    key = new_session(store_class, {"x": 1})
    with pytest.raises(NotImplementedError, match=r"lock\(\) and unlock\(\), and ByKeys"), alone(store_class(key), 0):
        pass


# What is saved.


def test_a_view_that_fails_saves_nothing(store_class: type[SessionStore]) -> None:
    key = new_session(store_class, {"cart": {}})
    client = visitor(key, raise_request_exception=False)
    for url, status in (("/fails/", 502), ("/raises/", 500)):
        assert client.get(url).status_code == status
        assert stored(store_class, key) == {"cart": {}}
        assert is_free(store_class, key)


@pytest.mark.parametrize("middleware", [OURS, DJANGOS])
def test_a_change_in_place_renews_the_cookie_as_without_the_lock(
    store_class: type[SessionStore], middleware: str
) -> None:
    with override_settings(MIDDLEWARE=[middleware]):
        plain = visitor(new_session(store_class, {"cart": {}})).get("/in_place_without/")
        for client_class, url in ((Client, "/in_place/"), (AsyncClient, "/ain_place/")):
            key = new_session(store_class, {"cart": {}})
            locked = get(visitor(key, client_class), url)
            assert list(locked.cookies) == list(plain.cookies) != []
            assert stored(store_class, key) == {"cart": {"apple": 1}}


@either_client
def test_what_was_changed_before_the_lock_is_not_lost(store_class: type[SessionStore], client_class: Any) -> None:
    async def ause(store: SessionStore) -> None:
        async with aalone(store, 0):
            assert await store.aget("message") == "of a middleware"

    key = new_session(store_class, {"cart": {}})
    store = store_class(key)
    store["message"] = "of a middleware"
    if client_class is Client:
        with alone(store, 0):
            assert store["message"] == "of a middleware"
    else:
        asyncio.run(ause(store))
    assert stored(store_class, key) == {"cart": {}, "message": "of a middleware"}


def test_what_was_saved_in_a_transaction_that_was_rolled_back_is_not_lost() -> None:
    with on_database("sqlite") as (store_class, alias):
        key = new_session(store_class, {"cart": {}})
        store = store_class(key)
        with transaction.atomic(using=alias):
            store["message"] = "of a middleware"
            store.save()
            transaction.set_rollback(True, using=alias)
        assert store.undone
        with alone(store, 0):
            assert store["message"] == "of a middleware"
        assert stored(store_class, key) == {"cart": {}, "message": "of a middleware"}


@either_client
def test_a_session_that_is_ended_meanwhile_interrupts_the_request(
    store_class: type[SessionStore], client_class: Any, during: Any
) -> None:
    def end(request: HttpRequest) -> None:
        request.session["x"] = 1
        store_class().delete(request.session.session_key)

    during(end)
    client = visitor(new_session(store_class, {}), client_class)
    assert get(client, "/brief/" if client_class is Client else "/abrief/").status_code == 400


# Outages.


@either_client
def test_an_outage_at_the_lock_is_answered_by_503(client_class: Any) -> None:
    with RedisServer() as server, on_redis(server.url()) as store_class, override_settings(MIDDLEWARE=[OURS]):
        key = new_session(store_class, {})
        server.kill()
        client = visitor(key, client_class, raise_request_exception=False)
        assert is_503(get(client, "/brief/" if client_class is Client else "/abrief/"))


@either_client
def test_an_outage_at_the_unlock_leaves_the_answer_of_the_view(
    client_class: Any, during: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer() as server, on_redis(server.url()) as store_class:
        during(lambda request: server.kill())
        client = visitor(new_session(store_class, {}), client_class)
        assert get(client, "/brief/" if client_class is Client else "/abrief/").content == b"done"
    (line,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert line.getMessage().startswith("session_lock could not free the lock of a session, which is free in 15 s: ")


def test_an_outage_at_the_unlock_leaves_the_exception_of_the_view(during: Any) -> None:
    with RedisServer() as server, on_redis(server.url()) as store_class:
        during(lambda request: server.kill())
        with pytest.raises(ZeroDivisionError):
            visitor(new_session(store_class, {})).get("/raises/")


# Renewing, and letting go.


def test_a_renewal_on_its_way_does_not_take_a_lock_that_was_freed(
    store_class: type[SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = store_class.get_storage()
    lock, unlock = storage.lock, storage.unlock
    renewing, freed, renewed = threading.Event(), threading.Event(), threading.Event()

    def slow_lock(session_id: str, token: str, seconds: float) -> bool:
        if threading.current_thread().name != "gsession_django session_lock":
            return lock(session_id, token, 60)
        renewing.set()
        freed.wait(0.2)
        taken = lock(session_id, token, 60)
        renewed.set()
        return taken

    def noted_unlock(session_id: str, token: str) -> None:
        unlock(session_id, token)
        freed.set()

    monkeypatch.setattr(locking, "LEASE", 0.03)
    key = new_session(store_class, {})
    with monkeypatch.context() as patches:
        patches.setattr(storage, "lock", slow_lock)
        patches.setattr(storage, "unlock", noted_unlock)
        with alone(store_class(key), 0):
            assert renewing.wait(TIMEOUT)
        assert renewed.wait(TIMEOUT)
    assert is_free(store_class, key)


def test_a_request_that_is_cancelled_while_it_takes_the_lock_lets_go() -> None:
    asked, passed = threading.Event(), threading.Event()

    def hold_back(number: int, data: bytes) -> Passed:
        if b"lock/" in data and not asked.is_set():
            asked.set()
            assert passed.wait(TIMEOUT)
        return data, False

    async def visit(store: SessionStore) -> None:
        async with aalone(store, 0):
            raise AssertionError("cancelled before")

    async def leave(store_class: type[SessionStore], key: str) -> None:
        task = asyncio.create_task(visit(store_class(key)))
        assert await asyncio.to_thread(asked.wait, TIMEOUT)
        for _ in range(2):
            task.cancel()
            await asyncio.wait({task}, timeout=0.1)
            assert not task.done(), "the command has not reached the server"
        passed.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with aalone(store_class(key), 0):
            pass

    with Proxy(shared().port) as proxy, on_redis(proxy.url()) as store:
        key = new_session(store, {"x": 1})
        proxy.on_request = hold_back
        asyncio.run(leave(store, key))


@pytest.mark.parametrize("module", [redis, redis_hash])
def test_an_async_lock_makes_no_blocking_call(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a blocking call")

    async def visit(store: SessionStore) -> None:
        await store.aget("cart")
        async with aalone(store, 0):
            await store.aset("x", 1)

    with on_redis(shared().url(), module) as store_class:
        key = new_session(store_class, {"cart": {}})
        storage: Any = store_class.get_storage()
        with monkeypatch.context() as patches:
            for name in ("get_session", "get", "get_map", "get_size", "exists", "apply", "lock", "unlock"):
                patches.setattr(storage, name, refuse)
            asyncio.run(visit(store_class(key)))


# Transactions of the site.


@contextmanager
def atomic_requests(name: str, folder: Path) -> Iterator[tuple[type[SessionStore], str]]:
    """Yield an engine, and a database with ``ATOMIC_REQUESTS``: that of the sessions, if they are in one."""
    if name in databases.KINDS:
        with on_database(name, ATOMIC_REQUESTS=True) as found:
            yield found
    else:
        with databases.database("sqlite", ATOMIC_REQUESTS=True) as alias, engine(name, folder) as store_class:
            yield store_class, alias


@pytest.mark.parametrize("name", ["memory", "redis", *databases.KINDS])
@pytest.mark.parametrize("url", ["/brief/", "/page/"])
def test_the_lock_is_freed_after_the_commit(name: str, url: str, tmp_path: Path, during: Any) -> None:
    with atomic_requests(name, tmp_path) as (store_class, alias):
        key = new_session(store_class, {})
        seen: list[Any] = []

        def pay(request: HttpRequest) -> None:
            assert connections[alias].in_atomic_block
            request.session["paid"] = True
            transaction.on_commit(lambda: seen.append(is_free(store_class, key)), using=alias)

        during(pay)
        assert visitor(key).get(url).status_code == 200
        assert seen == [False]
        assert is_free(store_class, key)
        assert stored(store_class, key) == {"paid": True}


def test_a_view_that_raises_is_rolled_back(tmp_path: Path, during: Any) -> None:
    with atomic_requests("sqlite", tmp_path) as (store_class, _):
        key = new_session(store_class, {})
        during(lambda request: request.session.cycle_key())
        assert visitor(key, raise_request_exception=False).get("/raises/").status_code == 500
        assert stored(store_class, key) == {}
        assert is_free(store_class, key)


def test_a_view_may_do_without_atomic_requests(tmp_path: Path, during: Any) -> None:
    with atomic_requests("memory", tmp_path) as (store_class, alias):
        transaction.non_atomic_requests(using=alias)(not_atomic)
        atomic: list[bool] = []
        during(lambda request: atomic.append(connections[alias].in_atomic_block))
        assert visitor(new_session(store_class, {})).get("/not_atomic/").status_code == 200
        assert atomic == [False]


@pytest.mark.parametrize("url", ["/abrief/", "/async_page/"])
def test_an_async_view_cannot_use_atomic_requests(url: str, tmp_path: Path) -> None:
    """It is Django's rule."""
    with atomic_requests("memory", tmp_path) as (store_class, _):
        client = visitor(new_session(store_class, {}))
        with pytest.raises(RuntimeError, match="ATOMIC_REQUESTS with async views"):
            client.get(url)


@pytest.mark.parametrize("name", ["memory", "sqlite"])
def test_a_transaction_around_the_lock_is_refused(name: str, tmp_path: Path) -> None:
    with atomic_requests(name, tmp_path) as (store_class, alias):
        key = new_session(store_class, {})
        request: Any = RequestFactory().get("/")
        request.session = store_class(key)
        with pytest.raises(RuntimeError, match=r"above transaction\.atomic"), transaction.atomic(using=alias):
            brief(request)
        assert is_free(store_class, key)
        with pytest.raises(RuntimeError, match=r"dispatch\(\)"):
            visitor(key).get("/locked_method/")
        assert is_free(store_class, key)


def test_a_database_without_autocommit_is_refused() -> None:
    with on_database("sqlite") as (store_class, alias):
        key = new_session(store_class, {})
        transaction.set_autocommit(False, using=alias)
        with pytest.raises(RuntimeError, match="part of a transaction"), alone(store_class(key), 0):
            pass
        transaction.rollback(using=alias)
        transaction.set_autocommit(True, using=alias)
        assert is_free(store_class, key)


@pytest.mark.parametrize("kind", databases.KINDS)
def test_in_a_testcase_of_djangos_the_lock_is_held(kind: str, tmp_path: Path, during: Any) -> None:
    """And nothing renews it: another connection would wait for the transaction of the TestCase."""
    with atomic_requests(kind, tmp_path) as (store_class, alias):

        class Case(TestCase):
            databases = {alias}

            def test(self) -> None:
                key = new_session(store_class, {})
                free: list[bool] = []
                threads = threading.active_count()

                def look(request: HttpRequest) -> None:
                    free.append(is_free(store_class, key))
                    self.assertEqual(threading.active_count(), threads)

                during(look)
                self.assertEqual(visitor(key).get("/brief/").status_code, 200)
                self.assertEqual(free, [False])

        result = unittest.TestResult()
        unittest.TestSuite([Case("test")]).run(result)
        assert (result.testsRun, result.errors, result.failures) == (1, [], [])
