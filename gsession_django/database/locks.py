"""Locks that one holder has at a time, each until a moment: a row for each, in a table beside that of the sessions.

A lock that is taken in a transaction of the site is held until the transaction ends, whatever happens to it before: the
next holder sees all that this one stored. Until then others wait in the database, where they are told no at once
otherwise.
"""

from collections.abc import Iterator

from django.db import IntegrityError
from django.db.models import F, Q, QuerySet
from django.db.models.lookups import LessThanOrEqual

from gsession_django.database import walk
from gsession_django.database.clock import Moment
from gsession_django.database.rows import column_of
from gsession_django.database.table import SessionTable, available
from gsession_django.models import SessionLock


class LockTable:
    """The locks in one database.

    Args:
        table: the sessions there.
    """

    def __init__(self, table: SessionTable) -> None:
        self.table = table

    @property
    def _rows(self) -> QuerySet[SessionLock]:
        return SessionLock._default_manager.using(self.table.alias)

    @available
    def take(self, session_id: str, token: str, seconds: float) -> bool:
        """Do what ``Storage.lock`` says."""
        lock_id, token = column_of(session_id), column_of(token)
        now = self.table.now()
        until = Moment(now + round(1000 * seconds))
        free = LessThanOrEqual(F("expires"), Moment(now))
        rows = self._rows.filter(id=lock_id)
        if rows.filter(Q(free) | Q(token=token)).update(token=token, expires=until):
            return True
        if rows.exists():
            return False
        try:
            with self.table.savepoint():
                self._rows._insert(  # type: ignore[attr-defined]  # create() would tell everybody, by signals
                    [SessionLock(lock_id, token, until)], SessionLock._meta.concrete_fields, using=self.table.alias
                )
        except IntegrityError:  # somebody else has been faster
            return False
        return True

    @available
    def free(self, session_id: str, token: str) -> None:
        """Do what ``Storage.unlock`` says.

        The row stays, for whoever takes the lock next: on MariaDB, two who insert one at the same time may lock each
        other.
        """
        self._rows.filter(id=column_of(session_id), token=column_of(token)).update(expires=0)

    def purge(self, batch_size: int) -> Iterator[int]:
        """Remove the rows of locks that nobody holds; yield 0 between two steps."""
        return walk.purge_locks(self.table, batch_size)
