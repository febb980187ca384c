"""Purging and listing a table of any size, in batches and beside live traffic.

The purge finds expired sessions by the index on the expiry, and never locks more than a batch. Where the database can
skip locked rows, it does: a request holds them, or another purge does, which removes them or (as happens on MariaDB)
skips them too. The next purge removes any leftovers.
"""

from collections.abc import Iterator
from typing import Any, Final

from django.db import transaction
from django.db.models import QuerySet

from gsession_django.database import clock, postgresql
from gsession_django.database.rows import next_start
from gsession_django.database.statements import Sessions
from gsession_django.database.table import SessionTable, available
from gsession_django.models import Session, SessionLock

# Rows of one read when all ids are listed.
_PAGE: Final = 1000


def live_ids(table: SessionTable) -> Iterator[str]:
    """Do what ``Storage.ids`` says."""
    walk, last = _Walk(table), " "  # sorts before all ids; to Oracle an empty text is NULL
    now = walk.now()
    while page := walk.live(now, last):
        yield from page
        last = page[-1]


def purge(table: SessionTable, batch_size: int, dry_run: bool) -> Iterator[int]:
    """Do what ``Storage.purge`` says, for sessions expired at its start: later ones would keep it from ending."""
    walk = _Walk(table)
    now = walk.now()
    if dry_run:
        yield walk.count(now)
    elif table.connection.vendor == "postgresql":
        yield from postgresql.purge(table, now, batch_size)
    else:
        while not walk.done:
            yield walk.remove(now, batch_size)


def purge_locks(table: SessionTable, batch_size: int) -> Iterator[int]:
    """Remove the locks that have expired by the time that it begins, and yield 0 between two steps."""
    walk = _Walk(table, SessionLock)
    now = walk.now()
    walk.remove(now, batch_size)
    while not walk.done:
        yield 0
        walk.remove(now, batch_size)


class _Walk:
    """A walk through the rows of a model that expire."""

    def __init__(self, table: SessionTable, model: type[Session | SessionLock] = Session) -> None:
        self.table = table
        self._model = model
        self.done = False
        # Every row up to this expiry is removed. The next batch is looked for behind it, because a database still walks
        # over rows that were removed just now.
        self._passed = -(2**63)

    @property
    def _rows(self) -> QuerySet[Any]:
        return self._model._default_manager.using(self.table.alias)

    @available
    def now(self) -> int:
        return clock.now(self.table.connection)

    @available
    def live(self, now: int, last: str) -> list[str]:
        rows = self._rows.filter(expires__gt=now, id__gt=last).order_by("id")
        return list(rows.values_list("id", flat=True)[:_PAGE])

    @available
    def count(self, now: int) -> int:
        return self._rows.filter(expires__lte=now).count()

    @available
    def remove(self, now: int, batch_size: int) -> int:
        """Remove a batch."""
        expired = self._rows.filter(expires__lte=now, expires__gte=self._passed).order_by("expires")
        next_batch = expired.values_list("expires", flat=True)[batch_size : batch_size + 1]
        until = next(iter(next_batch), None)
        self.done = until is None
        features = self.table.connection.features
        # Oracle has both features, but not in one query.
        if features.has_select_for_update_skip_locked and features.supports_select_for_update_with_limit:
            with transaction.atomic(self.table.alias):
                removed = self._remove(now, expired.select_for_update(skip_locked=True)[:batch_size])
        else:
            removed = self._remove(now, expired[:batch_size])
        if until is not None:
            self._passed = next_start(self._passed, until, removed)
        return removed

    def _remove(self, now: int, batch: Sessions) -> int:
        connection = self.table.connection
        ids: Any = batch.values("id")
        if not connection.features.allow_sliced_subqueries_with_in:
            ids = list(batch.values_list("id", flat=True))
            if not ids:
                return 0
        # The condition again: a request may have renewed one of them since the look-up.
        rows = self._rows.filter(id__in=ids, expires__lte=now)
        return rows._raw_delete(connection.alias)  # delete() would look for relations and signal receivers
