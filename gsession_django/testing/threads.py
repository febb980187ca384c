"""Threads and processes for the tests. They end even if the storage hangs."""

import inspect
import os
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

from django.db import connections

TIMEOUT: Final = 20.0
"""Seconds after which a test takes a call for hung."""


@contextmanager
def frequent_switches() -> Iterator[None]:
    """Let threads take turns so often that they meet even in short windows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def interrupted(function: Callable[..., Any], seen: set[Any], interrupt: Callable[[], None]) -> Iterator[None]:
    """Call ``interrupt()`` in this thread once, at the first line that is not in `seen`, and add that line to `seen`.

    Only lines of the file that defines `function` count.
    """
    code = getattr(inspect.unwrap(function), "__code__", None)
    file = None if code is None else code.co_filename
    done = False

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal done
        if done or frame.f_code.co_filename != file:
            return None
        if event == "line" and (line := (frame.f_code, frame.f_lineno)) not in seen:
            seen.add(line)
            done = True
            interrupt()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def in_threads(count: int, work: Callable[[int], None], barrier: threading.Barrier | None = None) -> None:
    """Call ``work(number)`` in `count` threads at once, and raise the first error of one.

    Args:
        barrier: the barrier that the threads wait at. A failing thread breaks it, or the others would wait for it.
    """

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException:
            if barrier is not None:
                barrier.abort()
            raise
        finally:
            connections.close_all()  # Django opens database connections for each thread

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run, number) for number in range(count)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    # The error that broke the barrier comes before those that the broken barrier raised.
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error


def get_through(work: Callable[[], None], what: str, seconds: float) -> None:
    """Call ``work()`` in another thread, and fail if it raises or takes longer than `seconds`."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)
        finally:
            connections.close_all()

    threading.Thread(target=run, daemon=True).start()  # a daemon, so a hung one does not block the exit
    try:
        future.result(seconds)
    except TimeoutError:
        if not future.done():
            raise AssertionError(f"{what} did not finish in {seconds:g} seconds. It should not have to wait.") from None
        raise
    except Exception as error:
        raise AssertionError(f"{what} met {error!r}. It should succeed.") from error


class Child:
    """A fork of this process that calls ``work()``."""

    def __init__(self, work: Callable[[], None]) -> None:
        # A child would share Django's database connections, and the storage cannot help that.
        for connection in connections.all(initialized_only=True):
            if not connection.in_atomic_block:
                connection.close()
        self._reading, writing = os.pipe()
        with warnings.catch_warnings():
            # Python warns of a fork beside other threads, but this child does not wait for those.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            said = "."
            try:
                os.close(self._reading)
                os.write(writing, b"!")
                work()
            except BaseException:
                said = traceback.format_exc()
            finally:
                os.write(writing, said.encode(errors="replace")[:60_000])
                os._exit(0)
        os.close(writing)
        os.read(self._reading, 1)  # it has begun

    def join(self) -> str | None:
        """Wait until it has ended, and return its error; ``None`` without one."""
        said = b""
        try:
            while select.select([self._reading], [], [], TIMEOUT)[0]:
                if not (part := os.read(self._reading, 65536)):
                    break
                said += part
            else:
                os.kill(self._pid, signal.SIGKILL)
                return f"It did not answer for {TIMEOUT:g} seconds."
        finally:
            os.close(self._reading)
            os.waitpid(self._pid, 0)
        return None if said == b"." else said.decode() or "It ended without a message."
