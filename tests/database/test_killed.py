"""A process that is killed while it writes to a database leaves the previous session or the new one."""

import random
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from gsession_django import SessionMap
from tests.engines.test_killed_writers import number_of, payload
from tests.support.database_servers import shared
from tests.support.databases import KINDS
from tests.support.engines import Place, engine, id_of, new_session
from tests.support.processes import TIMEOUT, Parent, Worker

pytestmark = pytest.mark.once

KILLS = 12
SIZES = [10, 5_000, 70_000]


def write_until_killed(parent: Parent, place: Place, key: str, number: int) -> None:
    """Save the session again and again, with a higher number each time and sometimes a new key. Report each save."""
    with place.opened() as store_class:
        while True:
            number += 1
            store = store_class(key)
            store.update(payload(number, SIZES[number % len(SIZES)]))
            if number % 5 == 0:
                store.cycle_key()
                assert store.session_key is not None
                key = store.session_key
                parent.say(("cycled", key))
            store.save()
            parent.say(("saved", number))


CLIENTS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'",
    "mariadb": "SELECT count(*) FROM information_schema.processlist WHERE user = 'root'",
}


def clients(kind: str) -> int:
    """Return how many connections the server has. It may still run a statement of each."""
    if kind not in CLIENTS:
        return 0
    with closing(shared(kind).connect()) as connection, connection.cursor() as cursor:
        cursor.execute(CLIENTS[kind])
        return int(cursor.fetchone()[0])


def kill_somewhen(writer: Worker, seconds: float) -> list[tuple[str, Any]]:
    """Kill a writer some time after its first report, and return all its reports."""
    heard = [writer.hear()]
    killer = threading.Timer(seconds, writer.kill)
    killer.start()
    with suppress(EOFError):
        while True:
            heard.append(writer.hear())
    killer.join(TIMEOUT)
    return heard


@pytest.mark.parametrize("kind", KINDS)
def test_acknowledged_changes_read_back_whole_whenever_their_writer_is_killed(kind: str, tmp_path: Path) -> None:
    with engine(kind, tmp_path) as store_class:
        storage, number = store_class.get_storage(), 0
        key = new_session(store_class, payload(number, 10))
        for _ in range(KILLS):
            before = clients(kind)
            with Worker(tmp_path, write_until_killed, Place.here(), key, number) as writer:
                for what, value in kill_somewhen(writer, random.uniform(0, 0.03)):
                    if what == "saved":
                        number = value
                    else:
                        key = value
            while clients(kind) > before:
                time.sleep(0.001)  # the server sends no event when it notices
            (session_id,) = storage.ids()
            session = storage.get_session(session_id, 60)
            assert isinstance(session, SessionMap)
            found = number_of(session)
            assert found in (number, number + 1)
            number = found
            if session_id != id_of(store_class, key):  # the writer died before it could report the new key
                assert (number + 1) % 5 == 0
                storage.remove_all(session_id)
                key = new_session(store_class, payload(number, 10))
