import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

import gsession_django


class SQLiteStorage(gsession_django.Storage):
    def __init__(self, *, path: str = "sessions.sqlite3") -> None:
        self.path = path

    @contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path)) as db, db:
                db.execute("CREATE TABLE IF NOT EXISTS session (id PRIMARY KEY, data, expires)")
                yield db
        except sqlite3.Error as error:
            raise gsession_django.StorageUnavailable(f"{self.path}: {error}") from error

    def get_session(self, session_id: str, ttl: int, data: object = None) -> Mapping[str, object] | None:
        sql = "SELECT data FROM session WHERE id = ? AND expires > ?"
        with self.connect() as db:
            row = db.execute(sql, (session_id, time.time())).fetchone()
        return self.decode(row[0]) if row else None

    def set_session(self, session_id: str, data: Mapping[str, object], ttl: int) -> None:
        row = (session_id, self.encode(dict(data)), time.time() + ttl)
        with self.connect() as db:
            db.execute("REPLACE INTO session VALUES (?, ?, ?)", row)

    def remove_all(self, session_id: str) -> None:
        with self.connect() as db:
            db.execute("DELETE FROM session WHERE id = ?", (session_id,))

    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        sql = "SELECT id, expires FROM session WHERE expires <= ?"
        with self.connect() as db:
            dead = db.execute(sql, (time.time(),)).fetchall()
        for batch in (dead[n : n + batch_size] for n in range(0, len(dead), batch_size)):
            if not dry_run:
                with self.connect() as db:
                    db.executemany("DELETE FROM session WHERE id = ? AND expires = ?", batch)
            yield len(batch)


class SessionStore(gsession_django.SessionStore):
    storage_class = SQLiteStorage
