"""One lock per id, for threads and coroutines."""

import asyncio
import threading
from collections import deque
from concurrent.futures import Future

from django.utils.asyncio import async_unsafe


class Turn:
    """The place of a thread or coroutine that waits for the lock of an id."""

    __slots__ = ("future", "lock_id")

    def __init__(self, lock_id: str) -> None:
        self.lock_id = lock_id
        self.future: Future[None] = Future()


class IdLocks:
    """Locks by id that exist only while somebody holds them.

    A turn is a future: a thread waits for it, a coroutine awaits it. So requests in threads and on event loops exclude
    each other, and none blocks a loop. The first to come gets the lock first.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: dict[str, deque[Turn]] = {}

    def acquire(self, lock_id: str) -> Turn | None:
        """Take the lock, or return a turn. Once the turn has come, the caller holds the lock."""
        with self._mutex:
            queue = self._waiting.get(lock_id)
            if queue is None:
                self._waiting[lock_id] = deque()
                return None
            turn = Turn(lock_id)
            queue.append(turn)
            return turn

    def release(self, lock_id: str) -> None:
        """Hand the lock to the one that has waited longest, if anybody waits."""
        with self._mutex:
            queue = self._waiting[lock_id]
            while queue:
                future = queue.popleft().future
                if future.set_running_or_notify_cancel():
                    future.set_result(None)
                    return
            del self._waiting[lock_id]

    def give_up(self, turn: Turn) -> None:
        """End a wait that was broken off. If the turn has come meanwhile, pass the lock on."""
        # release() passes over a cancelled turn. A turn that cannot be cancelled has the lock already.
        if not turn.future.cancel():
            self.release(turn.lock_id)

    # Not on the thread of an event loop: the coroutine that holds the lock may need that thread to release it.
    @staticmethod
    @async_unsafe("Another request holds this session. Use the async methods of request.session to wait for it.")
    def wait(turn: Turn) -> None:
        """Block until the turn has come."""
        turn.future.result()

    @staticmethod
    async def await_turn(turn: Turn) -> None:
        """The same for a coroutine."""
        await asyncio.wrap_future(turn.future)
