"""Work that waits for a server, written once: a coroutine that a task awaits, and that a thread takes.

In a thread whatever it awaits waits by itself, in a plain call, and so never suspends.
"""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

Steps = Coroutine[Any, Any, T]


def take(steps: Steps[T]) -> T:
    """Carry out a coroutine that never suspends, and return what it does."""
    try:
        steps.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        steps.close()  # where a signal handler has raised before it began
    raise RuntimeError("A step of a thread has suspended, and nothing goes on with it.")


async def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Make a plain call: a step of a thread."""
    return function(*arguments)


def acall(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the call, for a task to await."""
    return function(*arguments)
