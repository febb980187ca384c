"""Other processes: for rules that must hold between processes, and for writers to kill."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from django.conf import settings

# The fork server has imported this module and Django, and has a single thread: its forks start in milliseconds, and may
# fork themselves.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__, "tests.support.preload", "pytest"])

T = TypeVar("T")

TIMEOUT = 60.0
"""Seconds after which a wait has failed."""


def promised(function: Callable[..., T], *args: Any) -> Future[T]:
    """Run ``function(*args)`` in a daemon thread: if it hangs, the process can still end."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def run_program(module: str, *arguments: str) -> None:
    """Run a module of the tests as a program, and raise if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"


class Parent:
    """The link of a function in another process to the test."""

    def __init__(self, pipe: "Connection[Any, Any]") -> None:
        self._pipe = pipe

    def say(self, value: Any = None) -> None:
        self._pipe.send((True, value))

    def hear(self) -> Any:
        return self._pipe.recv()

    def heard(self) -> bool:
        """Whether the test has sent a message yet."""
        return self._pipe.poll()

    def meet(self) -> None:
        """Wait until all processes have come this far: see :func:`let_them_meet`."""
        self.say()
        self.hear()


class Worker:
    """A process that runs ``function(parent, *args)``, with the file engine on `folder`."""

    def __init__(self, folder: Path | str, function: Callable[..., None], *args: Any) -> None:
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_work, args=(os.fspath(folder), theirs, function, args), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
        self._pipe.close()
        self._process.close()

    def say(self, value: Any = None) -> None:
        self._pipe.send(value)

    def hear(self, timeout: float = TIMEOUT) -> Any:
        if not self._pipe.poll(timeout):
            raise TimeoutError(f"The other process has sent nothing for {timeout:g} seconds.")
        fine, value = self._pipe.recv()
        if not fine:
            raise AssertionError(f"In the other process:\n{value}")
        return value

    def kill(self) -> None:
        """End the process and its forks, if it still runs."""
        if self._process.is_alive():
            assert self._process.pid is not None
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has ended, or has not made its own process group yet
                self._process.kill()
        self._process.join(TIMEOUT)

    def wait(self) -> None:
        """Wait until the process has ended by itself, and raise if it has failed."""
        self._process.join(TIMEOUT)
        assert self._process.exitcode == 0, self._process.exitcode


def _work(folder: str, pipe: "Connection[Any, Any]", function: Callable[..., None], args: tuple[Any, ...]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.setpgid(0, 0)
    try:
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
        os.environ["GSESSION_TEST_FILE_PATH"] = (
            folder  # without it tests.settings would create a folder that nobody removes
        )
        settings.SESSION_FILE_PATH = folder
        function(Parent(pipe), *args)
    except BaseException:
        pipe.send((False, traceback.format_exc()))


@contextmanager
def workers(folder: Path | str, count: int, function: Callable[..., None], *args: Any) -> Iterator[list[Worker]]:
    """Start `count` processes. Each gets its number before `args`."""
    with ExitStack() as stack:
        yield [stack.enter_context(Worker(folder, function, number, *args)) for number in range(count)]


def let_them_meet(those: list[Worker]) -> None:
    """Let all processes go on once each has come to its next :meth:`Parent.meet`."""
    for worker in those:
        worker.hear()
    for worker in those:
        worker.say()
