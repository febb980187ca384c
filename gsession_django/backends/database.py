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
from gsession_django.database.locks import LockTable
from gsession_django.database.rows import Version, check_new_id, column_of, is_id, new_version, user_of
from gsession_django.database.table import SessionTable, available
from gsession_django.recording import System


class DatabaseStorage(Storage):
    """Keeps each session in a row of the table ``gsession_django_session``.

    Args:
        using: the alias in ``DATABASES``. With ``None`` the engine reads and writes where the routers write.
    """

    def __init__(self, using: str | None = None) -> None:
        self.table = SessionTable(using)
        self.locks = LockTable(self.table)

    def system(self) -> System:
        return self.table.system

    def _session(self, row: tuple[Any, ...] | None) -> SessionMap | None:
        """Return the session in a row; ``None`` without a row, or when the session has expired."""
        if row is None or row[2] <= 0:
            return None
        data, version, left, user = row
        return SessionMap(decode_pairs(self.table.data_of(data)), Version(version, user), left / 1000)

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
        data, version = self.table.data(session.encoded()), Version(new_version(), user_of(session))
        for _ in range(2):  # the id may belong to an expired row, which this or a purge removes
            try:
                with self.table.savepoint():
                    expires = self.table.now() + 1000 * ttl
                    self.table.change(sql.CREATE, session_id, data, version.number, expires, version.user)
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
        table, version, known = self.table, Version(new_version(), user_of(session)), session.version
        if session.cleared:
            data = table.data(session.encoded())
            now = table.now()
            there = table.change(sql.REPLACE, data, *version, now + 1000 * ttl, session_id, now) > 0
        elif known is None or not self._save(session_id, session.encoded(), version, ttl, known):
            return self._merge(session_id, session, ttl)
        else:
            there = True
        session.version = version
        return there

    def _save(self, session_id: str, data: bytes, version: Version, ttl: int | None, known: Version) -> bool:
        """Write to the row if its version is still `known`. A `ttl` of ``None`` keeps its expiry."""
        table, stored, now = self.table, self.table.data(data), self.table.now()
        expires = () if ttl is None else (now + 1000 * ttl,)
        user = () if version.user == known.user else (version.user,)
        statement = sql.SAVES[len(expires), len(user)]
        return table.change(statement, stored, version.number, *user, *expires, session_id, now, known.number) > 0

    def _merge(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        number = new_version()
        while (current := self._reread(session_id)) is not None:
            renews = session.renews_ttl(current)
            merged = session.merged_onto(current)
            data, version = encode_pairs(merged, {}), Version(number, user_of(SessionMap(merged)))
            if self._save(session_id, data, version, ttl if renews else None, current.version):
                session.version = version
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

    @available
    def sessions_of(self, user_id: str) -> list[str]:
        return list(sql.of_user(self.table.rows, column_of(user_id), self.table.now()))

    def lock(self, session_id: str, token: str, seconds: float) -> bool:
        return self.locks.take(session_id, token, seconds)

    def unlock(self, session_id: str, token: str) -> None:
        self.locks.free(session_id, token)

    def transaction(self) -> SiteTransaction | None:
        return self.table.transaction()

    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        yield from walk.purge(self.table, batch_size, dry_run)
        if not dry_run:
            yield from self.locks.purge(batch_size)

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
