"""Purging on PostgreSQL, which can be told where in the table a row is.

Rows that expire one after another are all over the table, and what costs is each page that is written to. So the rows
of many batches are looked up at once, and removed in the order in which they are in the table. Where nine rows in ten
go, that takes less than half the time, which is time in which visitors notice it. The place of a row is only a hint:
it may have been renewed meanwhile, or removed and another be there. So each is asked once more whether it has expired.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gsession_django.database.rows import next_start
from gsession_django.database.table import SessionTable, available
from gsession_django.models import Session

# Rows that are looked up at once, at most, which the client has as 12 MB of text. They become more each time: for
# the first few PostgreSQL takes the index, even where its statistics are those from before a purge.
_MOST: Final = 1_000_000
_FACTOR: Final = 10

_TABLE: Final = f'"{Session._meta.db_table}"'
_LOOK_AHEAD: Final = f"""SELECT array_agg(place)::text, count(*), max(expires) FROM (
        SELECT place, expires, (row_number() OVER (ORDER BY place) - 1) / %s AS batch FROM (
            SELECT ctid AS place, expires FROM {_TABLE} WHERE expires <= %s AND expires >= %s ORDER BY expires LIMIT %s
        ) AS ahead
    ) AS placed GROUP BY batch ORDER BY batch
"""
_REMOVE: Final = f"""DELETE FROM {_TABLE} WHERE expires <= %s AND ctid = ANY(ARRAY(
        SELECT ctid FROM {_TABLE} WHERE expires <= %s AND ctid = ANY(%s::tid[]) FOR UPDATE SKIP LOCKED
    ))
"""


def purge(table: SessionTable, now: int, batch_size: int) -> Iterator[int]:
    """Do what ``Storage.purge`` says, for what has expired by `now`, so that it ends."""
    places, passed, rows = _Places(table), -(2**63), batch_size
    while True:
        ahead = places.look_ahead(now, passed, rows, batch_size)
        removed = 0
        if not ahead.batches:
            yield 0
        for batch in ahead.batches:
            removed += (number := places.remove(batch, now))
            yield number
        if ahead.rows < rows:
            return
        passed = next_start(passed, ahead.until, removed)
        rows = max(rows, min(_FACTOR * rows, _MOST))


@dataclass(frozen=True)
class _Ahead:
    """Rows that were looked up.

    Attributes:
        batches: the places of those of each batch, as PostgreSQL writes an array.
        rows: how many there are in all batches.
        until: the last expiry among them.
    """

    batches: list[str]
    rows: int
    until: int


class _Places:
    def __init__(self, table: SessionTable) -> None:
        self.table = table

    @available
    def look_ahead(self, now: int, passed: int, rows: int, batch_size: int) -> _Ahead:
        """Return the places of so many rows that have expired, from the expiry `passed` on."""
        with self.table.connection.cursor() as cursor:
            cursor.execute(_LOOK_AHEAD, (batch_size, now, passed, rows))
            found = cursor.fetchall()
        batches, counts, expiries = zip(*found, strict=True) if found else ((), (), ())
        return _Ahead(list(batches), sum(counts), max(expiries, default=passed))

    @available
    def remove(self, batch: str, now: int) -> int:
        """Remove a batch, and return how many rows that were."""
        with self.table.connection.cursor() as cursor:
            cursor.execute(_REMOVE, (now, now, batch))
            return int(cursor.rowcount)
