"""Writes that are part of a transaction of the site and may be rolled back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from gsession_django.core.saving import Saving


class Transaction(Protocol):
    """The transaction that a write was part of: :meth:`.Storage.transaction` returns it.

    While it is neither committed nor rolled back, it is under way.
    """

    @property
    def committed(self) -> bool:
        """Whether the write is final."""

    @property
    def rolled_back(self) -> bool:
        """Whether the write was undone, or if that is not `certain`, whether it may have been."""

    @property
    def certain(self) -> bool:
        """Whether a write that counts as rolled back was certainly not committed.

        Only then is a session created again. Otherwise it may have been committed, and have ended since.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """One write of a request.

    Attributes:
        transaction: the transaction that it is part of.
        save: the changes of the session that it stored; ``None`` if it stored none.
        repeat: the function that makes the write again. Its arguments are the SessionStore, whether the rollback is
            certain, and `arguments`. ``None`` if the next ``save()`` makes it again.
        arguments: the further arguments of `repeat`.
    """

    transaction: Transaction
    save: "Saving | None"
    repeat: Callable[..., Any] | None
    arguments: tuple[Any, ...]


class SiteTransaction:
    """A transaction of the site, or its part since a savepoint.

    It is an ``on_commit`` callback: Django calls it after the commit, and drops it at a rollback.

    Attributes:
        committed: whether it has been committed.
        certain: whether a commit can be told from a rollback. While autocommit is off it cannot: Django drops the
            callbacks at ``rollback()`` and does not call them at ``commit()``.
    """

    def __init__(self, connection: "BaseDatabaseWrapper") -> None:
        self._connection = connection
        self.committed = False
        self.certain = connection.in_atomic_block and connection.commit_on_exit

    def __call__(self) -> None:
        self.committed = True

    @property
    def rolled_back(self) -> bool:
        """Whether it has been rolled back, or if that is not ``certain``, may have been."""
        # After a commit Django calls this callback first: no other callback can raise, or save a session, before it.
        callbacks: list[Any] = self._connection.run_on_commit
        return not self.committed and all(callback is not self for _, callback, *_ in callbacks)


def blocks_of_tests(connection: "BaseDatabaseWrapper") -> int:
    """Return how many of the outermost ``atomic()`` blocks a ``TestCase`` has opened."""
    return sum(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks)


def call_first(connection: "BaseDatabaseWrapper", callback: Callable[[], None]) -> None:
    """Let Django call `callback` after the commit, before the site's own callbacks.

    If one of those raises, Django calls none of the later ones. ``on_commit()`` would put `callback` behind them, and
    refuses it while autocommit is off. Only a SiteTransaction comes before the others: those may ask it.
    """
    callbacks: list[Any] = connection.run_on_commit
    # In a TestCase it comes behind the callbacks that the test has registered: captureOnCommitCallbacks()
    # recognises new callbacks by their place in the list.
    outermost = set(connection.savepoint_ids[: blocks_of_tests(connection)])  # the first block has no savepoint
    before = () if isinstance(callback, SiteTransaction) else SiteTransaction
    places = (
        place
        for place, (savepoints, other, *_) in enumerate(callbacks)
        if outermost <= savepoints and not isinstance(other, before)
    )
    callbacks.insert(next(places, len(callbacks)), (set(connection.savepoint_ids), callback, True))
