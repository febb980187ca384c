"""Work that waits for a server, written once: a generator of calls that a thread makes and a task awaits."""

from collections.abc import Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")

Steps = Generator[tuple[Callable[..., Any], tuple[Any, ...]], Any, T]
"""Each step is a function and its arguments. What the call returns or raises goes back into the generator."""


def take(steps: Steps[T]) -> T:
    """Make the calls, and return what the generator does."""
    try:
        function, arguments = next(steps)
        while True:
            try:
                result = function(*arguments)
            except BaseException as error:
                function, arguments = steps.throw(error)
            else:
                function, arguments = steps.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        steps.close()  # where a signal handler has raised between two lines


async def atake(steps: Steps[T]) -> T:
    """Await the calls, and return what the generator does."""
    try:
        function, arguments = next(steps)
        while True:
            try:
                result = await function(*arguments)
            except BaseException as error:
                function, arguments = steps.throw(error)
            else:
                function, arguments = steps.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        steps.close()
