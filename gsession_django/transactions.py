"""Writes that are part of a transaction of the site, which may be rolled back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gsession_django.saving import Saving


class Transaction(Protocol):
    """What a storage answers when it is asked for the transaction that a write was part of.

    While it is neither committed nor rolled back, it goes on.
    """

    @property
    def committed(self) -> bool:
        """Whether the write is final."""

    @property
    def rolled_back(self) -> bool:
        """Whether the write was undone; where that is not `certain`, whether it may have been."""

    @property
    def certain(self) -> bool:
        """Whether a write that counts as rolled back was never committed. A session is created again only then: else it
        may have been committed, and ended since."""


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """One write of a request.

    Attributes:
        transaction: what it is part of.
        save: what it stored of the session; ``None`` if the write stored no changes of the session.
        repeat: makes it again, given the SessionStore, whether the rollback is certain, and `arguments`; ``None`` where
            the next ``save()`` does.
        arguments: what else `repeat` is called with.
    """

    transaction: Transaction
    save: "Saving | None"
    repeat: Callable[..., Any] | None
    arguments: tuple[Any, ...]
