"""Sessions in a database, through Django's ORM: for a site that wants no other server for its sessions."""

from collections.abc import Iterator
from typing import Any

from django.core.checks import CheckMessage
from django.db import IntegrityError

from gsession_django.core.documents import decode_pairs, encode_pairs
from gsession_django.core.session_map import SessionMap
from gsession_django.core.storage import Storage
from gsession_django.core.store import SessionStore as BaseSessionStore
from gsession_django.core.transactions import SiteTransaction
from gsession_django.database import checks, walk
from gsession_django.database import statements as sql
from gsession_django.database.rows import check_new_id, is_id, new_version
from gsession_django.database.table import SessionTable, available
from gsession_django.recording import System


class DatabaseStorage(Storage):
    """Keeps each session in a row of the table ``gsession_django_session``.

    Args:
        using: the alias in ``DATABASES``. With ``None`` the engine reads and writes where the routers write.
    """

    def __init__(self, using: str | None = None) -> None:
        self.table = SessionTable(using)

    def system(self) -> System:
        return self.table.system

    def _session(self, row: tuple[Any, Any, Any] | None) -> SessionMap | None:
        """Return the session in a row; ``None`` without a row, or when the session has expired."""
        if row is None or row[2] <= 0:
            return None
        data, version, left = row
        return SessionMap(decode_pairs(self.table.data_of(data)), version, left / 1000)

    @available
    def get_session(self, session_id: str, ttl: int, data: Any = None) -> SessionMap | None:
        return self._read(session_id) if is_id(session_id) else None

    def _read(self, session_id: str) -> SessionMap | None:
        return self._session(self.table.read(sql.READ, self.table.now(), session_id))

    @available
    def exists(self, session_id: str) -> bool:
        return is_id(session_id) and self.table.read(sql.LOOK, session_id, self.table.now()) is not None

    @available
    def update_ttl(self, session_id: str, ttl: int) -> bool:
        if not is_id(session_id):
            return False
        now = self.table.now()
        return self.table.change(sql.TOUCH, now + 1000 * ttl, session_id, now) > 0

    @available
    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        check_new_id(session_id)
        data, version = self.table.data(session.encoded()), new_version()
        for _ in range(2):  # the id may belong to an expired row, which this or a purge removes
            try:
                with self.table.savepoint():
                    self.table.change(sql.CREATE, session_id, data, version, self.table.now() + 1000 * ttl)
            except IntegrityError:
                self.table.change(sql.REMOVE_EXPIRED, session_id, self.table.now())
            else:
                session.version = version
                return True
        return False

    @available
    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        if not is_id(session_id):
            return False
        table, version, known = self.table, new_version(), session.version
        if session.cleared:
            data = table.data(session.encoded())
            now = table.now()
            there = table.change(sql.REPLACE, data, version, now + 1000 * ttl, session_id, now) > 0
        elif known is None or not self._save(session_id, session.encoded(), version, ttl, known):
            there = self._merge(session_id, session, version, ttl)
        else:
            there = True
        session.version = version
        return there

    def _save(self, session_id: str, data: bytes, version: int, ttl: int | None, known: int) -> bool:
        """Write to the row if its version is still `known`. A `ttl` of ``None`` keeps its expiry."""
        table, stored, now = self.table, self.table.data(data), self.table.now()
        if ttl is None:
            return table.change(sql.SAVE_DATA, stored, version, session_id, now, known) > 0
        return table.change(sql.SAVE, stored, version, now + 1000 * ttl, session_id, now, known) > 0

    def _merge(self, session_id: str, session: SessionMap, version: int, ttl: int) -> bool:
        while (current := self._reread(session_id)) is not None:
            renews = session.renews_ttl(current)
            data = encode_pairs(session.merged_onto(current), {})
            if self._save(session_id, data, version, ttl if renews else None, current.version):
                return True
        return False

    def _reread(self, session_id: str) -> SessionMap | None:
        """Read the row again. A transaction reads FOR UPDATE, because a plain read may show it the old row."""
        if not self.table.in_transaction:
            return self._read(session_id)
        rows = sql.columns(sql.one(self.table.rows, session_id).select_for_update(), self.table.now())
        return self._session(next(iter(rows), None))  # first() adds a LIMIT, which Oracle refuses with FOR UPDATE

    @available
    def move(self, session_id: str, new_id: str, ttl: int) -> bool:
        check_new_id(new_id)
        if not is_id(session_id):
            return False
        table = self.table
        for _ in range(2):  # as in create()
            try:
                with table.savepoint():
                    return table.change(sql.MOVE, new_id, session_id, table.now()) > 0 or self.exists(new_id)
            except IntegrityError:
                table.change(sql.REMOVE_EXPIRED, new_id, table.now())
        return False

    @available
    def remove_all(self, session_id: str) -> None:
        if is_id(session_id):
            self.table.change(sql.REMOVE, session_id)

    def transaction(self) -> SiteTransaction | None:
        return self.table.transaction()

    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        return walk.purge(self.table, batch_size, dry_run)

    def ids(self) -> Iterator[str]:
        return walk.live_ids(self.table)


class SessionStore(BaseSessionStore):
    """The engine ``gsession_django.backends.database``."""

    storage_class = DatabaseStorage

    @classmethod
    def check(cls) -> list[CheckMessage]:
        return list(checks.check_using(cls.__module__))

    @classmethod
    def check_deployment(cls) -> list[CheckMessage]:
        return list(checks.check_table(cls.__module__))
