"""Sessions in a database expire by the server's clock: a wrong clock on a host has no effect."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import connections, transaction
from django.test.utils import override_settings

from gsession_django import SessionMap
from gsession_django.backends.database import DatabaseStorage, SessionStore
from gsession_django.database import clock
from gsession_django.models import Session
from tests.support.database_servers import SERVERS
from tests.support.databases import KINDS, database, options_for
from tests.support.engines import new_session, stored

pytestmark = pytest.mark.once

HOUR = 3600
wrong = pytest.mark.parametrize("by", [-2 * HOUR, 2 * HOUR], ids=["a slow host", "a fast host"])


@pytest.fixture(params=SERVERS)
def alias(request: pytest.FixtureRequest) -> Iterator[str]:
    with database(request.param) as found, override_settings(**options_for(found)):
        yield found


@contextmanager
def host_clock(by: float) -> Iterator[None]:
    """Set this host's clock fast by so many seconds. The server's clock stays right."""
    with pytest.MonkeyPatch.context() as patch:
        seconds, nanoseconds = time.time, time.time_ns
        patch.setattr(time, "time", lambda: seconds() + by)
        patch.setattr(time, "time_ns", lambda: nanoseconds() + round(by * 1_000_000_000))
        yield


def left(storage: DatabaseStorage, session_id: str) -> float:
    session = storage.get_session(session_id, HOUR)
    assert session is not None
    assert session.ttl_left is not None
    return session.ttl_left


def lives_for_an_hour(storage: DatabaseStorage, session_id: str) -> bool:
    return HOUR - 60 < left(storage, session_id) <= HOUR


@wrong
def test_a_host_whose_clock_is_wrong_purges_no_live_session(alias: str, by: float) -> None:
    storage = DatabaseStorage(alias)
    assert storage.create("live", SessionMap({"key": 1}), HOUR)
    with host_clock(by):
        assert sum(storage.purge(10, dry_run=True)) == 0
        assert sum(storage.purge(10)) == 0
        assert list(storage.ids()) == ["live"]
    assert lives_for_an_hour(storage, "live")


@wrong
def test_a_host_whose_clock_is_wrong_purges_expired_sessions(alias: str, by: float) -> None:
    storage = DatabaseStorage(alias)
    assert storage.create("over", SessionMap({"key": 1}), -1)
    with host_clock(by):
        assert list(storage.ids()) == []
        assert sum(storage.purge(10, dry_run=True)) == 1
        assert sum(storage.purge(10)) == 1


@wrong
def test_a_host_whose_clock_is_wrong_serves_its_visitors_like_any_other(alias: str, by: float) -> None:
    storage = DatabaseStorage(alias)
    key = new_session(SessionStore, {"key": 1})
    with host_clock(by):
        store = SessionStore(key)
        store["key"] = 2
        store.save()
        store.cycle_key()
        store.save()
        assert stored(SessionStore, store.session_key) == {"key": 2}
        assert storage.update_ttl(str(store.session_id), HOUR)
        assert lives_for_an_hour(storage, str(store.session_id))
        new = new_session(SessionStore, {"key": 3, "_session_expiry": HOUR})
    assert stored(SessionStore, store.session_key) == {"key": 2}
    assert lives_for_an_hour(storage, str(store.session_id))
    assert stored(SessionStore, new) == {"key": 3, "_session_expiry": HOUR}
    assert lives_for_an_hour(storage, str(SessionStore(new).session_id))


@wrong
def test_a_host_whose_clock_is_wrong_revives_no_session(alias: str, by: float) -> None:
    storage = DatabaseStorage(alias)
    assert storage.create("over", SessionMap({"key": 1}), -1)
    with host_clock(by):
        assert storage.get_session("over", HOUR) is None
        assert not storage.exists("over")
        assert not storage.update_ttl("over", HOUR)
        assert not storage.move("over", "new", HOUR)
        assert storage.create("over", SessionMap({"key": 2}), HOUR)  # the id of an expired session is free
    assert lives_for_an_hour(storage, "over")


@wrong
def test_a_merge_in_a_transaction_goes_by_the_servers_clock_too(alias: str, by: float) -> None:
    storage = DatabaseStorage(alias)
    assert storage.create("session", SessionMap({}), HOUR)
    with host_clock(by), transaction.atomic(alias):
        held = [storage.get_session("session", HOUR) for _ in range(2)]
        for number, session in enumerate(held):
            assert session is not None
            session[str(number)] = number
            assert storage.apply("session", session, HOUR)
    assert dict(storage.get_session("session", HOUR) or {}) == {"0": 0, "1": 1}
    assert lives_for_an_hour(storage, "session")


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Kathmandu"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_time_is_utc_whatever_the_connections_time_zone(kind: str, zone: str) -> None:
    with database(kind, TIME_ZONE=zone) as alias:
        connection = connections[alias]
        if connection.vendor == "mysql":  # Django does not set the time zone of its connections
            with connection.cursor() as cursor:
                cursor.execute("SET time_zone = %s", ["+05:45"])
        now = time.time()
        assert DatabaseStorage(alias).create("session", SessionMap({}), HOUR)
        assert clock.now(connection) / 1000 == pytest.approx(now, abs=60)
        expires = Session._default_manager.using(alias).get().expires
        assert expires / 1000 == pytest.approx(now + HOUR, abs=60)
