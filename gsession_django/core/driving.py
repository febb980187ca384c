"""How an operation is driven: by plain calls, by awaiting native twins, or in a thread.

What Django asks for may take several calls of the storage. Such an operation is written once, as a generator. It yields
the calls that it wants made, and receives what they return. For another engine it yields a function without arguments.
"""

from collections.abc import Callable, Generator
from typing import Any, Final

from asgiref.sync import sync_to_async

from gsession_django.core.locks import IdLocks, Turn
from gsession_django.core.storage import Disabled

UNABLE: Final = object()
"""What a call returns when the storage does not have the method."""

Call = tuple[Any, ...]
"""The name of a method of the Storage interface, and its arguments."""
Operation = Generator[Call | Turn | Callable[[], Any], Any, Any]


class Driver:
    """Carries out operations on one storage.

    Args:
        able: the methods that the storage has. One that raises ``Disabled`` at run time is taken out.
        is_async: whether the storage has native twins.
        locks: what keeps apart, in this process, the operations that are composed of several calls.

    Attributes:
        calls: what the methods are called on.
        able, is_async, locks: as above.
    """

    __slots__ = ("able", "calls", "is_async", "locks")

    def __init__(self, able: set[str], is_async: bool, locks: IdLocks) -> None:
        self.calls: Any = None
        self.able = able
        self.is_async = is_async
        self.locks = locks

    def run(self, operation: Operation) -> Any:
        """Carry out an operation with plain calls, and return what it returns."""
        able, calls = self.able, self.calls
        try:
            call = next(operation)
            while True:
                try:
                    if isinstance(call, tuple):
                        result = getattr(calls, call[0])(*call[1:]) if call[0] in able else UNABLE
                    elif isinstance(call, Turn):
                        self.locks.wait(call)
                        result = None
                    else:
                        result = call()
                except Disabled as error:
                    result = self._unable(call, error)
                except BaseException as error:
                    call = operation.throw(error)
                    continue
                call = operation.send(result)
        except StopIteration as stop:
            return stop.value

    async def arun(self, operation: Operation) -> Any:
        """The same, awaiting the native twins; for a storage that is not async, all of it in one thread hop."""
        if not self.is_async:
            return await sync_to_async(self.run)(operation)
        able, calls = self.able, self.calls
        try:
            call = next(operation)
            while True:
                try:
                    if isinstance(call, tuple):
                        result = await getattr(calls, f"a{call[0]}")(*call[1:]) if call[0] in able else UNABLE
                    elif isinstance(call, Turn):
                        await self.locks.await_turn(call)
                        result = None
                    else:
                        result = await sync_to_async(call)()
                except Disabled as error:
                    result = self._unable(call, error)
                except BaseException as error:
                    call = operation.throw(error)
                    continue
                call = operation.send(result)
        except StopIteration as stop:
            return stop.value

    def _unable(self, call: Any, error: Disabled) -> object:
        """Remember that the storage does not have what was called."""
        if not isinstance(call, tuple):  # another engine's
            raise error
        self.able.discard(call[0])
        return UNABLE
