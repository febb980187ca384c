"""Overlapping requests lose nothing, and deleted sessions stay deleted: in threads, processes and tasks."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.base import UpdateError

from gsession_django import SessionStore
from tests.support.engines import ENGINES, SHARED, Place, engine, id_of, new_session, stored
from tests.support.processes import TIMEOUT, Parent, let_them_meet, workers

pytestmark = pytest.mark.once

WRITERS, ROUNDS, FREE_ROUNDS, TASKS = 8, 10, 40, 50

Write = Callable[[SessionStore, str], None]


def own_key(store: SessionStore, name: str) -> None:
    store[name] = name


def own_item(store: SessionStore, name: str) -> None:
    store["cart"][name] = name


WRITES = pytest.mark.parametrize("write", [own_key, own_item])


def names_in(data: dict[str, object] | None) -> set[str]:
    """Return all names that the writers have left in a session, in whichever place."""
    assert data is not None
    cart = data.pop("cart")
    assert isinstance(cart, dict)
    return {*data, *cart}


def all_names(rounds: int) -> set[str]:
    return {f"{writer}-{turn}" for writer in range(WRITERS) for turn in range(rounds)}


@pytest.fixture(params=ENGINES)
def store_class(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[SessionStore]]:
    with engine(request.param, tmp_path) as found:
        yield found


@pytest.fixture(params=SHARED)
def shared_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[SessionStore]]:
    """Yield the SessionStore of an engine that several processes share."""
    with engine(request.param, tmp_path) as found:
        yield found


def turns() -> Iterator[int]:
    """Count the turns of a writer. It stops when the session is gone, or when that will clearly not happen."""
    start = time.monotonic()
    for turn in itertools.count():
        if time.monotonic() > start + 20:
            return
        yield turn


def in_threads(work: Callable[[int], object], count: int = WRITERS) -> list[object]:
    with ThreadPoolExecutor(count) as pool:
        return [future.result(TIMEOUT) for future in [pool.submit(work, number) for number in range(count)]]


# Nothing is lost.


@WRITES
def test_eight_threads_that_all_read_before_one_saves_lose_nothing(
    store_class: type[SessionStore], write: Write
) -> None:
    key = new_session(store_class, {"cart": {}})
    barrier = threading.Barrier(WRITERS, timeout=TIMEOUT)

    def work(writer: int) -> None:
        for turn in range(ROUNDS):
            store = store_class(key)
            store.get("cart")
            write(store, f"{writer}-{turn}")
            barrier.wait()
            store.save()
            barrier.wait()

    in_threads(work)
    assert names_in(stored(store_class, key)) == all_names(ROUNDS)


@WRITES
def test_eight_threads_that_run_freely_lose_nothing(store_class: type[SessionStore], write: Write) -> None:
    key = new_session(store_class, {"cart": {}})
    start = threading.Barrier(WRITERS, timeout=TIMEOUT)

    def work(writer: int) -> None:
        start.wait()
        for turn in range(FREE_ROUNDS):
            store = store_class(key)
            write(store, f"{writer}-{turn}")
            store.save()

    in_threads(work)
    assert names_in(stored(store_class, key)) == all_names(FREE_ROUNDS)


def write_in_lockstep(parent: Parent, writer: int, place: Place, key: str, write: Write) -> None:
    with place.opened() as store_class:
        for turn in range(ROUNDS):
            store = store_class(key)
            store.get("cart")
            write(store, f"{writer}-{turn}")
            parent.meet()
            store.save()
            parent.meet()


@WRITES
def test_eight_processes_that_all_read_before_one_saves_lose_nothing(
    shared_store: type[SessionStore], tmp_path: Path, write: Write
) -> None:
    key = new_session(shared_store, {"cart": {}})
    with workers(tmp_path, WRITERS, write_in_lockstep, Place.here(), key, write) as writers:
        for _ in range(2 * ROUNDS):
            let_them_meet(writers)
    assert names_in(stored(shared_store, key)) == all_names(ROUNDS)


def write_freely(parent: Parent, writer: int, place: Place, key: str, write: Write) -> None:
    with place.opened() as store_class:
        parent.meet()
        requests = []
        for turn in range(FREE_ROUNDS):
            start = time.monotonic()
            store = store_class(key)
            store.get("cart")
            write(store, f"{writer}-{turn}")
            store.save()
            requests.append((start, time.monotonic()))
        parent.say(requests)


@WRITES
def test_eight_processes_that_run_freely_lose_nothing(
    shared_store: type[SessionStore], tmp_path: Path, write: Write
) -> None:
    key = new_session(shared_store, {"cart": {}})
    with workers(tmp_path, WRITERS, write_freely, Place.here(), key, write) as writers:
        let_them_meet(writers)
        requests = sorted(request for writer in writers for request in writer.hear())
    assert names_in(stored(shared_store, key)) == all_names(FREE_ROUNDS)
    overlapping = sum(later[0] < earlier[1] for earlier, later in itertools.pairwise(requests))
    assert overlapping > 0, "no two requests overlapped, so this test proves nothing"


@pytest.mark.parametrize("first", ["sets", "removes", "changes in place", "clears", "touches"])
def test_a_request_that_saves_twice_loses_nothing_that_another_saved_before(
    store_class: type[SessionStore], first: str
) -> None:
    key = new_session(store_class, {"key": 1, "cart": {}})
    held, other = store_class(key), store_class(key)
    assert held["key"] == 1
    own_item(other, "theirs")
    other["theirs"] = 1
    other.save()
    if first == "sets":
        held["key"] = 2
    elif first == "removes":
        del held["key"]
    elif first == "changes in place":
        own_item(held, "mine")
    elif first == "clears":
        held.clear()
    held.save()
    held["more"] = 1
    held.save()
    found = stored(store_class, key)
    assert found is not None
    if first == "clears":
        assert found == {"more": 1}
    else:
        assert (found["theirs"], found["cart"]["theirs"], found["more"]) == (1, "theirs", 1)


# Deleted stays deleted.


def ending_of(save: Callable[[], None]) -> str:
    try:
        save()
    except UpdateError:
        return "UpdateError"
    return "saved"


@WRITES
def test_threads_that_hold_a_session_deleted_meanwhile_get_update_error(
    store_class: type[SessionStore], write: Write
) -> None:
    key = new_session(store_class, {"cart": {}})
    read, deleted = (threading.Barrier(WRITERS + 1, timeout=TIMEOUT) for _ in range(2))

    def work(writer: int) -> str:
        store = store_class(key)
        if writer == WRITERS:
            read.wait()
            store.flush()
            deleted.wait()
            return "deleted"
        write(store, str(writer))
        read.wait()
        deleted.wait()
        return ending_of(store.save)

    assert in_threads(work, WRITERS + 1) == ["UpdateError"] * WRITERS + ["deleted"]
    assert stored(store_class, key) is None
    assert list(store_class.get_storage().ids()) == []


@WRITES
def test_a_session_deleted_while_threads_save_it_freely_stays_deleted(
    store_class: type[SessionStore], write: Write
) -> None:
    key = new_session(store_class, {"cart": {}})
    busy = threading.Barrier(WRITERS + 1, timeout=TIMEOUT)

    def work(writer: int) -> str:
        if writer == WRITERS:
            busy.wait()
            store_class(key).flush()
            return "deleted"
        for turn in turns():
            store = store_class(key)
            if not store.get("cart") and store.session_key is None:
                return "found it gone"
            write(store, f"{writer}-{turn % 50}")
            if ending_of(store.save) == "UpdateError":
                return "UpdateError"
            if turn == 2:
                busy.wait()
        return "never noticed"

    assert set(in_threads(work, WRITERS + 1)) <= {"deleted", "UpdateError", "found it gone"}
    assert stored(store_class, key) is None
    assert list(store_class.get_storage().ids()) == []


def save_after_a_meeting(parent: Parent, writer: int, place: Place, key: str) -> None:
    with place.opened() as store_class:
        store = store_class(key)
        own_item(store, str(writer))
        parent.meet()
        if writer == WRITERS:
            store.flush()
        parent.meet()
        parent.say("deleted" if writer == WRITERS else ending_of(store.save))


def test_processes_that_hold_a_session_deleted_meanwhile_get_update_error(
    shared_store: type[SessionStore], tmp_path: Path
) -> None:
    key = new_session(shared_store, {"cart": {}})
    with workers(tmp_path, WRITERS + 1, save_after_a_meeting, Place.here(), key) as those:
        let_them_meet(those)
        let_them_meet(those)
        endings = [worker.hear() for worker in those]
    assert endings == ["UpdateError"] * WRITERS + ["deleted"]
    assert stored(shared_store, key) is None
    assert list(shared_store.get_storage().ids()) == []


def save_until_it_is_gone(parent: Parent, writer: int, place: Place, key: str) -> None:
    """Save one item after another until the session is gone, and then report the saved ones."""
    with place.opened() as store_class:
        parent.meet()
        saved = []
        for turn in turns():
            store = store_class(key)
            name = f"{writer}-{turn}"
            if "cart" not in store:
                break
            own_item(store, name)
            if ending_of(store.save) == "UpdateError":
                break
            saved.append(name)
            if turn == 2:
                parent.say("busy")
        else:
            raise AssertionError("it went on saving a session that is gone")
        parent.say(saved)


def test_a_session_deleted_while_processes_save_it_freely_stays_deleted(
    shared_store: type[SessionStore], tmp_path: Path
) -> None:
    key = new_session(shared_store, {"cart": {}})
    with workers(tmp_path, WRITERS, save_until_it_is_gone, Place.here(), key) as those:
        let_them_meet(those)
        assert {worker.hear() for worker in those} == {"busy"}
        shared_store(key).flush()
        assert all(len(worker.hear()) >= 3 for worker in those)
    assert stored(shared_store, key) is None
    assert list(shared_store.get_storage().ids()) == []


# A new key.


def test_threads_that_overlap_a_cycle_key_get_update_error(store_class: type[SessionStore]) -> None:
    key = new_session(store_class, {"cart": {"before": 1}})
    read, cycled = (threading.Barrier(WRITERS, timeout=TIMEOUT) for _ in range(2))
    new_key: list[str | None] = []

    def work(writer: int) -> str:
        store = store_class(key)
        own_item(store, str(writer))
        read.wait()
        if writer == 0:
            store.cycle_key()
            new_key.append(store.session_key)
        cycled.wait()
        return ending_of(store.save)

    assert in_threads(work) == ["saved"] + ["UpdateError"] * (WRITERS - 1)
    assert stored(store_class, key) is None
    assert stored(store_class, new_key[0]) == {"cart": {"before": 1, "0": "0"}}
    assert len(list(store_class.get_storage().ids())) == 1


def test_everything_saved_before_a_cycle_key_is_there_under_the_new_key(
    shared_store: type[SessionStore], tmp_path: Path
) -> None:
    key = new_session(shared_store, {"cart": {}})
    with workers(tmp_path, WRITERS, save_until_it_is_gone, Place.here(), key) as those:
        held = shared_store(key)
        own_item(held, "mine")
        let_them_meet(those)
        assert {worker.hear() for worker in those} == {"busy"}
        held.cycle_key()
        held.save()
        saved = {name for worker in those for name in worker.hear()}
    assert len(saved) >= 3 * WRITERS
    assert names_in(stored(shared_store, held.session_key)) == saved | {"mine"}
    assert stored(shared_store, key) is None
    assert list(shared_store.get_storage().ids()) == [held.session_id]


def test_everything_that_threads_saved_before_a_cycle_key_is_there_under_the_new_key(
    store_class: type[SessionStore],
) -> None:
    key = new_session(store_class, {"cart": {}})
    busy = threading.Barrier(WRITERS, timeout=TIMEOUT)
    held = store_class(key)
    own_item(held, "mine")
    saved: set[str] = set()

    def work(writer: int) -> None:
        if writer == 0:
            busy.wait()
            held.cycle_key()
            held.save()
            return
        for turn in turns():
            store = store_class(key)
            if "cart" not in store:
                return
            own_item(store, f"{writer}-{turn}")
            if ending_of(store.save) == "UpdateError":
                return
            saved.add(f"{writer}-{turn}")
            if turn == 2:
                busy.wait()
        raise AssertionError("a thread went on saving a session that is gone")

    in_threads(work)
    assert names_in(stored(store_class, held.session_key)) == saved | {"mine"}
    assert stored(store_class, key) is None


def cycle_or_delete(parent: Parent, writer: int, place: Place, keys: list[str]) -> None:
    """Cycle the key in the first process, delete the session in the second, and save it in the others: all at once."""
    with place.opened() as store_class:
        for key in keys:
            store = store_class(key)
            own_item(store, str(writer))
            parent.meet()
            if writer == 1:
                store.flush()
                parent.say(("deleted", None))
            else:
                if writer == 0:
                    store.cycle_key()
                parent.say((ending_of(store.save), store.session_id))


def test_a_cycle_key_or_a_simultaneous_deletion_wins_and_nothing_comes_back(
    shared_store: type[SessionStore], tmp_path: Path
) -> None:
    keys = [new_session(shared_store, {"cart": {"before": 1}, SESSION_KEY: "1"}) for _ in range(30)]
    live = set(shared_store.get_storage().ids())
    with workers(tmp_path, 4, cycle_or_delete, Place.here(), keys) as those:
        for key in keys:
            let_them_meet(those)
            (ending, new_id), *_ = [worker.hear() for worker in those]
            live.discard(id_of(shared_store, key))
            if ending == "saved":  # the cycle_key() was first, so the deletion found nothing
                live.add(new_id)
            assert set(shared_store.get_storage().ids()) & {new_id, id_of(shared_store, key)} == live & {new_id}
    assert set(shared_store.get_storage().ids()) == live


def test_a_session_deleted_before_its_key_is_cycled_is_not_brought_back(store_class: type[SessionStore]) -> None:
    key = new_session(store_class, {"cart": {}, SESSION_KEY: "1"})
    held = store_class(key)
    own_item(held, "mine")
    store_class(key).flush()
    held.cycle_key()
    with pytest.raises(UpdateError):
        held.save()
    assert list(store_class.get_storage().ids()) == []


def test_a_value_that_could_not_be_saved_can_be_removed_and_the_rest_saved(store_class: type[SessionStore]) -> None:
    key = new_session(store_class, {"cart": {}})
    held, other = store_class(key), store_class(key)
    own_item(held, "mine")
    held["bad"] = object()
    own_item(other, "theirs")
    other.save()
    with pytest.raises(TypeError):
        held.save()
    del held["bad"]
    held.save()
    assert stored(store_class, key) == {"cart": {"mine": "mine", "theirs": "theirs"}}


# Async: the memory engine has native twins, the others run each operation in a thread.


@WRITES
def test_fifty_tasks_that_all_read_before_one_saves_lose_nothing(store_class: type[SessionStore], write: Write) -> None:
    key = new_session(store_class, {"cart": {}})

    async def work(task: int, all_read: asyncio.Barrier) -> None:
        store = store_class(key)
        await store.aget("cart")
        write(store, str(task))
        await all_read.wait()
        await store.asave()

    async def main() -> None:
        all_read = asyncio.Barrier(TASKS)
        async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
            for task in range(TASKS):
                group.create_task(work(task, all_read))

    asyncio.run(main())
    assert names_in(stored(store_class, key)) == {str(task) for task in range(TASKS)}


@pytest.mark.parametrize("how", ["deleted", "cycled"])
def test_fifty_tasks_that_hold_a_session_deleted_meanwhile_get_update_error(
    store_class: type[SessionStore], how: str
) -> None:
    key = new_session(store_class, {"cart": {}})
    left: list[str] = []

    async def work(task: int, all_read: asyncio.Barrier, gone: asyncio.Event) -> str:
        store = store_class(key)
        (await store.aget("cart"))[str(task)] = task
        await all_read.wait()
        if task == 0 and how == "deleted":
            await store.aflush()
            gone.set()
            return "saved"
        if task == 0:
            await store.acycle_key()
            assert store.session_id is not None
            left.append(store.session_id)
            gone.set()
        await gone.wait()
        try:
            await store.asave()
        except UpdateError:
            return "UpdateError"
        return "saved"

    async def main() -> list[str]:
        all_read, gone = asyncio.Barrier(TASKS), asyncio.Event()
        async with asyncio.timeout(TIMEOUT):
            return await asyncio.gather(*(work(task, all_read, gone) for task in range(TASKS)))

    assert asyncio.run(main()) == ["saved"] + ["UpdateError"] * (TASKS - 1)
    assert stored(store_class, key) is None
    assert list(store_class.get_storage().ids()) == left
