"""What goes through a table of any size: in batches, and beside live traffic.

Expired sessions are found by the index on the expiry, and a batch is all that is ever locked. Where the database can,
rows that somebody else has locked are passed over: another purge is about to remove them, or a request to renew them.
"""

from collections.abc import Iterator
from typing import Final

from django.db import transaction

from gsession_django.database.statements import Sessions
from gsession_django.database.table import SessionTable, available

# Rows that are read at once where all are wanted.
_PAGE: Final = 1000


def live_ids(table: SessionTable, now: int) -> Iterator[str]:
    """Do what ``Storage.ids`` says."""
    walk, last = _Walk(table), ""
    while page := walk.live(now, last):
        yield from page
        last = page[-1]


def purge(table: SessionTable, now: int, batch_size: int, dry_run: bool) -> Iterator[int]:
    """Do what ``Storage.purge`` says, for what has expired by `now`, so that it ends."""
    walk = _Walk(table)
    if dry_run:
        yield walk.count(now)
        return
    while not walk.done:
        yield walk.remove(now, batch_size)


class _Walk:
    def __init__(self, table: SessionTable) -> None:
        self.table = table
        self.done = False
        # The expiry up to which everything is removed. A database goes on walking over rows that were removed just now,
        # so the next batch is looked for behind them.
        self._passed = -(2**63)

    @available
    def live(self, now: int, last: str) -> list[str]:
        rows = self.table.rows.filter(expires__gt=now, id__gt=last).order_by("id")
        return list(rows.values_list("id", flat=True)[:_PAGE])

    @available
    def count(self, now: int) -> int:
        return self.table.rows.filter(expires__lte=now).count()

    @available
    def remove(self, now: int, batch_size: int) -> int:
        features = self.table.connection.features
        limit = features.max_query_params
        size = batch_size if limit is None else min(batch_size, limit - 1)
        expired = self.table.rows.filter(expires__lte=now, expires__gte=self._passed).order_by("expires")
        if not features.has_select_for_update_skip_locked:
            return self._remove(now, expired, size)
        with transaction.atomic(self.table.alias):
            return self._remove(now, expired.select_for_update(skip_locked=True), size)

    def _remove(self, now: int, expired: Sessions, size: int) -> int:
        batch = list(expired.values_list("id", "expires")[:size])
        self.done = len(batch) < size
        if not batch:
            return 0
        self._passed = batch[-1][1]
        # The condition once more, as one of them may have been renewed meanwhile.
        rows = self.table.rows.filter(id__in=[session_id for session_id, _ in batch], expires__lte=now)
        return rows._raw_delete(self.table.alias)  # delete() would look for relations, and for whom to tell
