"""Storages with different sets of methods. Each records its calls."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from django.contrib.auth import SESSION_KEY

from gsession_django import Disabled, SessionMap, SessionStore, Storage
from gsession_django.serializers import decode, encode

Call = tuple[Any, ...]
T = TypeVar("T")


@dataclass
class Row:
    """A session on a medium that stores single pairs."""

    expires: float
    pairs: dict[str, bytes] = field(default_factory=dict)


class Medium:
    """The database of the storages below, as simple as they need it."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.calls: list[Call] = []
        self.lock = threading.RLock()

    def live(self, session_id: str) -> Row | None:
        row = self.rows.get(session_id)
        return row if row is not None and row.expires > time.time() else None

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


class Recorded(Storage):
    """Appends each call to `medium.calls`: the method's name, and its arguments without the session id."""

    def __init__(self) -> None:
        self.medium = Medium()

    def record(self, name: str, *args: Any) -> None:
        # A copy, because the caller may change an argument later.
        self.medium.calls.append((name, *(decode(encode(arg)) for arg in args)))

    def pairs(self, session_id: str) -> dict[str, Any] | None:
        row = self.medium.live(session_id)
        return None if row is None else {key: self.decode(value) for key, value in row.pairs.items()}

    def put(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        encoded = {key: self.encode(value) for key, value in data.items()}
        with self.medium.lock:
            self.medium.rows[session_id] = Row(time.time() + ttl, encoded)


class WholeMapStorage(Recorded):
    """(a) ``get_session``, ``set_session``, ``remove_all`` and nothing else."""

    def get_session(self, session_id: str, ttl: int, data: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        self.record("get_session", ttl, data)
        return self.pairs(session_id)

    def set_session(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        self.record("set_session", data, ttl)
        self.put(session_id, data, ttl)

    def remove_all(self, session_id: str) -> None:
        self.record("remove_all")
        self.medium.rows.pop(session_id, None)


class PerKeyStorage(Recorded):
    """(b) The per-key methods, as in gsession's Redis hash storage: a hash without fields does not exist."""

    def get_session(self, session_id: str, ttl: int, data: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        self.record("get_session", ttl, data)
        return None if self.medium.live(session_id) is None else {}

    def get(self, session_id: str, key: str) -> Any:
        self.record("get", key)
        return (self.pairs(session_id) or {}).get(key)

    def get_map(self, session_id: str) -> dict[str, Any]:
        self.record("get_map")
        return self.pairs(session_id) or {}

    def get_size(self, session_id: str) -> int:
        self.record("get_size")
        return len(self.pairs(session_id) or {})

    def set(self, session_id: str, key: str, value: Any, ttl: int) -> None:
        self.record("set", key, value, ttl)
        self._set(session_id, {key: value}, ttl)

    def set_map(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        self.record("set_map", data, ttl)
        self._set(session_id, data, ttl)

    def _set(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        if data:
            self.put(session_id, (self.pairs(session_id) or {}) | dict(data), ttl)

    def remove(self, session_id: str, key: str) -> None:
        self.record("remove", key)
        row = self.medium.live(session_id)
        if row is not None:
            row.pairs.pop(key, None)
            if not row.pairs:
                del self.medium.rows[session_id]

    def remove_all(self, session_id: str) -> None:
        self.record("remove_all")
        self.medium.rows.pop(session_id, None)

    def set_session(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        self.record("set_session", data, ttl)
        self._renew(session_id, ttl)

    def update_ttl(self, session_id: str, ttl: int) -> None:
        self.record("update_ttl", ttl)
        self._renew(session_id, ttl)

    def _renew(self, session_id: str, ttl: int) -> None:
        row = self.medium.live(session_id)
        if row is not None:
            row.expires = time.time() + ttl


class CompleteStorage(PerKeyStorage):
    """(c) Everything: the eleven methods and the extensions."""

    made: ClassVar[int] = 0

    def new(self, ttl: int) -> str:
        self.record("new", ttl)
        type(self).made += 1
        return f"made-here-{type(self).made:08}"

    def get_session(self, session_id: str, ttl: int, data: Mapping[str, Any] | None = None) -> SessionMap | None:  # type: ignore[override]
        self.record("get_session", ttl, data)
        row = self.medium.live(session_id)
        return None if row is None else SessionMap(self.pairs(session_id) or {}, None, row.expires - time.time())

    def update_ttl(self, session_id: str, ttl: int) -> bool:  # type: ignore[override]
        self.record("update_ttl", ttl)
        self._renew(session_id, ttl)
        return self.medium.live(session_id) is not None

    def exists(self, session_id: str) -> bool:
        self.record("exists")
        return self.medium.live(session_id) is not None

    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        self.record("create", session.as_dict(), ttl)
        if self.medium.live(session_id) is not None:
            return False
        self.put(session_id, session.as_dict(), ttl)
        return True

    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        self.record("apply", session.changed, sorted(session.removed), session.cleared, ttl)
        with self.medium.lock:
            row, current = self.medium.live(session_id), self.pairs(session_id)
            if row is None or current is None:
                return False
            self.put(session_id, session.merged_onto(current), ttl)
            if not session.renews_ttl(current):
                self.medium.rows[session_id].expires = row.expires
            return True

    def move(self, session_id: str, new_id: str, ttl: int) -> bool:
        self.record("move", ttl)
        taken = self.medium.live(new_id) is not None
        if self.medium.live(session_id) is None or taken:
            return taken and self.medium.live(session_id) is None
        self.medium.rows[new_id] = self.medium.rows.pop(session_id)
        return True

    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        self.record("purge", batch_size, dry_run)
        dead = [session_id for session_id in list(self.medium.rows) if self.medium.live(session_id) is None]
        for start in range(0, len(dead), batch_size):
            removed = 0
            for session_id in dead[start : start + batch_size]:
                with self.medium.lock:
                    if session_id in self.medium.rows and self.medium.live(session_id) is None:
                        removed += 1
                        if not dry_run:
                            del self.medium.rows[session_id]
            yield removed

    def ids(self) -> Iterator[str]:
        yield from [session_id for session_id in self.medium.rows if self.medium.live(session_id)]


class SometimesDisabledStorage(CompleteStorage):
    """(d) Overrides everything, and finds out at run time that it can do little."""

    def new(self, ttl: int) -> str:
        self.record("new", ttl)
        raise Disabled

    def exists(self, session_id: str) -> bool:
        self.record("exists")
        raise Disabled

    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        self.record("create")
        raise Disabled

    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        self.record("apply")
        raise Disabled

    def move(self, session_id: str, new_id: str, ttl: int) -> bool:
        self.record("move")
        raise Disabled

    def set_map(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        self.record("set_map")
        raise Disabled

    def update_ttl(self, session_id: str, ttl: int) -> bool:  # type: ignore[override]
        self.record("update_ttl")
        raise Disabled


class OwnIdsStorage(WholeMapStorage):
    """(e) Makes its own ids, and recognises them: they end in a check digit."""

    hash_ids = False
    made: ClassVar[int] = 0

    def new(self, ttl: int) -> str:
        self.record("new", ttl)
        type(self).made += 1
        return f"{self.made:011}.{self.made % 7}"

    def get_session(self, session_id: str, ttl: int, data: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        number, _, check = session_id.partition(".")
        if not number.isdecimal() or check != str(int(number) % 7):
            return None
        return super().get_session(session_id, ttl, data)


class IncapableStorage(Storage):
    """(f) Cannot hold a session."""

    def get(self, session_id: str, key: str) -> Any:
        raise AssertionError("never called")


class Index(Recorded):
    """What a storage has that keeps an index from users to sessions beside them, and locks."""

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[str, list[str]] = {}
        self.holders: dict[str, tuple[str, float]] = {}

    def sessions_of(self, user_id: str) -> list[str]:
        self.record("sessions_of", user_id)
        return list(self.users.get(user_id, ()))

    def add_to_user(self, user_id: str, session_id: str, ttl: int) -> None:
        self.record("add_to_user", user_id, ttl)
        with self.medium.lock:
            ids = self.users.setdefault(user_id, [])
            if session_id not in ids:
                ids.append(session_id)

    def remove_from_user(self, user_id: str, session_id: str, ended: bool) -> None:
        self.record("remove_from_user", user_id, ended)
        with self.medium.lock:
            if ended:
                self.medium.rows.pop(session_id, None)
            if session_id in (ids := self.users.get(user_id, [])):
                ids.remove(session_id)

    def lock(self, session_id: str, token: str, seconds: float) -> bool:
        self.record("lock", token, seconds)
        with self.medium.lock:
            holder, until = self.holders.get(session_id, (token, 0.0))
            if holder != token and until > time.time():
                return False
            self.holders[session_id] = token, time.time() + seconds
            return True

    def unlock(self, session_id: str, token: str) -> None:
        self.record("unlock", token)
        with self.medium.lock:
            if self.holders.get(session_id, ("", 0.0))[0] == token:
                del self.holders[session_id]


class IndexedStorage(Index, CompleteStorage):
    """(h) Everything, with an index beside the sessions."""


class UserColumnStorage(CompleteStorage):
    """(i) One that finds the user of a session in the session itself."""

    def sessions_of(self, user_id: str) -> list[str]:
        self.record("sessions_of", user_id)
        return [session_id for session_id in list(self.medium.rows) if self.user_in(session_id) == user_id]

    def user_in(self, session_id: str) -> Any:
        return (self.pairs(session_id) or {}).get(SESSION_KEY)


class AsyncStorage(CompleteStorage):
    """(g) Has native twins, which record their own names."""

    async def anew(self, ttl: int) -> str:
        return self.twin(self.new(ttl))

    async def aget_session(self, session_id: str, ttl: int, data: Any = None) -> SessionMap | None:
        return self.twin(self.get_session(session_id, ttl, data))

    async def aget(self, session_id: str, key: str) -> Any:
        return self.twin(self.get(session_id, key))

    async def aget_map(self, session_id: str) -> dict[str, Any]:
        return self.twin(self.get_map(session_id))

    async def aget_size(self, session_id: str) -> int:
        return self.twin(self.get_size(session_id))

    async def aset(self, session_id: str, key: str, value: Any, ttl: int) -> None:
        self.set(session_id, key, value, ttl)
        self.twin(None)

    async def aset_map(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        self.set_map(session_id, data, ttl)
        self.twin(None)

    async def aremove(self, session_id: str, key: str) -> None:
        self.remove(session_id, key)
        self.twin(None)

    async def aremove_all(self, session_id: str) -> None:
        self.remove_all(session_id)
        self.twin(None)

    async def aset_session(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        self.set_session(session_id, data, ttl)
        self.twin(None)

    async def aupdate_ttl(self, session_id: str, ttl: int) -> bool:
        return self.twin(self.update_ttl(session_id, ttl))

    async def aexists(self, session_id: str) -> bool:
        return self.twin(self.exists(session_id))

    async def acreate(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        return self.twin(self.create(session_id, session, ttl))

    async def aapply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        return self.twin(self.apply(session_id, session, ttl))

    async def amove(self, session_id: str, new_id: str, ttl: int) -> bool:
        return self.twin(self.move(session_id, new_id, ttl))

    def twin(self, result: T) -> T:
        name, *args = self.medium.calls.pop()
        self.medium.calls.append((f"a{name}", *args))
        return result


class AsyncPerKeyStorage(AsyncStorage):
    """Has native twins, reads key by key, and has no extensions."""

    new, anew = Storage.new, None  # type: ignore[assignment]
    exists = Storage.exists
    create = Storage.create
    apply = Storage.apply
    move = Storage.move

    def get_session(self, session_id: str, ttl: int, data: Any = None) -> Any:
        return PerKeyStorage.get_session(self, session_id, ttl, data)

    async def aget_session(self, session_id: str, ttl: int, data: Any = None) -> Any:
        return self.twin(self.get_session(session_id, ttl, data))


class PairsOnlyStorage(Recorded):
    """The smallest storage of pairs: it can neither store a whole session nor remove one pair."""

    def get_session(self, session_id: str, ttl: int, data: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        self.record("get_session", ttl, data)
        return self.pairs(session_id)

    def set_map(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        self.record("set_map", data, ttl)
        if data:
            self.put(session_id, (self.pairs(session_id) or {}) | dict(data), ttl)

    def remove_all(self, session_id: str) -> None:
        self.record("remove_all")
        self.medium.rows.pop(session_id, None)


class VersionedStorage(WholeMapStorage):
    """Compares versions in ``apply``, and has no ``move``.

    Attributes:
        after: called once, after the next call of a method, as if another process came between two calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.after: dict[str, list[Callable[[], object]]] = {}

    def passed(self, name: str) -> None:
        if self.after.get(name):
            self.after[name].pop(0)()

    def get_session(self, session_id: str, ttl: int, data: Any = None) -> SessionMap | None:  # type: ignore[override]
        self.record("get_session", ttl, data)
        row = self.medium.live(session_id)
        found = None if row is None else SessionMap(self.pairs(session_id) or {}, row)
        self.passed("get_session")
        return found

    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        self.record("create", session.as_dict(), ttl)
        if self.medium.live(session_id) is not None:
            return False
        self.put(session_id, session.as_dict(), ttl)
        session.version = self.medium.rows[session_id]
        self.passed("create")
        return True

    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        self.record("apply", session.changed, sorted(session.removed), session.cleared, ttl)
        with self.medium.lock:  # atomic, as a statement with the version in its WHERE
            row, current = self.medium.live(session_id), self.pairs(session_id)
            if row is None or current is None:
                return False
            whole = session.as_dict() if row is session.version else session.merged_onto(current)
            self.put(session_id, whole, ttl if session.renews_ttl(current) else round(row.expires - time.time()))
            session.version = self.medium.rows[session_id]
        self.passed("apply")
        return True

    def remove_all(self, session_id: str) -> None:
        super().remove_all(session_id)
        self.passed("remove_all")


class AsyncVersionedStorage(VersionedStorage):
    """The same with native twins. Between two of them other tasks run."""

    async def aget_session(self, session_id: str, ttl: int, data: Any = None) -> SessionMap | None:
        found = self.get_session(session_id, ttl, data)
        await asyncio.sleep(0)
        return found

    async def acreate(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        created = self.create(session_id, session, ttl)
        await asyncio.sleep(0)
        return created

    async def aapply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        await asyncio.sleep(0)
        return self.apply(session_id, session, ttl)

    async def aset_session(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        self.set_session(session_id, data, ttl)

    async def aremove_all(self, session_id: str) -> None:
        await asyncio.sleep(0)
        self.remove_all(session_id)


def engine(storage_class: type[Storage]) -> type[SessionStore]:
    """Return a new engine on this storage, with its own Storage object."""
    return type("SessionStore", (SessionStore,), {"storage_class": storage_class, "__module__": __name__})
