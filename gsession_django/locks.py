"""One lock an id, for threads and coroutines alike."""

import asyncio
import threading
from collections import deque
from concurrent.futures import Future

from django.utils.asyncio import async_unsafe


class IdLocks:
    """Locks by id that exist only while somebody holds them.

    A waiter is a future, which a thread waits for with ``result()`` and a coroutine awaits, so that requests in
    threads and on event loops exclude each other without one blocking a loop. They go first come, first served.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: dict[str, deque[Future[None]]] = {}

    def acquire(self, lock_id: str) -> Future[None] | None:
        """Take the lock, or return what to wait for: once that is done, the caller holds the lock."""
        with self._mutex:
            queue = self._waiting.get(lock_id)
            if queue is None:
                self._waiting[lock_id] = deque()
                return None
            turn: Future[None] = Future()
            queue.append(turn)
            return turn

    def release(self, lock_id: str) -> None:
        """Hand the lock to the longest waiting, if there is any."""
        with self._mutex:
            queue = self._waiting[lock_id]
            while queue:
                turn = queue.popleft()
                if turn.set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            del self._waiting[lock_id]

    # On the thread of an event loop, the coroutine that holds the lock would wait for this thread, and it for that.
    @async_unsafe("Another request holds this session. Use the async methods of request.session to wait for it.")
    def wait(self, lock_id: str, turn: Future[None]) -> None:
        """Block until the `turn` that :meth:`acquire` gave has come; a wait that is broken off passes the lock on."""
        try:
            turn.result()
        except BaseException:
            self._give_up(lock_id, turn)
            raise

    async def await_turn(self, lock_id: str, turn: Future[None]) -> None:
        """The same for a coroutine."""
        try:
            await asyncio.wrap_future(turn)
        except BaseException:
            self._give_up(lock_id, turn)
            raise

    def _give_up(self, lock_id: str, turn: Future[None]) -> None:
        # What is cancelled is passed over by release(); what cannot be was handed the lock already.
        if not turn.cancel():
            self.release(lock_id)
