"""The part of StorageContract on threads, event loops, processes and outages: all share one storage object."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Final
from unittest import mock

from gsession_django.core.session_map import SessionMap
from gsession_django.core.storage import StorageUnavailable
from gsession_django.testing.case import PAGE, ContractCase, able_of, needs
from gsession_django.testing.threads import TIMEOUT, Child, frequent_switches, in_threads
from gsession_django.testing.visitors import THREADS

_LOOPS: Final = 4
_TASKS: Final = 4
_ROUNDS: Final = 5
# Seconds for which parent and child use the storage at once.
_TOGETHER: Final = 0.05
# The methods of a session that a storage calls between its read and its write.
_BETWEEN: Final = ("merged_onto", "merged_value", "renews_ttl", "as_dict", "encoded")


class Sharing(ContractCase):
    """Threads, event loops, processes and outages."""

    # Threads.

    @needs("apply")
    def test_parallel_calls_of_apply_lose_nothing(self) -> None:
        session_id = self.put({"cart": {}})
        held = [self.held(session_id) for _ in range(THREADS)]
        for number, session in enumerate(held):
            session["cart"][f"item {number}"] = number

        def work(number: int) -> None:
            if number % 2 and "async" in able_of(type(self)):  # a lock between threads must hold for event loops too
                done = asyncio.run(self._in_time(self.storage.aapply(session_id, held[number], 60)))  # type: ignore[attr-defined]
            else:
                done = self.storage.apply(session_id, held[number], 60)
            if not done:
                self.wrong(self.named("apply", session_id, held[number], 60), done, "True")

        with meeting(), frequent_switches():
            in_threads(THREADS, work)
        wanted = {"cart": {f"item {number}": number for number in range(THREADS)}}
        self.holds(session_id, wanted, f"{THREADS} calls of apply() at once, each with an item of its own")

    # Event loops.

    @staticmethod
    async def _in_time(call: Any) -> Any:
        return await asyncio.wait_for(call, TIMEOUT)

    @needs("async")
    def test_event_loops_one_after_the_other_share_no_connection(self) -> None:
        session_id = self.put({"key": 1})
        for which in ("the first", "a second", "a third"):
            self._ask(session_id, f"on {which} event loop")

    @needs("async")
    def test_event_loops_at_once_share_no_connection(self) -> None:
        session_id = self.put({"key": 1})
        barrier = threading.Barrier(_LOOPS, timeout=TIMEOUT)
        with frequent_switches():
            in_threads(_LOOPS, lambda _: self._ask(session_id, f"on one of {_LOOPS} event loops", barrier), barrier)

    def _ask(self, session_id: str, where: str, barrier: threading.Barrier | None = None) -> None:
        async def ask() -> None:
            for _ in range(_ROUNDS):
                get: Any = self.storage.aget_session  # type: ignore[attr-defined]
                calls = [asyncio.ensure_future(get(session_id, 60, None)) for _ in range(_TASKS)]
                await asyncio.sleep(0)
                if barrier is not None:
                    barrier.wait()  # until every event loop has calls under way
                for found in await self._in_time(asyncio.gather(*calls)):
                    if found is None:
                        self.wrong(
                            f"{where.capitalize()}, {type(self.storage).__name__}.aget_session()", None, "the session"
                        )

        try:
            asyncio.run(ask())
        except (threading.BrokenBarrierError, self.failureException):
            raise
        except Exception as error:
            raise self.failureException(
                f"{type(self.storage).__name__}.aget_session() raised {error!r} {where}. It should return the session: "
                f"keep separate connections for each event loop, as {PAGE} shows."
            ) from error

    # Processes.

    @needs("fork")
    def test_a_forked_process_and_its_parent_both_go_on(self) -> None:
        session_id = self.put({"key": 1})
        for _, way in self.ways():
            with way():
                self.holds(session_id, {"key": 1}, "storing it")
        self.reread(self.visitor({"key": 1}))

        def in_child() -> None:
            self._go_on(session_id, "in a forked process", _TOGETHER)
            del self.storage
            gc.collect()

        child = Child(in_child)
        try:
            self._go_on(session_id, "in the process that forked another", _TOGETHER)
        finally:
            said = child.join()
        if said is not None:
            self.fail(
                f"{type(self.storage).__name__} failed in a process that was forked after the storage's first use. "
                f"Open new connections in the child, as {PAGE} shows. {said}"
            )
        self._go_on(session_id, "in a process whose child has ended")

    def _go_on(self, session_id: str, where: str, seconds: float = 0) -> None:
        for _, way in self.ways():
            until = time.monotonic() + seconds
            with way():
                while True:
                    self.holds(session_id, {"key": 1}, f"a fork, {where}")
                    own = self.put({"where": where})
                    self.holds(own, {"where": where}, f"storing it {where}")
                    if time.monotonic() >= until:
                        break
        self.finds(self.visitor({"key": "visitor"}), {"key": "visitor"}, f"save() {where}")

    # Outages.

    @needs("outage")
    def test_an_outage_is_storage_unavailable_and_no_missing_session(self) -> None:
        session_id, new_id = self.put({"key": 1}), self.new_id()
        held = self.held_with(session_id, "key", 2)
        calls: dict[str, tuple[Any, ...]] = {
            "get_session": (session_id, 60, None),
            "get": (session_id, "key"),
            "get_map": (session_id,),
            "get_size": (session_id,),
            "exists": (session_id,),
            "update_ttl": (session_id, 60),
            "set": (session_id, "key", 2, 60),
            "set_map": (session_id, {"key": 2}, 60),
            "remove": (session_id, "key"),
            "set_session": (session_id, {"key": 2}, 60),
            "create": (new_id, SessionMap({"key": 2}), 60),
            "apply": (session_id, held, 60),
            "move": (session_id, new_id, 60),
            "remove_all": (session_id,),
            "sessions_of": ("7",),
            "add_to_user": ("7", session_id, 120),
            "remove_from_user": ("7", session_id, True),
            "lock": (session_id, "token", 60.0),
            "unlock": (session_id, "token"),
        }
        with self.outage():
            for method, args in calls.items():
                if method in self.able:
                    self._unavailable(self.named(method, *args), partial(self.call, method, *args))
            if self._runner is None and "purge" in self.able:
                self._unavailable(self.named("purge", 1000), lambda: list(self.storage.purge(1000)))
            if self._runner is None and "ids" in self.able:
                self._unavailable(self.named("ids"), lambda: list(self.storage.ids()))
        self.holds(session_id, {"key": 1}, "an outage")

    def _unavailable(self, name: str, call: Callable[[], Any]) -> None:
        wanted = "It should raise StorageUnavailable: in an outage it cannot know whether there is a session."
        with self.subTest(name.partition("(")[0]):
            try:
                found = call()
            except StorageUnavailable:
                return
            except Exception as error:
                raise self.failureException(f"In an outage, {name} raised {error!r}. {wanted}") from error
            self.fail(f"In an outage, {name} returned {found!r}. {wanted}")


@contextmanager
def meeting() -> Iterator[None]:
    """Let two calls of ``apply`` meet between read and write, if the storage allows that."""
    barrier = threading.Barrier(2)

    def meet_before(method: Callable[..., Any]) -> Callable[..., Any]:
        def met(self: SessionMap, *args: Any) -> Any:
            with suppress(threading.BrokenBarrierError):  # a storage with a lock lets no second call come here
                barrier.wait(0.05)
            return method(self, *args)

        return met

    with ExitStack() as stack:
        for name in _BETWEEN:
            stack.enter_context(mock.patch.object(SessionMap, name, meet_before(getattr(SessionMap, name))))
        yield
