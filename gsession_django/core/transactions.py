"""Writes that are part of a transaction of the site, which may be rolled back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from gsession_django.core.saving import Saving


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
        """Whether a write that counts as rolled back was never committed. A session is created again only then, as it
        may otherwise have been committed, and ended since."""


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


class SiteTransaction:
    """A transaction of the site, or the part of one since a savepoint.

    It is a callback that runs on commit: Django calls it after the commit, and drops it at a rollback.

    Attributes:
        committed: whether it has been committed.
        certain: whether a commit can be told from a rollback. It cannot while autocommit is off: Django drops the
            callbacks at ``rollback()``, and does not call them at ``commit()``.
    """

    def __init__(self, connection: "BaseDatabaseWrapper") -> None:
        self._connection = connection
        self.committed = False
        self.certain = connection.in_atomic_block and connection.commit_on_exit

    def __call__(self) -> None:
        self.committed = True

    @property
    def rolled_back(self) -> bool:
        """Whether it has been rolled back, or where that is not ``certain``, may have been."""
        # After a commit Django calls this callback first, so that no other can raise or save a session before.
        callbacks: list[Any] = self._connection.run_on_commit
        return not self.committed and all(callback is not self for _, callback, *_ in callbacks)


def blocks_of_tests(connection: "BaseDatabaseWrapper") -> int:
    """Return how many of the ``atomic()`` blocks, counted from the outermost, a ``TestCase`` has opened."""
    return sum(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks)


def call_first(connection: "BaseDatabaseWrapper", callback: Callable[[], None]) -> None:
    """Let Django call `callback` after the commit, before the site's own callbacks.

    One of those may raise, and then Django calls none that come after it. ``on_commit()`` would put this one behind
    them, and refuses it while autocommit is off. What asks a SiteTransaction is called after that.
    """
    callbacks: list[Any] = connection.run_on_commit
    # In a TestCase it comes behind those that the test itself has registered: captureOnCommitCallbacks() takes a
    # callback for new by its place in the list.
    outermost = set(connection.savepoint_ids[: blocks_of_tests(connection)])  # the first block has none
    before = () if isinstance(callback, SiteTransaction) else SiteTransaction
    places = (
        place
        for place, (savepoints, other, *_) in enumerate(callbacks)
        if outermost <= savepoints and not isinstance(other, before)
    )
    callbacks.insert(next(places, len(callbacks)), (set(connection.savepoint_ids), callback, True))
