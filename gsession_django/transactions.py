"""Writes that are part of a transaction of the site, which may be rolled back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gsession_django.session_map import Saving


class Transaction(Protocol):
    """What a storage answers when it is asked for the transaction that a write was part of.

    While it is neither committed nor rolled back, it goes on.
    """

    @property
    def committed(self) -> bool:
        """Whether the write is final."""

    @property
    def rolled_back(self) -> bool:
        """Whether the write was undone."""


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """One write of a request.

    Attributes:
        transaction: what it is part of.
        save: what it stored of the session; ``None`` where it stored nothing that the request has not stored otherwise.
        repeat: makes it again, given the SessionStore and `arguments`; ``None`` where the next ``save()`` does.
        arguments: what else `repeat` is called with.
    """

    transaction: Transaction
    save: "Saving | None"
    repeat: Callable[..., Any] | None
    arguments: tuple[Any, ...]
