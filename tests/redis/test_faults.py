"""When Redis fails, a visitor gets a 503 from Django's full handler at worst, and is still signed in later."""

import asyncio
import logging
import random
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Any

import pytest
import redis
import uvloop
from django.conf import settings
from django.test import AsyncClient
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ResponseError
from redis.retry import Retry

from gsession_django.core.engine import engine_of
from gsession_django.redis.link import AsyncLink, Link
from gsession_django.redis.storage import BaseRedisStorage
from tests.support import sites
from tests.support.processes import TIMEOUT, promised
from tests.support.proxies import Passed, Proxy
from tests.support.redis_servers import LENT, RedisServer, shared
from tests.support.sites import (
    BETWEEN,
    DJANGOS,
    ENGINES,
    LOGIN_REQUIRED,
    MESSAGES,
    Visitor,
    each_engine,
    is_503,
    store_class,
)

pytestmark = pytest.mark.once

FULL = (LOGIN_REQUIRED, MESSAGES, BETWEEN)

either_mode = pytest.mark.parametrize("mode", ["sync", "async"])
# Both engines on kept connections, and one on connections that a pool lends.
engines_and_clients = pytest.mark.parametrize(
    ("engine", "options"),
    [(ENGINES[0], {}), (ENGINES[1], {}), (ENGINES[0], LENT)],
    ids=["redis", "redis_hash", "lent"],
)


@contextmanager
def site(mode: str, *args: Any, **kwargs: Any) -> Iterator[asyncio.Runner | None]:
    """Yield a runner that keeps the event loop and its connections between requests, or nothing for sync."""
    with sites.site(*args, **kwargs):
        if mode == "sync":
            yield None
        else:
            factory = uvloop.new_event_loop if mode == "uvloop" else None
            with asyncio.Runner(debug=False, loop_factory=factory) as runner:  # debugging costs most of the time
                yield runner


@pytest.fixture
def no_logs() -> Iterator[None]:
    """Silence the tracebacks of thousands of requests."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


# Operations of a request: who does what, and with which result.
SIGNED_IN, SOMEBODY, NOBODY = "ada 1 1", "nobody 1 1", "nobody 0 0"
KINDS = {
    "load and touch": ("read", SIGNED_IN, SIGNED_IN),
    "apply": ("modify", SIGNED_IN, "ada 2 2"),
    "move and apply": ("cycle", SIGNED_IN, "ada 2 2"),
    "sign in": ("sign_in", SOMEBODY, SIGNED_IN),
    "sign out": ("sign_out", SIGNED_IN, NOBODY),
    "create": ("modify", NOBODY, SOMEBODY),
    "create and apply": ("sign_in", NOBODY, "ada 0 0"),
}


@dataclass
class Deed:
    """One of the operations, and the visitor who asks for it."""

    visitor: Visitor
    what: str
    before: str
    after: str

    def attempt(self) -> bool:
        """Return whether it is done. If not, the answer is a 503 that keeps the cookie or sends a new key."""
        key = self.visitor.key
        response = self.visitor.does(self.what)
        if response.status_code == 200:
            assert response.content.decode() == self.after
            return True
        assert is_503(response)
        if self.visitor.key == key:
            assert response.cookies == SimpleCookie()
        else:
            assert self.what in ("cycle", "sign_in")
            assert list(response.cookies) == [settings.SESSION_COOKIE_NAME]
            assert self.visitor.key
        return False

    def is_undone(self) -> None:
        assert self.visitor.sees() == self.before

    def is_done(self) -> None:
        assert self.visitor.sees() == self.after


def deeds(runner: asyncio.Runner | None) -> list[Deed]:
    found = []
    for what, before, after in KINDS.values():
        visitor = Visitor(runner)
        for step in {SIGNED_IN: ("modify", "sign_in"), SOMEBODY: ("modify",), NOBODY: ()}[before]:
            visitor.does(step)
        found.append(Deed(visitor, what, before, after))
    return found


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        yield server


# The server stops.


@either_mode
@engines_and_clients
def test_a_server_may_be_killed_and_started_again(
    engine: str, options: Any, mode: str, server: RedisServer, monkeypatch: Any
) -> None:
    with site(mode, engine, server.url(), entry={"OPTIONS": options}, more=FULL) as runner:
        those = deeds(runner)
        server.kill()
        for deed in those:
            assert not deed.attempt()
        server.restart()
        for deed in those:
            deed.is_undone()
        for deed in those:
            with monkeypatch.context() as patch:
                patch.setattr(sites, "between", server.kill)
                assert deed.attempt() is (deed.what == "read")
            server.restart()
            deed.is_undone()
        for deed in those:
            assert deed.attempt()
            deed.is_done()


@either_mode
@engines_and_clients
def test_a_server_may_hang_and_go_on(
    engine: str, options: Any, mode: str, server: RedisServer, monkeypatch: Any
) -> None:
    """The server may carry out commands later on. Nobody knows then whether the session has the new key."""
    entry = {"OPTIONS": options}
    with site(mode, engine, server.url(), entry=entry, more=FULL) as runner:
        those = [deed for deed in deeds(runner) if deed.before != NOBODY]
    impatient = {"OPTIONS": {**options, "SOCKET_TIMEOUT": 0.1}}
    for stops_between in (False, True):
        with site(mode, engine, server.url(), entry=impatient, more=FULL) as runner:
            for deed in those:
                deed.visitor.runner = runner
                with monkeypatch.context() as patch:
                    if stops_between:
                        patch.setattr(sites, "between", server.pause)
                    else:
                        server.pause()
                    done = deed.attempt()
                    server.resume()
                assert not done or (stops_between and deed.what == "read")
        with site(mode, engine, server.url(), entry=entry, more=FULL) as runner:
            for deed in those:
                deed.visitor.runner = runner
                if stops_between:
                    lost = deed.what in ("cycle", "sign_in")
                    assert deed.visitor.sees() in (deed.before, NOBODY if lost else deed.after)
                else:
                    deed.is_undone()


@either_mode
def test_a_server_that_hangs_costs_a_request_two_seconds(mode: str, server: RedisServer) -> None:
    """Without a configured timeout; redis-py would wait for five seconds."""
    with site(mode, ENGINES[0], server.url(), more=FULL) as runner:
        visitor = Visitor(runner).signed_in()
        with redis.Redis(port=server.port, socket_timeout=4, retry=Retry(NoBackoff(), 0)) as client:
            client.ping()
            server.pause()
            waiting = promised(client.ping)
            response = visitor.does("modify")
            assert not waiting.done()
            server.resume()
            assert waiting.result(TIMEOUT)
        assert is_503(response)
        assert visitor.sees("modify") == "ada 2 2"


# The server is killed under load.


class Counters:
    """Visitors on one session, who count under their own names until the end.

    Attributes:
        last: the last answer to each.
        failed: how often each got a 503.
        wrong: answers that are neither 503 nor right.
        is_up: clear it before killing the server; visitors wait until it is set.
        end: set it to stop them.
    """

    def __init__(self, mode: str, key: str, count: int) -> None:
        self._mode, self._key = mode, key
        self._answered = threading.Condition()
        self.last, self.failed = [0] * count, [0] * count
        self.wrong: list[Any] = []
        self.is_up, self.end = threading.Event(), threading.Event()
        self.is_up.set()

    def run(self) -> None:
        if self._mode == "sync":
            for thread in [promised(self._run, number) for number in range(len(self.last))]:
                thread.result(TIMEOUT)
        else:
            asyncio.run(self._arun_all(), debug=False)

    def _run(self, number: int) -> None:
        visitor = Visitor(None, self._key)
        while not self.end.is_set():
            if not self._is_done(number, visitor.client.get(f"/count/{number}/")):
                self.is_up.wait(TIMEOUT)

    async def _arun_all(self) -> None:
        await asyncio.gather(*(self._arun(number) for number in range(len(self.last))))

    async def _arun(self, number: int) -> None:
        client = AsyncClient(raise_request_exception=False)
        client.cookies[settings.SESSION_COOKIE_NAME] = self._key
        while not self.end.is_set():
            if not self._is_done(number, await client.get(f"/acount/{number}/")):
                await asyncio.to_thread(self.is_up.wait, TIMEOUT)

    def _is_done(self, number: int, response: Any) -> bool:
        done: bool = response.status_code == 200
        with self._answered:
            if done:
                name, found = response.content.decode().split()
                fine = name == "ada" and self.may_be(number, int(found) - 1)
                self.last[number] = int(found)
            else:
                fine = is_503(response) and response.cookies == SimpleCookie()
                self.failed[number] += 1
            if not fine:
                self.wrong.append((number, response.status_code, response.content, response.cookies))
            self._answered.notify_all()
        return done

    def may_be(self, number: int, found: int) -> bool:
        """Return whether the acknowledged changes are there. Failed ones may be there too."""
        return self.last[number] <= found <= self.last[number] + self.failed[number]

    def wait_for(self, numbers: list[int], of: Callable[[list[int]], int], least: int) -> None:
        with self._answered:
            assert self._answered.wait_for(lambda: of(numbers) >= least or self.wrong, TIMEOUT)
            assert not self.wrong


@either_mode
@each_engine
def test_a_server_may_be_killed_again_and_again_under_load(engine: str, mode: str, server: RedisServer) -> None:
    count, rng = 6, random.Random(engine + mode)
    with sites.site(engine, server.url(), more=FULL):
        visitor = Visitor().signed_in()
        counters = Counters(mode, visitor.key, count)
        running = promised(counters.run)
        for turn in range(1, 7):
            counters.wait_for(counters.last, sum, sum(counters.last) + rng.randrange(20, 50))
            counters.is_up.clear()
            server.kill()
            counters.wait_for(counters.failed, min, turn)
            server.restart()
            counters.is_up.set()
        counters.end.set()
        running.result(TIMEOUT)
        assert not counters.wrong
        assert visitor.sees() == SIGNED_IN
        session = store_class()(visitor.key)
        for number in range(count):
            assert counters.may_be(number, session[str(number)])


# The server runs, and refuses.


@contextmanager
def _config(server: RedisServer, **values: str) -> Iterator[None]:
    with server.client() as client:
        before = {name: client.config_get(name)[name] for name in (n.replace("_", "-") for n in values)}
        for name, value in values.items():
            client.config_set(name.replace("_", "-"), value)
        yield
        for name, value in before.items():
            client.config_set(name, value)


@contextmanager
def _out_of_memory(server: RedisServer) -> Iterator[None]:
    with _config(server, maxmemory="1"):
        yield


@contextmanager
def _too_few_replicas(server: RedisServer) -> Iterator[None]:
    with _config(server, min_replicas_to_write="1"):
        yield


@contextmanager
def _a_replica(server: RedisServer) -> Iterator[None]:
    """Make it a replica of a missing master, and a master again in the end."""
    with server.client() as client, socket.create_server(("127.0.0.1", 0)) as nobody:
        client.replicaof("127.0.0.1", str(nobody.getsockname()[1]))
        yield
        client.replicaof("NO", "ONE")


@contextmanager
def _a_replica_that_does_not_answer_either(server: RedisServer) -> Iterator[None]:
    with _config(server, replica_serve_stale_data="no"), _a_replica(server):
        yield


@contextmanager
def _busy(server: RedisServer) -> Iterator[None]:
    """Keep it busy with an endless script."""

    def run() -> None:
        with server.client() as client, pytest.raises(ResponseError):
            client.eval("while true do end", 0)

    with _config(server, lua_time_limit="1"), server.client() as client:
        running = promised(run)
        while True:
            try:
                client.ping()
            except ResponseError:
                break
        yield
        client.script_kill()
        running.result(TIMEOUT)


@contextmanager
def _another_password(server: RedisServer) -> Iterator[None]:
    with server.client() as client:
        client.config_set("requirepass", "another")
        client.client_kill_filter(_type="normal", skipme=True)
        yield
        client.config_set("requirepass", "")


@contextmanager
def _no_more_clients(server: RedisServer) -> Iterator[None]:
    with server.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
        client.config_set("maxclients", "1")
        yield
        client.config_set("maxclients", "1000")


# Faults of a server, and whether sessions can still be read.
TROUBLES: dict[str, tuple[Callable[[RedisServer], AbstractContextManager[None]], bool]] = {
    "OOM": (_out_of_memory, True),
    "NOREPLICAS": (_too_few_replicas, True),
    "READONLY": (_a_replica, False),
    "MASTERDOWN": (_a_replica_that_does_not_answer_either, False),
    "BUSY": (_busy, False),
    "NOAUTH": (_another_password, False),
    "maxclients": (_no_more_clients, False),
}


@pytest.mark.parametrize("trouble", TROUBLES)
@either_mode
@engines_and_clients
def test_a_server_may_refuse(engine: str, options: Any, mode: str, trouble: str) -> None:
    refuses, reads = TROUBLES[trouble]
    with (
        RedisServer() as server,
        site(mode, engine, server.url(), entry={"OPTIONS": options}, more=FULL) as runner,
    ):
        those = deeds(runner)
        with refuses(server):
            done = [deed.attempt() for deed in those]
        assert done[0] is reads
        # Some let a session end, or run a script without knowing that it writes: redis_hash writes by scripts only.
        assert not all(done) or trouble == "NOREPLICAS"
        assert reads or not any(done)
        for deed, is_done in zip(those, done, strict=True):
            if is_done:
                deed.is_done()
            else:
                deed.is_undone()
                assert deed.attempt()
                deed.is_done()


@either_mode
@each_engine
def test_a_server_may_be_loading_its_data(engine: str, mode: str) -> None:
    """Load many megabytes slowly, so the server answers meanwhile."""
    quick = {"CONNECTION_POOL_KWARGS": {"protocol": 2, "driver_info": None}}
    with (
        RedisServer(rdbcompression="no", key_load_delay="30000") as server,
        site(mode, engine, server.url(), entry={"OPTIONS": quick}, more=FULL) as runner,
    ):
        those = deeds(runner)
        with server.client() as client:
            for number in range(40):
                client.set(str(number), bytes(1 << 20))
            client.save()

        def loads() -> bool:
            with server.client() as client:
                try:
                    client.ping()
                except BusyLoadingError:
                    return True
            return False

        def attempt_all() -> list[bool]:
            """Return the operations that were done while the server was loading."""
            done = []
            for deed in those:
                is_done = deed.attempt()
                if not loads():
                    break
                done.append(is_done)
            with server.client() as client:
                client.config_set("key-load-delay", "0")
            return done

        def wait_and_attempt_all() -> list[bool]:
            while True:
                with suppress(redis.ConnectionError):
                    if loads():
                        return attempt_all()

        server.kill()
        attempts = promised(wait_and_attempt_all)
        server.restart()
        done = attempts.result(TIMEOUT)
        assert done
        assert not any(done)
        for deed in those[: len(done)]:
            deed.is_undone()
            assert deed.attempt()
            deed.is_done()


# Faults that nobody notices.


@either_mode
@engines_and_clients
def test_scripts_may_be_flushed_before_every_command(engine: str, options: Any, mode: str) -> None:
    flushed = 0

    def flush(connection: int, data: bytes) -> Passed:
        nonlocal flushed
        with shared().client() as client:
            client.script_flush()
        flushed += 1
        return data, False

    with (
        Proxy(shared().port) as proxy,
        site(mode, engine, proxy.url(), entry={"OPTIONS": options}, more=FULL) as runner,
    ):
        those = deeds(runner)
        proxy.on_request = flush
        for deed in those:
            assert deed.attempt()
        assert flushed > 2 * len(those)
        for deed in those:
            deed.is_done()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("mode", ["sync", "async", "uvloop"])
@engines_and_clients
def test_idle_connections_may_be_cut(engine: str, options: Any, mode: str, reset: bool, monkeypatch: Any) -> None:
    """Between two requests, and between two commands of one."""
    with (
        Proxy(shared().port) as proxy,
        site(mode, engine, proxy.url(), entry={"OPTIONS": options}, more=FULL) as runner,
    ):
        those = deeds(runner)
        monkeypatch.setattr(sites, "between", lambda: proxy.cut_all(reset))
        for deed in those:
            proxy.cut_all(reset)
            if runner is not None:
                runner.run(asyncio.sleep(0))  # the event loop looks at its sockets
            assert deed.attempt()
        for deed in those:
            deed.is_done()


@pytest.mark.parametrize("mode", ["sync", "async", "uvloop"])
def test_a_connection_may_be_reset_after_the_engine_looked_at_it(mode: str, monkeypatch: Any) -> None:
    async def look(self: Any) -> bool:
        return False

    monkeypatch.setattr(Link, "_is_unclean", lambda self: False)
    monkeypatch.setattr(AsyncLink, "_is_unclean", look)
    with Proxy(shared().port) as proxy, site(mode, ENGINES[0], proxy.url(), more=[BETWEEN]) as runner:
        those = deeds(runner)
        monkeypatch.setattr(sites, "between", lambda: proxy.cut_all(reset=True))
        for deed in those:
            assert deed.attempt()
        for deed in those:
            deed.is_done()


@either_mode
@engines_and_clients
def test_the_server_may_kill_the_idle_connections_of_many(
    engine: str, options: Any, mode: str, server: RedisServer, monkeypatch: Any
) -> None:
    """All of them have loaded their session then, and none has saved it."""
    count = 8

    def kill() -> None:
        with server.client() as client:
            assert client.client_kill_filter(_type="normal", skipme=True) >= 1

    def visit(visitor: Visitor) -> str:
        text: str = visitor.does("modify").content.decode()
        return text

    async def avisit(those: list[Visitor]) -> list[str]:
        answers = await asyncio.gather(*(visitor.client.get("/amodify/") for visitor in those))
        return [answer.content.decode() for answer in answers]

    with site(mode, engine, server.url(), entry={"OPTIONS": options}, more=FULL) as runner:
        those = [Visitor(runner).signed_in() for _ in range(count)]
        if runner is None:
            monkeypatch.setattr(sites, "between", threading.Barrier(count, kill).wait)
            threads = [promised(visit, visitor) for visitor in those]
            found = [thread.result(TIMEOUT) for thread in threads]
        else:
            arrived, killed = 0, asyncio.Event()

            async def meet() -> None:
                nonlocal arrived
                arrived += 1
                if arrived == count:
                    kill()
                    killed.set()
                await killed.wait()

            monkeypatch.setattr(sites, "between", meet)
            found = runner.run(avisit(those))
        assert found == ["ada 2 2"] * count


# The answer and the log.


TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", {"503.html": "<h1>Later</h1>"})]},
    }
]


@pytest.mark.parametrize(("templates", "page"), [([], b"Please try again"), (TEMPLATES, b"<h1>Later</h1>")])
@either_mode
@pytest.mark.parametrize("what", ["read", "stream"])
def test_the_page_and_the_log_name_the_outage(
    what: str, mode: str, templates: Any, page: bytes, server: RedisServer, monkeypatch: Any, caplog: Any
) -> None:
    """The load fails, or the save of a view with a streaming answer."""
    with site(mode, ENGINES[1], server.url(), more=FULL, TEMPLATES=templates) as runner:
        visitor = Visitor(runner).signed_in()
        if what == "stream":
            monkeypatch.setattr(sites, "between", server.kill)
        else:
            server.kill()
        response = visitor.does(what)
        assert is_503(response)
        assert not response.streaming
        assert page in response.content
        (record,) = [record for record in caplog.records if record.name == "gsession_django"]
        assert "/ is answered with 503: CACHES['sessions'] (redis://127.0.0.1:" in record.getMessage()
        assert "ConnectionError" in record.getMessage()


@either_mode
@each_engine
def test_with_djangos_middleware_it_is_a_500_and_the_cookie_stays(
    engine: str, mode: str, server: RedisServer, monkeypatch: Any
) -> None:
    with site(mode, engine, server.url(), middleware=DJANGOS, more=FULL) as runner:
        those = deeds(runner)
        for kill_between in (False, True):
            for deed in those:
                with monkeypatch.context() as patch:
                    if kill_between:
                        patch.setattr(sites, "between", server.kill)
                    else:
                        server.kill()
                    response = deed.visitor.does(deed.what)
                if (deed.what, kill_between) != ("read", True):
                    assert response.status_code == 500
                    assert response.cookies == SimpleCookie()
                server.restart()
                deed.is_undone()


# The connection is cut at every byte.


class Knife:
    """Cuts the connections of a proxy.

    Attributes:
        passed: how many bytes have come each way since the last order.
    """

    def __init__(self, proxy: Proxy) -> None:
        self._lock = threading.Lock()
        proxy.on_request = lambda connection, data: self._pass("requests", connection, data)
        proxy.on_reply = lambda connection, data: self._pass("replies", connection, data)
        self.put_away()

    def put_away(self) -> None:
        self.cut("", 0)

    def cut(self, way: str, byte: int, again: bool = False) -> None:
        """Cut the connection before this byte.

        Args:
            way: ``"requests"`` or ``"replies"``.
            byte: its number, counted from now on, from 0.
            again: whether later connections are cut too, at the same byte after they have been opened.
        """
        with self._lock:
            self._way, self._byte, self._again = way, byte, again
            self._place: int | None = None
            self._opened: set[int] = set()
            self._tried: set[int] = set()
            self.passed = {"requests": 0, "replies": 0}

    def _pass(self, way: str, connection: int, data: bytes) -> Passed:
        with self._lock:
            start = self.passed[way]
            self.passed[way] += len(data)
            if way == "requests" and not _OPENING.match(data):
                self._opened.add(connection)
            at = len(data)
            if way == self._way:
                if self._place is None:
                    at = self._byte - start
                    if at < len(data):
                        self._place = at
                        self._tried.add(connection)
                elif self._again and connection in self._opened - self._tried:
                    at = self._place
                    self._tried.add(connection)
            return data[:at], at < len(data)


# Bytes of redis-py as it opens a connection.
_OPENING = re.compile(rb"\*\d+\r\n\$\d+\r\n(HELLO|CLIENT|AUTH|SELECT)\r\n")


def copies(template: str, count: int) -> list[str]:
    """Return the keys of so many copies of a session."""
    engine = engine_of(store_class())
    storage = engine.storage
    assert isinstance(storage, BaseRedisStorage)
    keys = [secrets.token_hex(16) for _ in range(count)]
    with shared().client() as client:
        pipeline = client.pipeline()
        for name, number in zip(storage._keys(engine.id_of(template)), range(2), strict=False):
            for key in keys:
                pipeline.copy(name, storage._keys(engine.id_of(key))[number])
        assert all(pipeline.execute()[:count])
    return keys


# What is answered, in four bytes each, to who gives a session a new key.
REPLIES = {"cycle": ["add", "move", "take out", "apply"], "sign_in": ["move", "add", "apply"]}


class Cuts:
    """Visitors who do one of the operations while a proxy cuts the connections.

    Attributes:
        load: how many bytes a load takes each way, if the operation begins after one.
        whole: how many the request takes.
        anew: how many it takes on a new connection.
        knife: cuts the connections.
    """

    def __init__(self, kind: str, proxy: Proxy, runner: asyncio.Runner | None) -> None:
        self.what, self.before, self.after = KINDS[kind]
        self._runner, self.knife = runner, Knife(proxy)
        self._template = Visitor(runner)
        for step in ("modify",) if self.before == SOMEBODY else ("modify", "sign_in"):
            self._template.does(step)
        self._sent(self.what)  # the server knows the scripts now
        nothing = {"requests": 0, "replies": 0}
        self.load = nothing if kind == "load and touch" or self.before == NOBODY else self._sent("peek")
        self.whole = self._sent(self.what)
        proxy.cut_all()
        self.anew = self._sent(self.what)

    def _sent(self, what: str) -> dict[str, int]:
        (visitor,) = self.visitors(1)
        self.knife.put_away()
        visitor.sees(what)
        return self.knife.passed.copy()

    def visitors(self, count: int) -> list[Visitor]:
        keys = [None] * count if self.before == NOBODY else copies(self._template.key, count)
        return [Visitor(self._runner, key) for key in keys]

    def _connect(self) -> None:
        """Open a connection, also for visitors without a session."""
        if self.before == NOBODY:
            self._template.sees()

    def once(self, visitor: Visitor, way: str, byte: int) -> None:
        """The engine sends the batch again, and nobody notices."""
        self._connect()
        self.knife.cut(way, byte)
        assert visitor.sees(self.what) == self.after
        self.knife.put_away()
        assert visitor.sees() == self.after

    def again(self, visitor: Visitor, way: str, byte: int) -> None:
        """The answer is a 503. A batch that was not sent whole is not done; one that was answered is done whole."""
        self._connect()
        key = visitor.key
        self.knife.cut(way, byte, again=True)
        response = visitor.does(self.what)
        self.knife.put_away()
        if response.status_code == 200:  # "taken", of a key that was created before, is shorter than "created"
            assert self.what in ("modify", "sign_in")
            assert (self.before, way) == (NOBODY, "replies")
            assert visitor.sees() == self.after
            return
        assert is_503(response)
        moves = self.what in ("cycle", "sign_in") and self.before != NOBODY
        if moves and key != visitor.key:
            assert list(response.cookies) == [settings.SESSION_COOKIE_NAME]
        else:
            assert response.cookies == SimpleCookie()
        found = self.before if way == "requests" else self.after
        if moves and way == "replies":
            lost = REPLIES[self.what][(byte - self.load[way]) // 4]
            # An id joins those of its user before the change. To take one out may fail: then the save is cut.
            if lost == "add":
                found = self.before
            elif key == visitor.key:  # the server had moved the session and could not say so: nobody knows the new key
                assert lost == "move"
                found = NOBODY
        assert visitor.sees() == (NOBODY if self.before == NOBODY else found)

    def everywhere(self, step: int) -> None:
        """Cut at every byte of the replies, and at every few bytes of the requests, in turns once and twice."""
        places = [("requests", byte) for byte in range(self.load["requests"], self.whole["requests"], step)]
        replies = [("replies", byte) for byte in range(self.load["replies"], self.whole["replies"])]
        if self.load["replies"]:  # a few bytes
            places += replies
        places += replies if len(places) % 2 else replies[1:]
        index = store_class().get_storage()._key(f"user/{sites.ada.pk}")  # type: ignore[attr-defined]
        with shared().client() as client:
            for turn, (visitor, (way, byte)) in enumerate(zip(self.visitors(len(places)), places, strict=True)):
                client.delete(index)  # which is cleaned when it has grown, with replies of its own
                (self.again if turn % 2 else self.once)(visitor, way, byte)


@pytest.mark.usefixtures("no_logs")
@pytest.mark.parametrize("kind", KINDS)
@either_mode
@each_engine
def test_a_connection_may_be_cut_at_every_byte(engine: str, mode: str, kind: str) -> None:
    """Cut once, or twice where the engine sends again. One engine has RESP2 and the other RESP3.

    Async requests, and operations that others contain too, are cut at every fourth byte of a request.
    """
    options = {"protocol": 2 + ENGINES.index(engine), "driver_info": None}
    with (
        Proxy(shared().port) as proxy,
        site(
            *(mode, engine, proxy.url()),
            entry={"OPTIONS": {"CONNECTION_POOL_KWARGS": options}},
            more=[] if mode == "async" else [LOGIN_REQUIRED],  # it needs a thread to load the session
            SESSION_SAVE_EVERY_REQUEST=kind == "load and touch",
        ) as runner,
    ):
        Cuts(kind, proxy, runner).everywhere(4 if runner or KINDS[kind][0] == "sign_in" else 1)


@pytest.mark.usefixtures("no_logs")
@pytest.mark.parametrize("kind", ["apply", "move and apply", "create"])
@either_mode
def test_a_lent_connection_may_be_cut(mode: str, kind: str) -> None:
    with (
        Proxy(shared().port) as proxy,
        site(mode, ENGINES[0], proxy.url(), entry={"OPTIONS": LENT}) as runner,
    ):
        Cuts(kind, proxy, runner).everywhere(16)


@pytest.mark.usefixtures("no_logs")
@either_mode
def test_a_connection_may_be_cut_while_it_opens(mode: str) -> None:
    """Cut at every byte of redis-py's first commands. The engine does not open a connection twice: a 503."""
    with Proxy(shared().port) as proxy, site(mode, ENGINES[1], proxy.url()) as runner:
        cuts = Cuts("load and touch", proxy, runner)
        (visitor,) = cuts.visitors(1)
        for way in cuts.anew:
            for byte in range(0, cuts.anew[way] - cuts.whole[way], 4 if runner else 1):
                proxy.cut_all()
                cuts.knife.cut(way, byte)
                response = visitor.does("read")
                cuts.knife.put_away()
                assert response.status_code == 200 or is_503(response)
                assert response.cookies == SimpleCookie()
                assert visitor.sees() == SIGNED_IN
