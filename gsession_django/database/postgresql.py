"""The purge on PostgreSQL, which can find a row by its place in the table (``ctid``).

Rows that expire one after another are spread over the table, and each page that a purge writes to costs time. So the
purge looks up the rows of many batches at once, and removes them in the order of their places. When nine rows in ten
have expired, that takes less than half the time, and a shorter purge disturbs visitors less. The place of a row is only
a hint: since the look-up a request may have renewed the row, or another row may have taken its place. So each removal
checks the expiry again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gsession_django.database.rows import next_start
from gsession_django.database.table import SessionTable, available
from gsession_django.models import Session

# The most rows of one look-up: 12 MB of text for the client. Look-ups start small and grow, because for a few rows
# PostgreSQL takes the index, even with the statistics of the time before a purge.
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
    """Do what ``Storage.purge`` says, for sessions that expired by `now`: later ones would keep it from ending."""
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
    """The result of one look-up.

    Attributes:
        batches: the places of the rows of each batch, as PostgreSQL writes an array.
        rows: the number of rows in all batches.
        until: the last expiry among them, in milliseconds since 1970.
    """

    batches: list[str]
    rows: int
    until: int


class _Places:
    def __init__(self, table: SessionTable) -> None:
        self.table = table

    @available
    def look_ahead(self, now: int, passed: int, rows: int, batch_size: int) -> _Ahead:
        """Return the places of up to `rows` expired rows, from the expiry `passed` on."""
        with self.table.connection.cursor() as cursor:
            cursor.execute(_LOOK_AHEAD, (batch_size, now, passed, rows))
            found = cursor.fetchall()
        batches, counts, expiries = zip(*found, strict=True) if found else ((), (), ())
        return _Ahead(list(batches), sum(counts), max(expiries, default=passed))

    @available
    def remove(self, batch: str, now: int) -> int:
        """Remove a batch, and return the number of removed rows."""
        with self.table.connection.cursor() as cursor:
            cursor.execute(_REMOVE, (now, now, batch))
            return int(cursor.rowcount)
