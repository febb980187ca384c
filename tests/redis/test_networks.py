"""Connections of the Redis engines in production networks: bursts, failovers by address, silent drops."""

import asyncio
import gc
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from gsession_django import SessionStore, StorageUnavailable
from gsession_django.backends import redis as redis_engine
from gsession_django.backends import redis_hash
from gsession_django.redis.connections import Connections
from tests.support.proxies import Passed, Proxy, everything
from tests.support.redis_servers import LENT, RedisServer, connection_of, settings_for, shared
from tests.support.tls import TlsProxy

pytestmark = pytest.mark.once

PATIENCE = 30.0
both_engines = pytest.mark.parametrize("module", [redis_engine, redis_hash], ids=["redis", "redis_hash"])


@contextmanager
def site(url: str, module: Any = redis_engine, storage: Any = None, **options: Any) -> Iterator[type[SessionStore]]:
    own = {"prefix": f"{random.getrandbits(64):x}:", **(storage or {})}
    with override_settings(**settings_for(module.__name__, url, {"OPTIONS": options}, **own)):
        yield module.SessionStore


def visitor(store_class: type[SessionStore], name: str = "ada") -> str:
    store = store_class()
    store["name"] = name
    store.save()
    assert store.session_key is not None
    return store.session_key


def connections_of(store_class: type[SessionStore]) -> Connections:
    way = store_class.get_storage().client._way  # type: ignore[attr-defined]
    assert isinstance(way, Connections)
    return way


def in_threads(number: int, use: Callable[[], Any]) -> list[Any]:
    """Return the results or exceptions of `use` in so many threads at once."""
    together = threading.Barrier(number, timeout=PATIENCE)

    def run(_: int) -> Any:
        together.wait()
        try:
            return use()
        except StorageUnavailable as error:
            return error

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(run, range(number)))


# Bursts.


def test_a_burst_of_threads_waits_for_free_connections() -> None:
    with site(shared().url(), CONNECTION_POOL_KWARGS={"max_connections": 3}, SOCKET_CONNECT_TIMEOUT=PATIENCE) as stores:
        key = visitor(stores)
        assert in_threads(60, lambda: stores(key).get("name")) == ["ada"] * 60
        assert len(connections_of(stores)._links) == 3


def test_a_burst_of_tasks_waits_for_free_connections() -> None:
    async def use(key: str) -> list[Any]:
        return await asyncio.gather(*(stores(key).aget("name") for _ in range(300)))

    with site(shared().url(), CONNECTION_POOL_KWARGS={"max_connections": 3}, SOCKET_CONNECT_TIMEOUT=PATIENCE) as stores:
        assert asyncio.run(use(visitor(stores))) == ["ada"] * 300


WANTED = r"all 1 connections were in use for 0\.2 seconds\. Raise max_connections in CONNECTION_POOL_KWARGS"


def test_a_request_without_a_connection_in_time_learns_how_many_there_are() -> None:
    limits = {"CONNECTION_POOL_KWARGS": {"max_connections": 1}, "SOCKET_CONNECT_TIMEOUT": 0.2}

    async def use(key: str) -> list[Any]:
        return await asyncio.gather(*(stores(key).aget("name") for _ in range(2)), return_exceptions=True)

    def use_threads(key: str) -> list[Any]:
        return in_threads(2, lambda: stores(key).get("name"))

    def use_tasks(key: str) -> list[Any]:
        return asyncio.run(use(key))

    for run in (use_threads, use_tasks):
        with Proxy(shared().port) as proxy, site(proxy.url(), **limits) as stores:
            key, answer = visitor(stores), threading.Event()

            def hold(number: int, data: bytes, answer: threading.Event = answer) -> Passed:
                answer.wait(1)
                return data, False

            proxy.on_reply = hold
            found = run(key)
            answer.set()
            (error,) = [each for each in found if each != "ada"]
            with pytest.raises(StorageUnavailable, match=WANTED):
                raise error


def test_a_task_that_was_cancelled_while_it_waited_keeps_nobody_waiting() -> None:
    async def use(key: str) -> None:
        first = asyncio.create_task(stores(key).aget("name"))
        waiting = [asyncio.create_task(stores(key).aget("name")) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        assert await asyncio.gather(first, *waiting[1:]) == ["ada"] * 3

    with site(shared().url(), CONNECTION_POOL_KWARGS={"max_connections": 1}, SOCKET_CONNECT_TIMEOUT=PATIENCE) as stores:
        asyncio.run(use(visitor(stores)))


def test_a_task_that_is_cancelled_as_a_connection_fails_is_cancelled() -> None:
    """Its permission to open another connection goes to the next task."""

    async def use(key: str) -> list[Any]:
        await stores(key).aget("name")
        (connections, _), *_ = stores.get_storage().client._of_loops.values()  # type: ignore[attr-defined]
        free = connections._free

        def free_and_cancel(*given: Any) -> None:
            connections._free = free
            free(*given)
            tasks[1].cancel()

        def cut(number: int, data: bytes) -> Passed:
            proxy.on_reply = everything
            they_wait.wait(PATIENCE)
            return b"", True

        connections._free, proxy.on_reply = free_and_cancel, cut
        tasks = [asyncio.create_task(stores(key).aget("name")) for _ in range(3)]
        for _ in range(10):  # the first has sent its request
            await asyncio.sleep(0)
        assert len(connections._waiting) == 2
        they_wait.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    limits = {"CONNECTION_POOL_KWARGS": {"max_connections": 1}, "SOCKET_CONNECT_TIMEOUT": PATIENCE}
    they_wait = threading.Event()
    with Proxy(shared().port) as proxy, site(proxy.url(), **limits) as stores:
        first, second, third = asyncio.run(use(visitor(stores)))
    assert (first, third) == ("ada", "ada")
    assert isinstance(second, asyncio.CancelledError)


@pytest.mark.parametrize("kind", [{}, LENT], ids=["kept", "lent"])
def test_the_wait_for_a_connection_does_not_shorten_the_time_for_an_answer(kind: dict[str, Any]) -> None:
    """Each of six gets its answer in parts, in 0.2 seconds. The last waits for 1 second before."""

    def slowly(number: int, data: bytes) -> Passed:
        with suppress(OSError):
            proxy.send_to_client(number, data[:100])
        time.sleep(0.2)  # the delay is the point
        return data[100:], False

    arguments = {**kind.get("CONNECTION_POOL_KWARGS", {}), "max_connections": 1}
    options = {**kind, "CONNECTION_POOL_KWARGS": arguments, "SOCKET_CONNECT_TIMEOUT": PATIENCE, "SOCKET_TIMEOUT": 0.6}
    with Proxy(shared().port) as proxy, site(proxy.url(), **options) as stores:
        name = "x" * 1000
        key = visitor(stores, name)
        proxy.on_reply = slowly
        assert in_threads(6, lambda: stores(key).get("name")) == [name] * 6


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_event_loop_ends_though_the_network_has_dropped_its_connections(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With TLS the other side confirms the end. All connections wait for that together, and the log stays empty."""

    async def use() -> None:
        await asyncio.gather(*(stores("abcdefgh").aget("name") for _ in range(5)))
        (connections, _), *_ = stores.get_storage().client._of_loops.values()  # type: ignore[attr-defined]
        assert len(connections._idle) > 1
        for link in connections._idle:
            link.connection.socket_connect_timeout = 0.2  # also how long it waits for the end
        firewall.drop()

    with TlsProxy(shared().port, tmp_path) as tls, Proxy(tls.port) as proxy:
        kind = {"SOCKET_CONNECT_TIMEOUT": PATIENCE, "CONNECTION_POOL_KWARGS": {"ssl_ca_certs": tls.authority}}
        with site(proxy.url().replace("redis", "rediss"), **kind) as stores:
            firewall = Firewall(proxy)
            asyncio.run(use())
            firewall.over.set()
            gc.collect()  # Python closes the rest now, and warns of it
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


# Failovers by address.


@contextmanager
def failover(module: Any) -> Iterator[tuple[type[SessionStore], Callable[[], None]]]:
    """Yield a site behind an address, and a function that moves the address to a new master."""
    with RedisServer() as old, RedisServer() as new, Proxy(old.port) as address, site(address.url(), module) as stores:

        def fail_over() -> None:
            address.server_port = new.port
            with old.client() as control:
                control.replicaof("127.0.0.1", new.port)

        yield stores, fail_over


@both_engines
def test_a_demoted_server_is_not_read(module: Any) -> None:
    """Its kept connections do not know a visitor who has just signed in at the new master."""
    with failover(module) as (stores, fail_over):
        key = visitor(stores)
        in_threads(5, lambda: stores(key).get("name"))
        fail_over()
        new = visitor(stores, "bob")
        assert in_threads(5, lambda: stores(new).get("name")) == ["bob"] * 5


@both_engines
def test_a_process_that_only_reads_notices_a_demotion_at_once(module: Any) -> None:
    async def read(key: str) -> Any:
        return await stores(key).aget("name")

    async def use() -> None:
        assert await read(key) == "ada"
        fail_over()
        assert await read(key) is None  # nothing was replicated to the new master

    with failover(module) as (stores, fail_over):
        key = visitor(stores)
        assert stores(key).get("name") == "ada"
        asyncio.run(use())
        assert stores(key).get("name") is None


@both_engines
def test_a_replica_never_answers_that_there_is_no_session(module: Any) -> None:
    with RedisServer() as server, site(server.url(), module) as stores:
        key = visitor(stores)
        with server.client() as control:
            control.replicaof("127.0.0.1", shared().port)
        for ask in (
            lambda: stores(key).get("name"),
            lambda: stores("abcdefghij").get("name"),
            lambda: stores().exists(key),
            lambda: asyncio.run(stores("abcdefghij").aget("name")),
        ):
            with pytest.raises(StorageUnavailable, match="is a replica"):
                ask()


def test_a_user_who_may_not_ask_who_is_master_reads_on(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer() as server, server.client() as control:
        control.execute_command("ACL", "SETUSER", "site", "on", ">secret", "~*", "+@all", "-wait")
        with site(f"redis://site:secret@127.0.0.1:{server.port}") as stores:
            key = visitor(stores)
            assert [stores(key).get("name") for _ in range(2)] == ["ada"] * 2
    (record,) = caplog.records
    assert "does not answer the command WAIT" in record.getMessage()
    assert "secret" not in record.getMessage()


# Silent drops.


class Firewall:
    """Stops forwarding on its open connections, without a word."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy, self._until = proxy, 0
        self.over = threading.Event()
        proxy.on_request = self._pass

    def drop(self) -> None:
        self._until = self._proxy.connections

    def _pass(self, number: int, data: bytes) -> Passed:
        if number < self._until:
            self.over.wait(PATIENCE)
            return b"", True
        return data, False


def test_one_dead_connection_takes_the_idle_ones_with_it() -> None:
    with Proxy(shared().port) as proxy, site(proxy.url(), SOCKET_TIMEOUT=0.3) as stores:
        key, firewall = visitor(stores), Firewall(proxy)
        with ThreadPoolExecutor(8) as pool:
            together = threading.Barrier(8, timeout=PATIENCE)

            def hold_one(_: int) -> None:
                link = connections_of(stores)._idle.pop() if connections_of(stores)._idle else None
                together.wait()
                if link is not None:
                    connections_of(stores)._idle.append(link)
                stores(key).get("name")

            list(pool.map(hold_one, range(8)))
        idle = len(connections_of(stores)._idle)
        firewall.drop()
        with pytest.raises(StorageUnavailable, match=r"no answer within 0\.3 seconds"):
            stores(key).get("name")
        assert idle >= 1
        assert [stores(key).get("name") for _ in range(8)] == ["ada"] * 8
        firewall.over.set()


def test_a_connection_that_was_idle_for_too_long_is_not_used() -> None:
    with Proxy(shared().port) as proxy, site(proxy.url(), storage={"max_idle": 0}) as stores:
        key = visitor(stores)
        before = proxy.connections
        assert stores(key).get("name") == "ada"
        assert proxy.connections == before + 1
    with Proxy(shared().port) as proxy, site(proxy.url()) as stores:
        key = visitor(stores)
        before = proxy.connections
        assert stores(key).get("name") == "ada"
        assert proxy.connections == before


def test_keepalive_is_on() -> None:
    def has_keepalive(sock: Any) -> bool:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    async def use(key: str) -> bool:
        await stores(key).aget("name")
        (way, _), *_ = stores.get_storage().client._of_loops.values()  # type: ignore[attr-defined]
        return has_keepalive(connection_of(way)._writer.get_extra_info("socket"))

    with site(shared().url()) as stores:
        key = visitor(stores)
        assert has_keepalive(connection_of(connections_of(stores))._sock)
        assert asyncio.run(use(key))


# Bounded time.


def test_signals_do_not_prolong_the_timeout() -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    with RedisServer() as server, site(server.url(), SOCKET_TIMEOUT=0.4) as stores:
        key = visitor(stores)
        server.pause()
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        start = time.monotonic()
        try:
            with pytest.raises(StorageUnavailable, match=r"no answer within 0\.4 seconds"):
                stores(key).get("name")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            server.resume()
        assert time.monotonic() - start < 2


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_reply_that_trickles_has_one_deadline(mode: str) -> None:
    over = threading.Event()

    def trickle(number: int, data: bytes) -> Passed:
        for byte in data:
            if over.wait(0.1):
                break
            with suppress(OSError):
                proxy.send_to_client(number, bytes([byte]))
        return b"", True

    with Proxy(shared().port) as proxy, site(proxy.url(), SOCKET_TIMEOUT=0.5) as stores:
        key = visitor(stores, "x" * 100)
        start = time.monotonic()
        if mode == "sync":
            proxy.on_reply = trickle
            with pytest.raises(StorageUnavailable, match="no answer within"):
                stores(key).get("name")
        else:

            async def use() -> None:
                await stores(key).aget("name")
                proxy.on_reply = trickle
                with pytest.raises(StorageUnavailable, match="no answer within"):
                    await stores(key).aget("name")

            asyncio.run(use())
        assert time.monotonic() - start < 3
        over.set()


def test_a_server_that_hangs_is_tried_by_some_and_fails_the_others_at_once() -> None:
    with RedisServer() as server, site(server.url(), SOCKET_TIMEOUT=0.2) as stores:
        key = visitor(stores)
        server.pause()
        try:
            for _ in range(3):
                with pytest.raises(StorageUnavailable, match="TimeoutError"):
                    stores(key).get("name")
            start = time.monotonic()
            with pytest.raises(StorageUnavailable, match="3 requests in a row had no answer in time"):
                stores(key).get("name")
            assert time.monotonic() - start < 0.1
        finally:
            server.resume()
        resumed = time.monotonic()
        while True:
            with suppress(StorageUnavailable):
                assert stores(key).get("name") == "ada"
                break
        assert time.monotonic() - resumed < 1.5


def test_with_fail_fast_after_0_each_request_tries() -> None:
    with (
        RedisServer() as server,
        site(server.url(), storage={"fail_fast_after": 0}, SOCKET_TIMEOUT=0.05) as stores,
    ):
        key = visitor(stores)
        server.pause()
        try:
            for _ in range(6):
                with pytest.raises(StorageUnavailable, match=r"no answer within|Timeout reading"):
                    stores(key).get("name")
        finally:
            server.resume()


def test_a_connection_that_the_kernel_gives_up_is_an_outage() -> None:
    """Keepalive and retransmissions end in ETIMEDOUT, without a timeout in the settings."""

    class Dead:
        def __init__(self, sock: Any) -> None:
            self._sock = sock

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sock, name)

        def sendall(self, data: bytes) -> None:
            raise TimeoutError(110, "Connection timed out")

    with site(shared().url(), SOCKET_TIMEOUT=None) as stores:
        key = visitor(stores)
        link = connections_of(stores)._idle[-1]
        link._sock = Dead(link._sock)
        assert stores(key).get("name") == "ada"  # on another connection
