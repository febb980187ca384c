"""Sign-ins, sign-outs, new keys and ends at random, in parallel: then the index and the sessions agree exactly."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.base import UpdateError

from gsession_django import SessionStore
from gsession_django.users import aend_sessions, asessions_of, end_session, end_sessions, sessions_of
from tests.support.engines import Place, engine
from tests.support.processes import TIMEOUT, Parent, workers
from tests.support.sign_ins import asign_in, ids_of, sign_in
from tests.users.conftest import INDEXED

pytestmark = pytest.mark.once

USERS, WORKERS, STEPS = 1000, 4, 300
# Of those, users whom several workers meet at once.
BUSY = 5


@pytest.fixture(params=[name for name in INDEXED if name != "memory"])
def shared_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[SessionStore]]:
    with engine(request.param, tmp_path) as store_class:
        yield store_class


def a_user(chance: random.Random) -> str:
    return str(chance.randrange(BUSY if chance.random() < 0.5 else USERS))


def live(store_class: type[SessionStore], worker: int) -> None:
    """Let visitors do what they do, one after the other."""
    chance = random.Random(worker)
    keys: list[str | None] = []
    for _ in range(STEPS):
        what = chance.choice(["in", "in", "in", "out", "cycle", "cycle", "end one", "end all"])
        with suppress(UpdateError):
            if what == "in":
                keys.append(sign_in(store_class(), a_user(chance)).session_key)
            elif what == "end all":
                end_sessions(a_user(chance))
            elif what == "end one":
                for session in sessions_of(a_user(chance))[:1]:
                    end_session(session)
            elif keys:
                store = store_class(keys.pop(chance.randrange(len(keys))))
                if store.get(SESSION_KEY) is None:
                    continue
                if what == "out":
                    store.flush()
                else:
                    store.cycle_key()
                    store.save()
                    keys.append(store.session_key)


async def alive(store_class: type[SessionStore], worker: int) -> None:
    """The same on an event loop."""
    chance = random.Random(worker)
    keys: list[str | None] = []
    for _ in range(STEPS):
        what = chance.choice(["in", "in", "in", "out", "cycle", "cycle", "list", "end all"])
        with suppress(UpdateError):
            if what == "in":
                keys.append((await asign_in(store_class(), a_user(chance))).session_key)
            elif what == "end all":
                await aend_sessions(a_user(chance))
            elif what == "list":
                await asessions_of(a_user(chance))
            elif keys:
                store = store_class(keys.pop(chance.randrange(len(keys))))
                if await store.aget(SESSION_KEY) is None:
                    continue
                if what == "out":
                    await store.aflush()
                else:
                    await store.acycle_key()
                    await store.asave()
                    keys.append(store.session_key)


def check(store_class: type[SessionStore]) -> None:
    """Compare the index with what is in the sessions."""
    storage = store_class.get_storage()
    truth: dict[str, set[str]] = defaultdict(set)
    for session_id in storage.ids():
        session = storage.get_session(session_id, 1)
        assert session is not None
        truth[session[SESSION_KEY]].add(session_id)
    assert truth
    for user in map(str, range(USERS)):
        assert set(storage.sessions_of(user)) == ids_of(user) == truth[user], user


def test_threads(store_class: type[SessionStore]) -> None:
    with ThreadPoolExecutor(WORKERS) as pool:
        for done in [pool.submit(live, store_class, worker) for worker in range(WORKERS)]:
            done.result(TIMEOUT)
    check(store_class)


def test_tasks(store_class: type[SessionStore]) -> None:
    async def all_at_once() -> None:
        await asyncio.gather(*(alive(store_class, worker) for worker in range(WORKERS)))

    asyncio.run(all_at_once())
    check(store_class)


def live_in_process(parent: Parent, worker: int, place: Place) -> None:
    with place.opened() as store_class:
        live(store_class, worker)
        parent.say()


def test_processes(shared_store: type[SessionStore], tmp_path: Path) -> None:
    with workers(tmp_path, WORKERS, live_in_process, Place.here()) as processes:
        for process in processes:
            process.hear()
    check(shared_store)
