"""`python -m tests.support.redis_gevent ENGINE` uses sessions in greenlets, as a site on gevent does.

If that goes wrong, an assertion fails. It is a separate program, because gevent replaces threads and sockets in the
whole process.
"""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

import os
import select
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import django
import gevent
from django.test import override_settings
from gevent.event import Event

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

from gsession_django import SessionStore, StorageUnavailable
from gsession_django.redis.commands import Batch
from tests.support.proxies import Passed, Proxy
from tests.support.redis_servers import RedisServer, settings_for

PATIENCE = 30.0


class Site:
    """Sessions of an engine on a server, through a proxy."""

    def __init__(self, engine: str, server: RedisServer, proxy: Proxy) -> None:
        self.server, self.proxy = server, proxy
        self._stores: type[SessionStore] = import_module(engine).SessionStore
        self.storage: Any = self._stores.get_storage()

    @property
    def idle(self) -> list[Any]:
        """The connections that the engine keeps."""
        links: list[Any] = self.storage.client._way._idle
        return links

    def visitor(self, name: str) -> str:
        store = self._stores()
        store["name"] = name
        store.save()
        assert store.session_key is not None
        return store.session_key

    def name_of(self, key: str) -> Any:
        return self._stores(key).get("name")

    def names_of(self, key: str, number: int) -> list[Any]:
        """Let so many greenlets read a session at once, and return the name, or the message of an outage, for each."""
        greenlets = [gevent.spawn(self._told, key) for _ in range(number)]
        assert len(gevent.joinall(greenlets, timeout=PATIENCE)) == number, "some hang"
        return [greenlet.value for greenlet in greenlets]

    def _told(self, key: str) -> Any:
        try:
            return self.name_of(key)
        except StorageUnavailable as error:
            return str(error)


def burst(site: Site) -> None:
    key = site.visitor("ada")
    assert site.names_of(key, 300) == ["ada"] * 300
    assert site.proxy.connections == 100


def foreign_reply(site: Site) -> None:
    """A reply with Ada's session lies unread on the next connection."""
    ada, bob = site.visitor("ada"), site.visitor("bob")
    name = site.storage._keys(site._stores(ada).session_id)[0]
    read = "HGETALL" if site.storage.redis_type == "hash" else "GET"
    (link,) = site.idle
    link.connection._sock.sendall(Batch((read, name), ("PTTL", name)).packed())
    assert select.select([link.connection._sock], [], [], PATIENCE)[0]
    assert site.name_of(bob) == "bob"


def closed_while_idle(site: Site) -> None:
    key = site.visitor("ada")
    for reset in (False, True):
        site.names_of(key, 5)
        site.proxy.cut_all(reset)
        assert site.names_of(key, 5) == ["ada"] * 5


def silent_drop(site: Site) -> None:
    key, over = site.visitor("ada"), Event()
    site.names_of(key, 8)
    idle, dropped = len(site.idle), site.proxy.connections

    def drop(number: int, data: bytes) -> Passed:
        if number < dropped:
            over.wait(PATIENCE)
        return data, False

    site.proxy.on_request = drop
    try:
        (said,) = site.names_of(key, 1)
        assert "no answer within 0.3 seconds" in said, said
        assert idle > 1
        assert site.names_of(key, 8) == ["ada"] * 8
    finally:
        over.set()


def hanging_server(site: Site) -> None:
    key = site.visitor("ada")
    site.server.pause()
    try:
        start = time.monotonic()
        site.names_of(key, 20)
        assert time.monotonic() - start < 2
        start = time.monotonic()
        (said,) = site.names_of(key, 1)
        assert "in a row had no answer in time" in said, said
        assert time.monotonic() - start < 0.2
    finally:
        site.server.resume()
    resumed = time.monotonic()
    while site.names_of(key, 1) != ["ada"]:
        assert time.monotonic() - resumed < 1.5
        gevent.sleep(0.01)  # no event tells when the engine tries again


def killed_greenlets(site: Site) -> None:
    """Kill greenlets, as a worker kills slow requests: the other greenlets get their connections."""
    ada, bob = site.visitor("ada"), site.visitor("bob")
    for moment in range(30):
        greenlets = [gevent.spawn(site.name_of, ada) for _ in range(4)]
        gevent.sleep(moment * 0.0001)  # the test wants to hit this moment
        gevent.killall(greenlets[::2])
        assert site.names_of(bob, 3) == ["bob"] * 3
        gevent.joinall(greenlets, timeout=PATIENCE)
        assert [greenlet.value for greenlet in greenlets[1::2]] == ["ada"] * 2


SHORT = {"SOCKET_TIMEOUT": 0.3, "SOCKET_CONNECT_TIMEOUT": 0.3}
SCENARIOS: list[tuple[Callable[[Site], None], dict[str, Any]]] = [
    (burst, {"CONNECTION_POOL_KWARGS": {"max_connections": 100}, "SOCKET_CONNECT_TIMEOUT": PATIENCE}),
    (foreign_reply, {}),
    (closed_while_idle, {}),
    (silent_drop, SHORT),
    (hanging_server, SHORT),
    (killed_greenlets, {"CONNECTION_POOL_KWARGS": {"max_connections": 2}, "SOCKET_CONNECT_TIMEOUT": PATIENCE}),
]


def main(engine: str) -> None:
    with RedisServer() as server:
        for scenario, options in SCENARIOS:
            with (
                Proxy(server.port) as proxy,
                override_settings(**settings_for(engine, proxy.url(), {"OPTIONS": options})),
            ):
                scenario(Site(engine, server, proxy))


if __name__ == "__main__":
    main(*sys.argv[1:])
