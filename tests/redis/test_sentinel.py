"""The Redis engines behind three real sentinels, with a master and two replicas, and in failovers."""

import asyncio
import atexit
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from types import ModuleType
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.contrib.auth.models import AbstractBaseUser, User
from django.contrib.sessions.backends.base import UpdateError
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, SimpleTestCase, override_settings
from django.urls import path

from gsession_django import SessionStore, StorageUnavailable
from gsession_django.backends import redis as redis_engine
from gsession_django.backends import redis_hash
from gsession_django.checks import check_deployment, check_settings
from gsession_django.redis.link import AsyncLink, Link
from gsession_django.redis.steps import take
from gsession_django.redis.storage import BaseRedisStorage
from gsession_django.testing import StorageContract
from gsession_django.users import end_sessions, sessions_of
from tests.support.engines import new_session as visitor
from tests.support.processes import promised
from tests.support.redis_sentinels import SERVICE, Sentinels, role, wait_until

pytestmark = pytest.mark.once

MODULES = {"redis": redis_engine, "redis_hash": redis_hash}
both_engines = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
SHORT = {"SOCKET_TIMEOUT": 1, "SOCKET_CONNECT_TIMEOUT": 1}
# The most seconds of a load or a save on a busy machine. Each question may wait for one second.
BOUND = 20


@functools.cache
def shared() -> Sentinels:
    """Return the sentinels of this process, whose servers nobody stops."""
    found = Sentinels()
    atexit.register(found.__exit__, None, None, None)
    return found


def settings_for(
    module: ModuleType, entry: dict[str, Any], factory: str | None = None, **options: Any
) -> dict[str, Any]:
    values = {
        "SESSION_ENGINE": module.__name__,
        "SESSION_CACHE_ALIAS": "sessions",
        "CACHES": {
            "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
            "sessions": {"BACKEND": "django_redis.cache.RedisCache", **entry},
        },
        "GSESSION": {"ENGINES": {each.__name__: options for each in MODULES.values()}},
    }
    return values if factory is None else {**values, "DJANGO_REDIS_CONNECTION_FACTORY": factory}


def stored(store_class: type[SessionStore], key: str | None) -> dict[str, Any]:
    return dict(store_class(key).items())


def another(module: ModuleType) -> type[SessionStore]:
    """Return the same engine with its own connections, as in another process."""
    made: type[SessionStore] = type("SessionStore", (module.SessionStore,), {"__module__": module.__name__})
    return made


def connections_of(store_class: type[SessionStore]) -> Any:
    storage = store_class.get_storage()
    assert isinstance(storage, BaseRedisStorage)
    try:
        return storage.client._of_loops[asyncio.get_running_loop()][0]
    except RuntimeError:
        return storage.client._way


class SentinelTests(StorageContract, SimpleTestCase):
    store_class = redis_hash.SessionStore

    def setUp(self) -> None:
        self.enterContext(override_settings(**settings_for(redis_hash, shared().entry())))
        super().setUp()


@both_engines
def test_the_sessions_of_a_user_are_listed_and_ended(module: ModuleType) -> None:
    with override_settings(**settings_for(module, shared().entry(), wait_replicas=2, wait_timeout=1)):
        store = module.SessionStore()
        store[SESSION_KEY] = "7"
        store.save()
        storage = module.SessionStore.get_storage()
        assert storage.lock(store.session_id, "token", 60)
        assert [each.session_id for each in sessions_of("7")] == [store.session_id]
        assert end_sessions("7") == 1
        with pytest.raises(UpdateError):
            store.save()
        storage.unlock(store.session_id, "token")


# The settings.


def _by_setting(sentinels: Sentinels) -> dict[str, Any]:
    entry = sentinels.entry(CONNECTION_POOL_CLASS="redis.sentinel.SentinelConnectionPool", SENTINEL_KWARGS={})
    del entry["OPTIONS"]["CONNECTION_FACTORY"]
    return {"entry": entry, "factory": "django_redis.pool.SentinelConnectionFactory"}


def _by_entry(sentinels: Sentinels) -> dict[str, Any]:
    return {"entry": sentinels.entry(SENTINEL_KWARGS={"client_name": "gsession"})}


def _by_two_urls(sentinels: Sentinels) -> dict[str, Any]:
    entry = sentinels.entry()
    del entry["OPTIONS"]["CLIENT_CLASS"]
    return {"entry": {**entry, "LOCATION": [f"redis://{SERVICE}/0?is_master={number}" for number in (1, 0)]}}


@pytest.mark.parametrize("way", [_by_setting, _by_entry, _by_two_urls])
@both_engines
def test_every_way_to_configure_it_finds_the_master(module: ModuleType, way: Callable[..., dict[str, Any]]) -> None:
    async def use(key: str) -> list[Any]:
        store = store_class(key)
        await store.aset("name", "bob")
        await store.asave()
        (link,) = connections_of(store_class)._idle
        connection = link.connection
        assert isinstance(link, AsyncLink)
        return [connection.host, connection.port]

    with override_settings(**settings_for(module, **way(shared()))):
        assert check_settings() == []
        assert {message.id for message in check_deployment()} == {"gsession_django.W006"}  # it has been asked
        store_class = module.SessionStore
        key = visitor(store_class, {"name": "ada"})
        (link,) = connections_of(store_class)._idle
        connection = link.connection
        assert isinstance(link, Link)
        master = ["127.0.0.1", shared().servers[0].port]
        assert [connection.host, connection.port] == asyncio.run(use(key)) == master
        assert stored(store_class, key) == {"name": "bob"}


@both_engines
def test_loads_go_to_the_master(module: ModuleType) -> None:
    def loads() -> list[int]:
        found = []
        for server in shared().servers:
            with server.client() as client:
                stats = client.info("commandstats")
            found.append(sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("get", "hgetall")))
        return found

    with override_settings(**settings_for(module, shared().entry())):
        store_class = module.SessionStore
        key = visitor(store_class, {"name": "ada"})
        before = loads()
        for _ in range(5):
            assert store_class(key)["name"] == "ada"
            assert asyncio.run(store_class(key).aget("name")) == "ada"
        assert [after - earlier for after, earlier in zip(loads(), before, strict=True)] == [10, 0, 0]


def assert_e012(expected: str) -> None:
    messages = check_settings()  # one for each engine
    assert {message.id for message in messages} == {"gsession_django.E012"}
    assert all(expected in message.msg for message in messages)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"CONNECTION_FACTORY": "django_redis.pool.ConnectionFactory"}, "'CONNECTION_FACTORY'"),
        (
            {
                "CONNECTION_FACTORY": "django_redis.pool.ConnectionFactory",
                "CLIENT_CLASS": "django_redis.client.DefaultClient",
                "CONNECTION_POOL_CLASS": "redis.sentinel.SentinelConnectionPool",
            },
            "'CONNECTION_FACTORY'",
        ),
        ({"SENTINELS": []}, "SENTINELS"),
    ],
    ids=["no factory", "a pool alone", "no sentinels"],
)
def test_half_a_configuration_is_reported(change: dict[str, Any], expected: str) -> None:
    with override_settings(**settings_for(redis_engine, shared().entry(**change))):
        assert_e012(expected)


def test_a_location_that_asks_for_a_replica_is_reported() -> None:
    entry = {**shared().entry(), "LOCATION": f"redis://{SERVICE}/0?is_master=0"}
    with override_settings(**settings_for(redis_engine, entry)):
        assert_e012("is_master=0")


def test_tls_by_the_scheme_is_reported() -> None:
    """redis-py's pool raises a TypeError with it as it connects. With 'ssl' it uses TLS."""
    with override_settings(**settings_for(redis_engine, {**shared().entry(), "LOCATION": f"rediss://{SERVICE}/0"})):
        assert_e012("'ssl': True")
    with override_settings(**settings_for(redis_engine, shared().entry(CONNECTION_POOL_KWARGS={"ssl": True}))):
        assert check_settings() == []


def test_masters_of_one_name_under_other_sentinels_share_nothing() -> None:
    entry = shared().entry()
    values = settings_for(redis_engine, entry)
    cache = {"BACKEND": "django_redis.cache.RedisCache", **shared().entry(SENTINELS=[("127.0.0.1", 1)])}
    with override_settings(**{**values, "CACHES": {**values["CACHES"], "pages": cache}}):
        assert check_settings() == []
    cache = {"BACKEND": "django_redis.cache.RedisCache", **entry}
    with override_settings(**{**values, "CACHES": {**values["CACHES"], "pages": cache}}):
        assert {message.id for message in check_settings()} == {"gsession_django.W003"}


# Sentinels that do not answer.


@contextmanager
def site(module: ModuleType, sentinels: Sentinels, **options: Any) -> Iterator[type[SessionStore]]:
    with override_settings(**settings_for(module, sentinels.entry(**SHORT), **options)):
        yield module.SessionStore


def known_sentinels(store_class: type[SessionStore]) -> set[int]:
    manager = connections_of(store_class)._pool.sentinel_manager
    return {sentinel.connection_pool.connection_kwargs["port"] for sentinel in manager.sentinels}


def test_sentinels_that_are_gone_cost_little_and_are_not_forgotten() -> None:
    """However many look for the master at once, none drops a sentinel from the list."""

    def all_at_once(store_class: type[SessionStore], key: str) -> None:
        gate = threading.Barrier(20)

        def one() -> Any:
            gate.wait()
            return store_class(key).get("name")

        assert {each.result(BOUND) for each in [promised(one) for _ in range(20)]} == {"ada"}

    async def all_at_once_async(store_class: type[SessionStore], key: str) -> set[int]:
        found = await asyncio.gather(*(store_class(key).aget("name") for _ in range(20)))
        assert set(found) == {"ada"}
        return known_sentinels(store_class)

    def outage(store_class: type[SessionStore], key: str) -> None:
        async def load() -> None:
            with pytest.raises(StorageUnavailable):
                await store_class(key).aget("name")

        with pytest.raises(StorageUnavailable):
            store_class(key).get("name")
        asyncio.run(load())

    with Sentinels(replicas=0) as sentinels, site(redis_engine, sentinels) as store_class:
        everyone = {sentinel.port for sentinel in sentinels.sentinels}
        key = visitor(store_class, {"name": "ada"})
        for gone in sentinels.sentinels[:2]:
            gone.kill()
            start = time.monotonic()
            fresh = another(redis_engine)
            all_at_once(fresh, key)
            assert known_sentinels(fresh) == everyone
            assert asyncio.run(all_at_once_async(fresh, key)) == everyone
            assert time.monotonic() - start < BOUND
        sentinels.sentinels[2].pause()
        start = time.monotonic()
        assert store_class(key)["name"] == "ada", "a connection that is there needs no sentinel"
        outage(another(redis_engine), key)
        assert time.monotonic() - start < BOUND
        sentinels.sentinels[2].kill()
        outage(another(redis_engine), key)
        assert store_class(key)["name"] == "ada"


# Failovers under load.


@dataclass
class Diary:
    """The changes and findings of a visitor.

    Attributes:
        key: the session key.
        tried: the highest number that may be stored.
        sure: the highest that was acknowledged, by a replica too.
        signed_in: keys of new sessions, acknowledged in the same way.
        outages, slowest: how often the storage did not answer, and the seconds of the longest turn.
        wrong: findings that must never happen.
    """

    store_class: type[SessionStore]
    key: str
    tried: int = 0
    sure: int = 0
    signed_in: list[str] = field(default_factory=list)
    outages: int = 0
    slowest: float = 0.0
    wrong: list[Any] = field(default_factory=list)
    warned: bool = False

    def saved(self) -> None:
        if not self.warned:
            self.sure = self.tried

    def found(self, number: int | None) -> None:
        if number is None or not self.sure <= number <= self.tried:
            self.wrong.append((self.sure, number, self.tried))

    @contextmanager
    def turn(self) -> Iterator[None]:
        self.warned, start = False, time.monotonic()
        try:
            yield
        except StorageUnavailable:
            self.outages += 1
        except Exception as error:
            self.wrong.append(error)
        self.slowest = max(self.slowest, time.monotonic() - start)


_diary: ContextVar[Diary] = ContextVar("_diary")


class _Warnings(logging.Handler):
    """Notes changes that too few replicas have acknowledged in their visitor's diary."""

    def emit(self, record: logging.LogRecord) -> None:
        if "wait_replicas" in record.getMessage() and (diary := _diary.get(None)):
            diary.warned = True


def come_and_go(diary: Diary, end: threading.Event) -> None:
    _diary.set(diary)
    while not end.wait(0.005):
        with diary.turn():
            store = diary.store_class(diary.key)
            diary.found(store.get("number"))
            diary.tried += 1
            store["number"] = diary.tried
            store.save()
            diary.saved()
        if diary.tried % 10 == 0:
            with diary.turn():
                new = visitor(diary.store_class, {"number": 0})
                if not diary.warned:
                    diary.signed_in.append(new)


async def acome_and_go(diary: Diary, end: threading.Event) -> None:
    _diary.set(diary)
    while not end.is_set():
        with diary.turn():
            store = diary.store_class(diary.key)
            diary.found(await store.aget("number"))
            diary.tried += 1
            await store.aset("number", diary.tried)
            await store.asave()
            diary.saved()
        if diary.tried % 10 == 0:
            with diary.turn():
                store = diary.store_class()
                await store.aset("number", 0)
                await store.asave()
                if not diary.warned and store.session_key is not None:
                    diary.signed_in.append(store.session_key)
        await asyncio.sleep(0.005)


async def all_come_and_go(diaries: list[Diary], end: threading.Event) -> None:
    await asyncio.gather(*(acome_and_go(diary, end) for diary in diaries))


class Load:
    """Visitors of both engines, in threads and tasks, who come again and again until the end."""

    def __init__(self, stack: ExitStack) -> None:
        handler = _Warnings()
        logging.getLogger("gsession_django").addHandler(handler)
        stack.callback(logging.getLogger("gsession_django").removeHandler, handler)
        self.diaries = [
            Diary(module.SessionStore, visitor(module.SessionStore, {"number": 0}))
            for module in MODULES.values()
            for _ in range(6)
        ]
        self._end = threading.Event()
        stack.callback(self._end.set)
        in_tasks = [diary for number, diary in enumerate(self.diaries) if number % 6 < 4]
        in_threads = [diary for diary in self.diaries if diary not in in_tasks]
        self._running: list[Future[None]] = [promised(come_and_go, diary, self._end) for diary in in_threads]
        self._running.append(promised(lambda: asyncio.run(all_come_and_go(in_tasks, self._end))))

    def go_on(self) -> None:
        """Wait until each visitor has some more acknowledged changes."""
        marks = [diary.sure + 5 for diary in self.diaries]
        wait_until(
            lambda: all(diary.sure >= mark or diary.wrong for diary, mark in zip(self.diaries, marks, strict=True)),
            "each visitor could save again",
        )

    def stop(self) -> None:
        """End it, and check the diaries and the stored sessions."""
        self._end.set()
        for each in self._running:
            each.result(60)
        assert [diary.wrong for diary in self.diaries if diary.wrong] == []
        for diary in self.diaries:
            diary.found(stored(diary.store_class, diary.key).get("number"))
            assert diary.wrong == []
            assert all(stored(diary.store_class, key) == {"number": 0} for key in diary.signed_in)
        assert max(diary.slowest for diary in self.diaries) < BOUND
        assert sum(diary.outages for diary in self.diaries) > 0
        assert sum(len(diary.signed_in) for diary in self.diaries) > 0


# A signed-in user, without a database.

ADA = User(pk=7, password="not a hash")


class Accounts:
    """An authentication backend with one user."""

    def get_user(self, pk: Any) -> AbstractBaseUser | None:
        return ADA if pk == ADA.pk else None

    async def aget_user(self, pk: Any) -> AbstractBaseUser | None:
        return self.get_user(pk)


def who(request: HttpRequest) -> HttpResponse:
    request.session["seen"] = request.session.get("seen", 0) + 1
    return HttpResponse(str(request.user.pk))


async def awho(request: HttpRequest) -> HttpResponse:
    await request.session.aset("seen", await request.session.aget("seen", 0) + 1)
    return HttpResponse(str((await request.auser()).pk))


urlpatterns = [path("who/", who), path("awho/", awho)]

SITE = {
    "ROOT_URLCONF": __name__,
    "AUTHENTICATION_BACKENDS": [f"{__name__}.Accounts"],
    "MIDDLEWARE": [
        "gsession_django.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ],
}


class Browser:
    """A signed-in user who asks for pages through Django's handler."""

    def __init__(self, module: ModuleType, client: Any) -> None:
        self._client = client
        data = {
            "_auth_user_id": str(ADA.pk),
            "_auth_user_backend": f"{__name__}.Accounts",
            "_auth_user_hash": ADA.get_session_auth_hash(),
        }
        client.cookies[settings.SESSION_COOKIE_NAME] = visitor(module.SessionStore, data)
        with override_settings(SESSION_ENGINE=module.__name__):
            self.statuses = [self.get("/who/")]  # the handler has read the engine's name

    def get(self, url: str) -> int:
        answer = self._client.get(url)
        response = asyncio.run(answer) if asyncio.iscoroutine(answer) else answer
        if response.status_code == 200:
            assert response.content == b"7", "signed in"
        else:
            assert response.status_code == 503
            assert response.cookies == SimpleCookie()
        return int(response.status_code)

    def look(self) -> None:
        self.statuses += [self.get("/who/"), self.get("/awho/")]


def all_look(browsers: list[Browser]) -> None:
    for each in [promised(browser.look) for browser in browsers]:
        each.result(60)


@contextmanager
def site_with_load() -> Iterator[tuple[Sentinels, list[Browser], Load]]:
    with Sentinels() as sentinels, ExitStack() as stack:
        values = settings_for(redis_engine, sentinels.entry(**SHORT), wait_replicas=1)
        stack.enter_context(override_settings(**values, **SITE))
        browsers = [
            Browser(module, client(raise_request_exception=False))
            for module in MODULES.values()
            for client in (Client, AsyncClient)
        ]
        load = Load(stack)
        load.go_on()
        yield sentinels, browsers, load
        load.go_on()
        all_look(browsers)
        for browser in browsers:
            assert browser.statuses == [200, 503, 503, 200, 200]
        load.stop()


def test_a_killed_master_signs_nobody_out_and_no_acknowledged_change_is_lost() -> None:
    with site_with_load() as (sentinels, browsers, _):
        master = sentinels.servers[0]
        with sentinels.patient():
            master.kill()
            all_look(browsers)
        sentinels.wait_for_another_than(master)


def test_a_master_that_stood_still_comes_back_as_a_replica() -> None:
    """Until the sentinels tell it, it takes itself for the master."""

    async def name_of(key: str) -> Any:
        return await idle(key).aget("name")

    with site_with_load() as (sentinels, browsers, load), asyncio.Runner() as runner:
        master = sentinels.servers[0]
        idle = another(redis_engine)
        ada = visitor(idle, {"name": "ada"})
        assert runner.run(name_of(ada)) == "ada"
        with sentinels.patient():
            master.pause()
            all_look(browsers)
        sentinels.wait_for_another_than(master)
        load.go_on()
        bob = visitor(redis_engine.SessionStore, {"name": "bob"})
        master.resume()
        assert role(master) == "master"
        assert idle(bob).get("name") == "bob", "nobody is signed out by the old master"
        assert runner.run(name_of(bob)) == "bob"
        load.go_on()
        wait_until(lambda: role(master) == "slave", "the old master is a replica")
        assert stored(idle, ada) == {"name": "ada"}


@both_engines
def test_a_command_that_a_demoted_server_refuses_goes_to_the_master(module: ModuleType) -> None:
    """Sentinel cuts the connections to a server that it demotes. Here one is left."""

    store_class = another(module)
    with override_settings(**settings_for(module, shared().entry(**SHORT))):
        replica = ("127.0.0.1", shared().servers[1].port)
        key = visitor(store_class, {"name": "ada"})

        def leave_one() -> None:
            connections = connections_of(store_class)
            connections._ask_at = time.monotonic() + BOUND
            (link,) = connections._idle
            link.connection.connect = lambda: link.connection.connect_to(replica)
            take(link.open())
            link.used = time.monotonic()
            del link.connection.connect
            connections._pool.proxy.master_address = replica

        async def leave_one_async() -> None:
            connections = connections_of(store_class)
            connections._ask_at = time.monotonic() + BOUND
            (link,) = connections._idle
            await link.connection.disconnect()
            await link.connection.connect_to(replica)
            connections._pool.master_address = replica

        async def use() -> None:
            store = store_class(key)
            await store.aset("name", "bob")
            await store.asave()
            await leave_one_async()
            await store.aset("name", "eve")
            await store.asave()
            await leave_one_async()
            store = store_class()
            await store.aset("name", "new")
            await store.asave()
            assert await store_class(store.session_key).aget("name") == "new"

        store = store_class(key)
        store["name"] = "bob"
        leave_one()
        store.save()
        assert stored(store_class, key) == {"name": "bob"}
        leave_one()
        assert stored(store_class, visitor(store_class, {"name": "new"})) == {"name": "new"}
        asyncio.run(use())
        assert stored(store_class, key) == {"name": "eve"}
