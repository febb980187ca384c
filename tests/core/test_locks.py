"""IdLocks: one lock an id, for threads and coroutines."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core.exceptions import SynchronousOnlyOperation

from gsession_django.core.locks import IdLocks, Turn


def turn_of(locks: IdLocks) -> Turn:
    turn = locks.acquire("id")
    assert turn is not None
    return turn


def test_one_holds_a_lock_at_a_time_first_come_first_served() -> None:
    locks = IdLocks()
    assert locks.acquire("id") is None
    first, second = turn_of(locks), turn_of(locks)
    assert not first.future.done()
    locks.release("id")
    assert first.future.done()
    assert not second.future.done()
    locks.release("id")
    assert second.future.done()


def test_ids_do_not_wait_for_each_other() -> None:
    locks = IdLocks()
    assert locks.acquire("one") is None
    assert locks.acquire("two") is None


def test_nothing_is_left_of_a_lock_that_nobody_holds() -> None:
    locks = IdLocks()
    locks.acquire("id")
    locks.release("id")
    assert locks._waiting == {}


def test_threads_and_coroutines_exclude_each_other() -> None:
    locks, inside, rounds = IdLocks(), [0], 200
    barrier = threading.Barrier(4)

    def enter() -> None:
        assert inside[0] == 0
        inside[0] += 1
        assert inside[0] == 1
        inside[0] -= 1
        locks.release("id")

    def thread() -> None:
        barrier.wait(10)
        for _ in range(rounds):
            if (turn := locks.acquire("id")) is not None:
                locks.wait(turn)
            enter()

    async def coroutine() -> None:
        for _ in range(rounds):
            if (turn := locks.acquire("id")) is not None:
                await locks.await_turn(turn)
            enter()
            await asyncio.sleep(0)

    async def loop() -> None:
        barrier.wait(10)
        await asyncio.gather(*(coroutine() for _ in range(4)))

    with ThreadPoolExecutor(4) as pool:
        for work in [*[pool.submit(thread) for _ in range(2)], *[pool.submit(asyncio.run, loop()) for _ in range(2)]]:
            work.result(60)
    assert locks._waiting == {}


def test_a_turn_that_is_given_up_is_passed_over() -> None:
    locks = IdLocks()
    locks.acquire("id")
    first, last = turn_of(locks), turn_of(locks)
    locks.give_up(first)
    locks.release("id")
    assert last.future.done()


def test_a_turn_that_has_come_is_passed_on_when_it_is_given_up() -> None:
    locks = IdLocks()
    locks.acquire("id")
    first, last = turn_of(locks), turn_of(locks)
    locks.release("id")
    locks.give_up(first)
    assert last.future.done()


def test_waiting_on_the_thread_of_a_loop_is_refused() -> None:
    async def visit() -> None:
        locks = IdLocks()
        locks.acquire("id")
        with pytest.raises(SynchronousOnlyOperation, match="Use the async methods"):
            locks.wait(turn_of(locks))

    asyncio.run(visit())
