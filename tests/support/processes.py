"""Processes of their own: for what must hold between processes, and for writers that are killed."""

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

# The fork server has imported this module, and Django with it, and has a single thread: what it forks is there in
# milliseconds, and may fork on its own.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__, "tests.support.preload", "pytest"])

T = TypeVar("T")

TIMEOUT = 60.0
"""Seconds after which anything that was waited for will not come any more."""


def promised(function: Callable[..., T], *args: Any) -> Future[T]:
    """Run ``function(*args)`` in a thread that nothing waits for at the end, should it hang."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def run_program(module: str, *arguments: str) -> None:
    """Run a module of the tests as a program, which is to end well."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"


class Parent:
    """What a function that runs in a process of its own has to talk with the test."""

    def __init__(self, pipe: "Connection[Any, Any]") -> None:
        self._pipe = pipe

    def say(self, value: Any = None) -> None:
        self._pipe.send((True, value))

    def hear(self) -> Any:
        return self._pipe.recv()

    def heard(self) -> bool:
        """Whether the test has said anything yet."""
        return self._pipe.poll()

    def meet(self) -> None:
        """Wait until the test says that all have come this far: see :func:`let_them_meet`."""
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
            raise TimeoutError(f"The other process has said nothing for {timeout:g} seconds.")
        fine, value = self._pipe.recv()
        if not fine:
            raise AssertionError(f"In the other process:\n{value}")
        return value

    def kill(self) -> None:
        """End the process, and those that it forked, if it has not ended by itself."""
        if self._process.is_alive():
            assert self._process.pid is not None
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has not got as far as being a group of its own
                self._process.kill()
        self._process.join(TIMEOUT)

    def wait(self) -> None:
        """Wait until the process has ended by itself, and well."""
        self._process.join(TIMEOUT)
        assert self._process.exitcode == 0, self._process.exitcode


def _work(folder: str, pipe: "Connection[Any, Any]", function: Callable[..., None], args: tuple[Any, ...]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.setpgid(0, 0)
    try:
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
        os.environ["GSESSION_TEST_FILE_PATH"] = folder  # or tests.settings would make a folder that nobody removes
        settings.SESSION_FILE_PATH = folder
        function(Parent(pipe), *args)
    except BaseException:
        pipe.send((False, traceback.format_exc()))


@contextmanager
def workers(folder: Path | str, count: int, function: Callable[..., None], *args: Any) -> Iterator[list[Worker]]:
    """Start `count` processes; each is given its number before `args`."""
    with ExitStack() as stack:
        yield [stack.enter_context(Worker(folder, function, number, *args)) for number in range(count)]


def let_them_meet(those: list[Worker]) -> None:
    """Let all go on once all have come to their next :meth:`Parent.meet`."""
    for worker in those:
        worker.hear()
    for worker in those:
        worker.say()
