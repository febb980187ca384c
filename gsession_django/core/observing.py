"""The hook that observes the calls of storages, for tracing (``telemetry.py``) and the panel (``panels.py``)."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, Final

from gsession_django.core.storage import Disabled, Storage, StorageUnavailable
from gsession_django.recording import CALL, StorageCall, System

Observer = Callable[[StorageCall], Callable[[], None]]
"""A function that is called when a call begins. It returns the function to call when that has ended."""

OBSERVERS: Final[list[Observer]] = []
"""The observers of all engines: see :func:`gsession_django.core.engine.observe`."""


class Recorder:
    """Calls a storage and lets the observers see each call. An engine has one only while there are observers."""

    def __init__(self, storage: Storage, twins: frozenset[str]) -> None:
        self._storage = storage
        self._twins = twins

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._await if name in self._twins else self._call, name)

    def _call(self, name: str, *args: Any) -> Any:
        with self._recorded(name):
            return getattr(self._storage, name)(*args)

    async def _await(self, name: str, *args: Any) -> Any:
        with self._recorded(name.removeprefix("a")):
            return await getattr(self._storage, name)(*args)

    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        """Yield what the storage's ``purge()`` yields. Each step counts as one call."""
        steps = iter(self._storage.purge(batch_size, dry_run))
        while True:
            with self._recorded("purge"):
                number = next(steps, None)
            if number is None:
                return
            yield number

    @cached_property
    def _system(self) -> System:
        return self._storage.system()

    @contextmanager
    def _recorded(self, operation: str) -> Iterator[None]:
        call = StorageCall(self._system, operation)
        outer = CALL.get()
        ends = [observer(call) for observer in OBSERVERS.copy()]
        CALL.set(call)
        started = time.perf_counter()
        try:
            yield
        except Disabled:  # the adapter does without it
            raise
        except BaseException as error:
            call.unavailable = isinstance(error, StorageUnavailable)
            call.error = _name_of((error.__cause__ if call.unavailable else None) or error)
            raise
        finally:
            call.seconds = time.perf_counter() - started
            CALL.set(outer)  # not reset(): that fails if the task is closed from another context
            for end in reversed(ends):
                end()


def _name_of(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
