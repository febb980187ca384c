"""A connection of the Redis engines that is disturbed is not used again while a reply is still to come.

Each test disturbs one point; test_hunt.py disturbs at random.
"""

import asyncio
import gc
import os
import random
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from django.test import override_settings

from gsession_django import StorageUnavailable
from gsession_django.backends import redis as redis_engine
from gsession_django.redis.client import RedisClient, alone
from gsession_django.redis.commands import Batch
from tests.support.processes import promised, run_program
from tests.support.proxies import Passed, Proxy, everything
from tests.support.redis_servers import LENT, RedisServer, connection_of, settings_for, shared

pytestmark = pytest.mark.once

CLIENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "kept, RESP3": ("?protocol=3", {}),
    "kept, RESP2": ("?protocol=2", {}),
    "lent, RESP3": ("?protocol=3", LENT),
    "lent, RESP2": ("?protocol=2", LENT),
}
every_client = pytest.mark.parametrize("client", CLIENTS)
PATIENCE = 30.0


class Interrupted(BaseException):
    """Stands for the exception of a signal handler, anywhere."""


@contextmanager
def site(client: str, url: str | None = None, storage: Any = None, **options: Any) -> Iterator[tuple[str, str]]:
    """Store sessions through one of the clients, and yield the session keys of Ada and Bob."""
    query, kind = CLIENTS[client]
    arguments = {**kind.get("CONNECTION_POOL_KWARGS", {}), **options.pop("CONNECTION_POOL_KWARGS", {})}
    entry, own = (
        {"OPTIONS": {**kind, "CONNECTION_POOL_KWARGS": arguments, **options}},
        {"prefix": f"{random.getrandbits(64):x}:", **(storage or {})},
    )
    with override_settings(**settings_for(redis_engine.__name__, (url or shared().url()) + query, entry, **own)):
        yield visitor("ada"), visitor("bob")


def visitor(name: str) -> str:
    store = redis_engine.SessionStore()
    store["name"] = name
    store.save()
    assert store.session_key is not None
    return store.session_key


def name_of(key: str) -> Any:
    return redis_engine.SessionStore(key).get("name")


async def aname_of(key: str) -> Any:
    return await redis_engine.SessionStore(key).aget("name")


def the_client() -> RedisClient:
    client: RedisClient = redis_engine.SessionStore.get_storage().client  # type: ignore[attr-defined]
    return client


# A reply that comes late.


class LateReply:
    """Holds back the reply to the next request until the request after that arrives, on any connection."""

    def __init__(self, proxy: Proxy) -> None:
        self.arrived, self._go_on, self._requests = threading.Event(), threading.Event(), 0
        self.when_held: Callable[[], object] = lambda: None
        proxy.on_reply, proxy.on_request = self._reply, self._request

    def _reply(self, number: int, data: bytes) -> Passed:
        if not self.arrived.is_set():
            self.arrived.set()
            self.when_held()
        self._go_on.wait(PATIENCE)
        return data, False

    def _request(self, number: int, data: bytes) -> Passed:
        self._requests += 1
        if self._requests > 1:
            self._go_on.set()
        return data, False


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy(shared().port) as proxy:
        yield proxy


@every_client
def test_nobody_gets_a_reply_after_the_timeout(client: str, proxy: Proxy) -> None:
    with site(client, proxy.url(), SOCKET_TIMEOUT=0.7) as (ada, bob):
        LateReply(proxy)
        with pytest.raises(StorageUnavailable, match="TimeoutError"):
            name_of(ada)
        assert name_of(bob) == "bob"


@every_client
def test_nobody_gets_a_reply_after_a_signal(client: str, proxy: Proxy) -> None:
    """Such as Ctrl-C, or a task queue's time limit."""

    def interrupt(*args: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with site(client, proxy.url()) as (ada, bob):
            late = LateReply(proxy)
            late.when_held = lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            with pytest.raises(Interrupted):
                name_of(ada)
            assert name_of(bob) == "bob"
    finally:
        signal.signal(signal.SIGUSR1, before)


@every_client
@pytest.mark.parametrize("how", ["SOCKET_TIMEOUT", "asyncio.timeout()", "cancel()"])
def test_nobody_gets_a_reply_after_the_task_has_gone(client: str, proxy: Proxy, how: str) -> None:
    async def use(ada: str, bob: str) -> None:
        assert await aname_of(bob) == "bob"
        late, limits = LateReply(proxy), []

        async def limited() -> None:
            async with asyncio.timeout(None) as limit:
                limits.append(limit)
                await aname_of(ada)

        task = asyncio.create_task(limited())
        await asyncio.to_thread(late.arrived.wait, PATIENCE)
        for _ in range(10):  # the request is sent, and its sender begins to read
            await asyncio.sleep(0)
        if how == "cancel()":
            task.cancel()
        elif how == "asyncio.timeout()":
            limits[0].reschedule(asyncio.get_running_loop().time())
        with pytest.raises((StorageUnavailable, TimeoutError, asyncio.CancelledError)):
            await task
        assert await aname_of(bob) == "bob"

    timeout = 0.7 if how == "SOCKET_TIMEOUT" else PATIENCE
    with site(client, proxy.url(), SOCKET_TIMEOUT=timeout) as keys:
        asyncio.run(use(*keys))


# A surplus reply.


@every_client
def test_nobody_gets_an_unread_reply_on_an_idle_connection(client: str) -> None:
    """The answer to another visitor's load is there before the engine looks at the connection."""

    def surplus(ada: str) -> bytes:
        storage: Any = redis_engine.SessionStore.get_storage()
        name = storage._keys(redis_engine.SessionStore(ada).session_id)[0]
        return Batch(("GET", name), ("PTTL", name)).packed()

    def wait_for(sock: Any) -> None:
        assert select.select([sock], [], [], PATIENCE)[0], "the server has not answered"

    async def use(ada: str, bob: str) -> None:
        assert await aname_of(bob) == "bob"
        connection = connection_of(the_client()._of_loops[asyncio.get_running_loop()][0])
        connection._writer.write(surplus(ada))
        wait_for(connection._writer.get_extra_info("socket"))  # the loop stands still
        assert await aname_of(bob) == "bob"

    with site(client) as (ada, bob):
        connection = connection_of(the_client()._way)
        connection._sock.sendall(surplus(ada))
        wait_for(connection._sock)
        assert name_of(bob) == "bob"
        asyncio.run(use(ada, bob))


@every_client
def test_nobody_gets_a_second_reply_that_came_with_the_last_one(client: str, proxy: Proxy) -> None:
    """The answer to Ada's load comes twice in one piece, so a parser holds the second."""

    def twice(number: int, data: bytes) -> Passed:
        proxy.on_reply = lambda number, data: (data, False)
        return data * 2, False

    async def use(ada: str, bob: str) -> None:
        assert await aname_of(bob) == "bob"
        proxy.on_reply = twice
        assert await aname_of(ada) == "ada"
        assert await aname_of(bob) == "bob"

    with site(client, proxy.url()) as (ada, bob):
        proxy.on_reply = twice
        assert name_of(ada) == "ada"
        assert name_of(bob) == "bob"
        asyncio.run(use(ada, bob))


@every_client
def test_nobody_gets_a_second_reply_that_came_with_a_repeated_one(client: str, proxy: Proxy) -> None:
    """The same on a connection that was just opened, after another was cut."""

    def cut(number: int, data: bytes) -> Passed:
        proxy.on_request = let_the_next_have_one_more
        return b"", True

    def let_the_next_have_one_more(number: int, data: bytes) -> Passed:
        if b"PTTL" in data:
            proxy.on_request, proxy.on_reply = everything, with_one_more
        return data, False

    def with_one_more(number: int, data: bytes) -> Passed:
        proxy.on_reply = everything
        return data + b"+OK\r\n", False

    async def use(ada: str, bob: str) -> None:
        assert await aname_of(bob) == "bob"
        proxy.on_request = cut
        assert await aname_of(ada) == "ada"
        assert [await aname_of(key) for key in (bob, ada, bob)] == ["bob", "ada", "bob"]

    with site(client, proxy.url()) as (ada, bob):
        proxy.on_request = cut
        assert name_of(ada) == "ada"
        assert [name_of(key) for key in (bob, ada, bob)] == ["bob", "ada", "bob"]
        asyncio.run(use(ada, bob))


@pytest.mark.parametrize("client", ["kept, RESP3", "lent, RESP3"])
def test_an_announcement_while_a_connection_opens_is_not_a_reply(client: str, proxy: Proxy) -> None:
    """A server may announce its maintenance after any reply."""

    def with_news(number: int, data: bytes) -> Passed:
        return data + b">3\r\n+MIGRATING\r\n:1\r\n:10\r\n", False

    async def use(ada: str, bob: str) -> None:
        assert [await aname_of(key) for key in (bob, ada, bob)] == ["bob", "ada", "bob"]

    with site(client, proxy.url()) as (ada, bob):
        connection_of(the_client()._way).disconnect()
        proxy.on_reply = with_news
        assert [name_of(key) for key in (bob, ada, bob)] == ["bob", "ada", "bob"]
        asyncio.run(use(ada, bob))


@pytest.mark.parametrize("client", ["kept, RESP3", "kept, RESP2"])
def test_a_slow_server_is_asked_once_if_redis_py_has_changed_the_timeout(client: str, proxy: Proxy) -> None:
    """redis-py sets a timeout on the socket if the server announces that it will be slow, and resets it."""
    asked = 0

    def count(number: int, data: bytes) -> Passed:
        nonlocal asked
        asked += 1
        return data, False

    answer = threading.Event()

    def wait(number: int, data: bytes) -> Passed:
        answer.wait(PATIENCE)
        return data, False

    with site(client, proxy.url(), SOCKET_TIMEOUT=0.3) as (ada, _):
        connection_of(the_client()._way).update_current_socket_timeout(-1)
        proxy.on_request, proxy.on_reply = count, wait
        with pytest.raises(StorageUnavailable, match="no answer"):
            name_of(ada)
        assert asked == 1
        answer.set()


@pytest.mark.parametrize("client", ["kept, RESP3", "lent, RESP3"])
def test_an_announcement_of_the_server_is_not_a_reply(client: str) -> None:
    """With CLIENT TRACKING the server announces that a key was written, here in the middle of the replies."""
    batch = Batch(
        ("CLIENT", "TRACKING", "ON"), ("SET", "told", "1"), ("GET", "told"), ("SET", "told", "2"), ("GET", "told")
    )
    expected = [b"OK", b"OK", b"1", b"OK", b"2"]
    with site(client) as (ada, _):
        assert the_client().send(batch) == expected
        assert name_of(ada) == "ada"
        assert asyncio.run(the_client().acarry_out(alone(batch))) == expected


# An exception between any two lines.

_OURS_AND_REDIS_PYS = f"{os.sep}redis{os.sep}"


def interrupted(number: int, use: Callable[[], object], before: Callable[[], object] = lambda: None) -> bool:
    """Call `use`, raise Interrupted at one line of ours or redis-py's, and return whether that line came.

    It runs in its own thread, because tracing can leave a thread with an exception in handling.

    Args:
        number: the number of the line.
        use: the function.
        before: called at that line, before the exception.
    """
    count, lock = 0, vars(the_client()._way)["_lock"]

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        # A trace can raise between a block and the release of its lock. No signal handler can.
        if _OURS_AND_REDIS_PYS not in frame.f_code.co_filename or lock._is_owned():
            return trace
        if event == "line":
            count += 1
            if count == number:
                before()
                raise Interrupted
        return trace

    def run() -> None:
        sys.settrace(trace)
        with suppress(Interrupted):
            use()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return count >= number


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("client", "warm"),
    [
        *(pytest.param(client, True, id=f"{client}, old_connection") for client in CLIENTS),
        *(pytest.param(client, False, id=f"{client}, new_connection") for client in CLIENTS if client != "lent, RESP2"),
    ],
)
def test_an_exception_at_any_line_leaves_nothing_to_others(client: str, warm: bool) -> None:
    """max_connections does not count a lost connection for ever, as in redis-py's own pools."""

    def read_bob() -> Any:
        try:
            return name_of(bob)
        except StorageUnavailable:  # all are in use, so one was lost
            gc.collect()
        return name_of(bob)

    limit = 1 if "kept" in client else 1000
    with site(client, CONNECTION_POOL_KWARGS={"max_connections": limit}) as (ada, bob):
        connections = redis_engine.SessionStore.get_storage().client._way  # type: ignore[attr-defined]
        number = 1
        while interrupted(number, lambda: name_of(ada)):
            assert read_bob() == "bob"
            if not warm:
                connections._close_idle()
                connections._pool.reset()  # what it lends is made anew
            number += 1
        assert number > 50


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_at_any_line_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for the only connection gets another if the exception has lost it."""

    def wait_for_it() -> None:
        reading.append(promised(name_of, bob))
        deadline = time.monotonic() + PATIENCE
        while not connections._waiting and not reading[-1].done() and time.monotonic() < deadline:
            time.sleep(0.0001)  # no event tells that it waits

    monkeypatch.setattr("gsession_django.redis.connections._LOOKED_EVERY", 0.01)
    with site("kept, RESP3", CONNECTION_POOL_KWARGS={"max_connections": 1}, SOCKET_CONNECT_TIMEOUT=5) as (ada, bob):
        connections: Any = the_client()._way
        reading: list[Future[Any]] = []
        while interrupted(len(reading) + 1, lambda: name_of(ada), wait_for_it):
            assert reading[-1].result(PATIENCE) == "bob"
            assert not connections._waiting
        assert len(reading) > 50


def test_the_exception_that_a_caller_handles_keeps_its_traceback(proxy: Proxy) -> None:
    """An error page may be the first to use the session, and meet an outage."""

    def view() -> None:
        raise LookupError

    def site_with_an_error_page() -> None:
        try:
            view()
        finally:
            with pytest.raises(StorageUnavailable):
                name_of(ada)

    with site("kept, RESP3", proxy.url()) as (ada, _):
        proxy.on_request = lambda number, data: (b"", True)
        with pytest.raises(LookupError) as caught:
            site_with_an_error_page()
        assert caught.traceback[-1].name == "view"


@pytest.mark.parametrize("engine", ["redis", "redis_hash"])
def test_a_signal_handler_that_raises_while_commands_are_packed_crashes_nothing(engine: str) -> None:
    """hiredis 3.5.0 crashes within a tenth of a second if it gets a number."""
    run_program("tests.support.redis_signals", shared().url(db=1), f"gsession_django.backends.{engine}")


# A fork.


@every_client
def test_no_connection_crosses_a_fork(client: str) -> None:
    query, _ = CLIENTS[client]
    with RedisServer() as server:
        run_program("tests.support.redis_preload", server.url(query), client[:4])


# Cancellation at every step of the event loop.


@every_client
def test_a_task_cancelled_at_any_step_leaves_nothing_to_others(client: str) -> None:
    async def use(ada: str, bob: str) -> None:
        for steps in range(100):
            task = asyncio.create_task(aname_of(ada))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                assert await task == "ada"
            assert tuple(await asyncio.gather(aname_of(bob), aname_of(ada))) == ("bob", "ada")

    # If each cancellation lost one, none would be left.
    with site(client, CONNECTION_POOL_KWARGS={"max_connections": 3}) as keys:
        asyncio.run(use(*keys))


# Connections that end.


@contextmanager
def resetting_proxy(port: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the URL of a proxy and a function that resets its connections, so clients meet an error, not an end."""
    listener, (said, say), was_reset = socket.create_server(("127.0.0.1", 0)), socket.socketpair(), threading.Event()
    others: dict[socket.socket, socket.socket] = {}

    def pass_on() -> None:
        while True:
            (ready, *_), _, _ = select.select([said, listener, *others], [], [])
            if ready is listener:
                client, server = listener.accept()[0], socket.create_connection(("127.0.0.1", port))
                others.update({client: server, server: client})
            elif ready is not said and (data := ready.recv(65536)):
                others[ready].sendall(data)
            else:
                for end in others if ready is said else (ready, others[ready]):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.close()
                for end in [end for end in others if end.fileno() < 0]:
                    del others[end]
                if ready is said and not said.recv(1):
                    return
                was_reset.set()

    def reset() -> None:
        was_reset.clear()
        say.send(b"!")
        assert was_reset.wait(PATIENCE)

    with listener, said, say:
        thread = threading.Thread(target=pass_on)
        thread.start()
        try:
            yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0", reset
        finally:
            say.close()
            thread.join()


@every_client
def test_a_connection_that_was_reset_while_idle_is_not_noticed(client: str) -> None:
    async def use(ada: str) -> None:
        assert await aname_of(ada) == "ada"
        reset()
        for _ in range(10):  # the event loop learns of it
            await asyncio.sleep(0)
        assert await aname_of(ada) == "ada"

    with resetting_proxy(shared().port) as (url, reset), site(client, url) as (ada, _):
        reset()
        assert name_of(ada) == "ada"
        asyncio.run(use(ada))


def wait_until_connections_are(number: int, server: RedisServer) -> None:
    deadline = time.monotonic() + PATIENCE
    with server.client() as control:
        while len(control.client_list(_type="normal")) - 1 != number:
            assert time.monotonic() < deadline, control.client_list(_type="normal")
            time.sleep(0.01)  # no event tells when the server has seen it


@pytest.mark.parametrize("client", ["kept, RESP3", "lent, RESP3"])
def test_a_connection_with_a_health_check_is_checked(client: str) -> None:
    """With health_check_interval, redis-py sends a PING first after a long idle time."""

    def pings() -> int:
        with shared().client() as other:
            commands: Any = other.info("commandstats")
        return int(commands.get("cmdstat_ping", {"calls": 0})["calls"])

    def let_it_be_over(connection: Any) -> None:
        connection.next_health_check = 0

    with site(client, CONNECTION_POOL_KWARGS={"health_check_interval": 3600}) as (ada, _):
        let_it_be_over(connection_of(the_client()._way))
        before = pings()
        assert name_of(ada) == "ada"
        assert pings() == before + 1

        async def use() -> None:
            assert await aname_of(ada) == "ada"
            let_it_be_over(connection_of(the_client()._of_loops[asyncio.get_running_loop()][0]))
            before = pings()
            assert await aname_of(ada) == "ada"
            assert pings() == before + 1

        asyncio.run(use())


def test_a_kept_connection_that_redis_py_marks_is_replaced() -> None:
    """redis-py marks the connections of a server that announces maintenance."""
    who = Batch(("CLIENT", "ID"))
    with site("kept, RESP3"):
        before = the_client().send(who)
        connection_of(the_client()._way).mark_for_reconnect()
        after = the_client().send(who)
        assert before != after == the_client().send(who)

        async def use() -> None:
            before = await the_client().acarry_out(alone(who))
            connection_of(the_client()._of_loops[asyncio.get_running_loop()][0]).mark_for_reconnect()
            after = await the_client().acarry_out(alone(who))
            assert before != after == await the_client().acarry_out(alone(who))

        asyncio.run(use())


@every_client
def test_a_batch_that_fails_in_the_middle_closes_its_connection(client: str) -> None:
    """A replica refuses the first command of two; the reply to the second is still to come."""

    async def use() -> None:
        with pytest.raises(StorageUnavailable, match="read only replica"):
            await redis_engine.SessionStore().acreate()
        await asyncio.to_thread(wait_until_connections_are, 0, server)

    with RedisServer() as server, site(client, server.url(), storage={"wait_replicas": 1, "wait_timeout": 0.001}):
        with server.client() as control:
            control.replicaof("127.0.0.1", shared().port)
        with pytest.raises(StorageUnavailable, match="read only replica"):
            redis_engine.SessionStore().create()
        wait_until_connections_are(0, server)
        asyncio.run(use())


@every_client
def test_failures_do_not_use_up_max_connections(client: str) -> None:
    async def use(ada: str) -> None:
        server.kill()
        for _ in range(5):
            with pytest.raises(StorageUnavailable, match="Error 111"):
                await aname_of(ada)
        server.restart()
        assert await aname_of(ada) is None

    with RedisServer() as server, site(client, server.url(), CONNECTION_POOL_KWARGS={"max_connections": 1}) as (ada, _):
        server.kill()
        for _ in range(5):
            with pytest.raises(StorageUnavailable, match="Error 111"):
                name_of(ada)
        server.restart()
        assert name_of(ada) is None
        asyncio.run(use(ada))


def test_a_connection_that_cannot_be_made_says_so_each_time() -> None:
    entry = {"OPTIONS": {"CONNECTION_POOL_KWARGS": {"max_connections": 1, "no_such_argument": 1}}}
    with override_settings(**settings_for(redis_engine.__name__, shared().url(), entry)):
        for _ in range(3):
            with pytest.raises(TypeError, match="no_such_argument"):
                name_of("abcdefgh")


@every_client
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_event_loop_that_was_just_closed_leaves_nothing(client: str) -> None:
    """No connection stays open or reaches another event loop. Python warns of it, as it should."""
    with RedisServer() as server, site(client, server.url()) as (ada, bob):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(aname_of(ada))
        loop.close()
        del loop
        assert asyncio.run(aname_of(bob)) == "bob"
        gc.collect()
        wait_until_connections_are(1, server)  # that of the thread
