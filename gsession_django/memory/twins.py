"""Native twins of methods that never wait."""

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def twin(method: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Return the native twin of a method: it calls the method, without a thread."""

    @wraps(method)
    async def atwin(*args: P.args, **kwargs: P.kwargs) -> T:
        return method(*args, **kwargs)

    return atwin
