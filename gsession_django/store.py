"""SessionStore, the adapter: Django's SessionBase onto a Storage.

Each operation is written once, as a generator that yields the calls it wants made and is sent what they return. It is
driven by plain calls (``_run``), by awaiting the storage's native twins, or in a thread (``_arun``).
"""

import hashlib
import math
import re
import secrets
from collections.abc import Generator, ItemsView, KeysView, Mapping, ValuesView
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from typing import Any, ClassVar, Final

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.sessions.backends.base import CreateError, SessionBase, UpdateError
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured

from gsession_django.conf import conf
from gsession_django.engine import engine_of
from gsession_django.session_map import EXPIRY_KEY, MISSING, SessionMap
from gsession_django.storage import Disabled, Storage

RESERVED_KEY: Final = "_gsession"
"""What a per-key storage is given to keep where a session has no pairs. No user ever sees it."""

# What http.cookies sends as it is, without quotes (RFC 6265, section 4.1.1, allows a little more).
_COOKIE_SAFE: Final = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~:]{8,}")
_KEY_ATTEMPTS: Final = 100
PURGE_BATCH_SIZE: Final = 1000
"""Sessions that one step of a purge removes at most, where nobody says otherwise."""
_UNABLE: Final = object()

Operation = Generator["tuple[Any, ...] | _Turn", Any, Any]


class _Turn:
    """Yielded by an operation that waits for the lock of an id."""

    __slots__ = ("future", "lock_id")

    def __init__(self, lock_id: str, future: Future[None]) -> None:
        self.lock_id = lock_id
        self.future = future


class SessionStore(SessionBase):
    """A Django session engine on any :class:`Storage`: subclass it in a module of your own and name that module in
    ``SESSION_ENGINE``.

    It behaves as https://docs.djangoproject.com/en/stable/topics/http/sessions/ says, with one difference: a value that
    was changed in place (``session["cart"]["apple"] = 1``) is saved.

    Attributes:
        storage_class: the Storage that keeps the sessions.
    """

    storage_class: ClassVar[type[Storage]]

    _modified = False
    _gone = False

    @classmethod
    def check(cls) -> list[CheckMessage]:
        """Return what is wrong with the settings that only this engine uses; called by Django's system checks."""
        return []

    def __init__(self, session_key: str | None = None) -> None:
        super().__init__(session_key)
        self._engine = engine_of(type(self))

    @classmethod
    def get_storage(cls) -> Storage:
        """Return the engine's Storage object: one a process, made when it is first asked for."""
        return engine_of(cls).storage

    # What Django does not have.

    @property
    def session_id(self) -> str | None:
        """What the storage is given for this session; ``None`` as long as there is no session key."""
        key = self.session_key
        return None if key is None else self._id_of(key)

    @property
    def ttl_left(self) -> float | None:
        """Seconds that the session had to live when it was read or last renewed; ``None`` where that is not known."""
        session: SessionMap = self._session
        return session.ttl_left

    @property
    def modified(self) -> bool:
        """Whether anything was set, or a value that was handed out has been changed in place since.

        Setting it to ``False`` lets it count from now. Reading it neither loads the session nor counts as access.
        """
        if self._modified:
            return True
        session: SessionMap | None = self.__dict__.get("_session_cache")
        return session is not None and session.altered()

    @modified.setter
    def modified(self, value: bool) -> None:
        self._modified = value
        if not value and (session := self.__dict__.get("_session_cache")) is not None:
            session.take_baseline()

    # Keys and ids.

    def _id_of(self, session_key: str) -> str:
        return hashlib.sha256(session_key.encode()).hexdigest() if self._engine.hash_ids else session_key

    def _validate_session_key(self, key: str | None) -> bool:
        # What no cookie of ours can hold is no session key, so that it never gets near a storage.
        return key is not None and _COOKIE_SAFE.fullmatch(key) is not None

    def _get_new_session_key(self) -> str:
        key: str = self._run(self._new_key(self.get_session_cookie_age()))
        return key

    async def _aget_new_session_key(self) -> str:
        key: str = await self._arun(self._new_key(self.get_session_cookie_age()))
        return key

    # Driving an operation.

    def _run(self, operation: Operation) -> Any:
        engine = self._engine
        try:
            call = next(operation)
            while True:
                try:
                    if isinstance(call, tuple):
                        result = getattr(engine.storage, call[0])(*call[1:])
                    else:
                        engine.locks.wait(call.lock_id, call.future)
                        result = None
                except BaseException as error:
                    call = operation.throw(error)
                else:
                    call = operation.send(result)
        except StopIteration as stop:
            return stop.value

    async def _arun(self, operation: Operation) -> Any:
        engine = self._engine
        if not engine.is_async:
            return await sync_to_async(self._run)(operation)
        try:
            call = next(operation)
            while True:
                try:
                    if isinstance(call, tuple):
                        result = await getattr(engine.storage, f"a{call[0]}")(*call[1:])
                    else:
                        await engine.locks.await_turn(call.lock_id, call.future)
                        result = None
                except BaseException as error:
                    call = operation.throw(error)
                else:
                    call = operation.send(result)
        except StopIteration as stop:
            return stop.value

    def _try(self, name: str, *args: Any) -> Operation:
        """Call a method if the storage has it; a ``Disabled`` that it raises is remembered."""
        able = self._engine.able
        if name in able:
            try:
                return (yield (name, *args))
            except Disabled:
                able.discard(name)
        return _UNABLE

    def _need(self, name: str, *args: Any) -> Operation:
        """Call a method without which no session can be held."""
        result = yield from self._try(name, *args)
        if result is _UNABLE:
            raise self._incapable(name)
        return result

    def _incapable(self, name: str) -> ImproperlyConfigured:
        return ImproperlyConfigured(
            f"{self.storage_class.__qualname__}.{name}() of the engine {type(self).__module__!r} is disabled, and "
            "without it the storage cannot hold a session."
        )

    # Reading.

    def load(self) -> SessionMap:  # type: ignore[override]
        session: SessionMap = self._run(self._load())
        return session

    async def aload(self) -> SessionMap:  # type: ignore[override]
        session: SessionMap = await self._arun(self._load())
        return session

    def _load(self) -> Operation:
        key = self.session_key
        session = None if key is None else (yield from self._read(self._id_of(key)))
        if session is None:
            self._session_key = None
            return SessionMap({})
        if "get" in self._engine.able:
            session.source = self
        return session

    def _read(self, session_id: str) -> Operation:
        """Return what is stored, as a SessionMap, or ``None``."""
        try:
            found = yield "get_session", session_id, self.get_session_cookie_age(), None
        except Disabled as error:
            raise self._incapable("get_session") from error
        if found is None:
            return None
        session = found if isinstance(found, SessionMap) else SessionMap(found)
        session.partial = not session and "get" in self._engine.able
        session.hide(RESERVED_KEY)
        return session

    def _read_all(self, session_id: str) -> Operation:
        """The same, complete."""
        session = yield from self._read(session_id)
        if session is not None and session.partial:
            session.learn(_without_reserved((yield from self._need("get_map", session_id))), complete=True)
        return session

    def _get_session(self, no_load: bool = False) -> SessionMap:
        if (session := self._held(no_load)) is None:
            session = self._session_cache = self.load()
        return session

    async def _aget_session(self, no_load: bool = False) -> SessionMap:
        if (session := self._held(no_load)) is None:
            session = self._session_cache = await self.aload()
        return session

    _session = property(_get_session)

    def _held(self, no_load: bool = False) -> SessionMap | None:
        """Return this request's session if it is here already, or if there is none to load."""
        self.accessed = True
        session: SessionMap | None = self.__dict__.get("_session_cache")
        if session is None and (no_load or self.session_key is None):
            session = self._session_cache = SessionMap({})
        return session

    def _loaded(self) -> Operation:
        """Return this request's session, which is read if it was not before."""
        if (session := self._held()) is None:
            session = self._session_cache = yield from self._load()
        return session

    def _ttl(self, session: SessionMap) -> Operation:
        """Return what the session has to live now, in whole seconds."""
        if session.lacks(EXPIRY_KEY):
            yield from self._fetch(session, EXPIRY_KEY)
        return math.ceil(self.get_expiry_age(expiry=session.get(EXPIRY_KEY)))

    def exists(self, session_key: str | None) -> bool:
        return bool(self._run(self._exists(session_key)))

    async def aexists(self, session_key: str | None) -> bool:
        return bool(await self._arun(self._exists(session_key)))

    def _exists(self, session_key: str | None) -> Operation:
        if session_key is None or not self._validate_session_key(session_key):
            return False
        session_id = self._id_of(session_key)
        found = yield from self._try("exists", session_id)
        return (yield from self._read(session_id)) is not None if found is _UNABLE else found

    # Creating.

    def create(self) -> None:
        self._run(self._create())

    async def acreate(self) -> None:
        await self._arun(self._create())

    def _create(self) -> Operation:
        session = self._get_session(no_load=True)
        ttl = yield from self._ttl(session)
        for _ in range(_KEY_ATTEMPTS):
            key = yield from self._new_key(ttl)
            if (yield from self._store_new(self._id_of(key), session, ttl)):
                self._session_key = key
                self._gone = False
                self.modified = True
                return
        raise CreateError(
            f"{self.storage_class.__qualname__} of the engine {type(self).__module__!r} said of {_KEY_ATTEMPTS} new "
            "session keys in a row that they are taken. Look at its new() and create()."
        )

    def _new_key(self, ttl: int) -> Operation:
        key = yield from self._try("new", ttl)
        if key is _UNABLE:
            return secrets.token_hex(16)
        if not isinstance(key, str) or not self._validate_session_key(key):
            raise ValueError(
                f"{self.storage_class.__qualname__}.new() returned {key!r}, which is no session key: it takes at least "
                "8 characters, all of them letters, digits or one of !#$%&'*+-.^_`|~:"
            )
        return key

    def _store_new(self, session_id: str, session: SessionMap, ttl: int) -> Operation:
        stored = yield from self._try("create", session_id, session, ttl)
        if stored is _UNABLE:
            data = session.as_dict()
            yield from self._write(session_id, self._pairs(data), set(), data, ttl)
            stored = True
        if stored:
            session.saved()
            session.ttl_left = ttl
        return stored

    # Saving.

    def save(self, must_create: bool = False) -> None:
        self._run(self._save(must_create))

    async def asave(self, must_create: bool = False) -> None:
        await self._arun(self._save(must_create))

    def _save(self, must_create: bool) -> Operation:
        if self._gone and self.session_key is not None:
            raise UpdateError
        if must_create and self.session_key is not None:
            yield from self._create_at(self.session_key)
            return
        session = None if self.session_key is None else (yield from self._loaded())
        if session is None or self.session_key is None:
            yield from self._create()
            return
        session_id = self._id_of(self.session_key)
        ttl = yield from self._ttl(session)
        if session.has_changes():
            there = yield from self._apply(session_id, session, ttl)
        else:
            there = yield from self._touch(session_id, session, ttl)
        if not there:
            raise UpdateError

    def _create_at(self, key: str) -> Operation:
        session = self._get_session(no_load=True)
        ttl = yield from self._ttl(session)
        # Composed, create knows nothing of other sessions. For a random key of ours it need not; this one is given.
        taken = "create" not in self._engine.able and (yield from self._exists(key))
        if taken or not (yield from self._store_new(self._id_of(key), session, ttl)):
            raise CreateError

    def _touch(self, session_id: str, session: SessionMap, ttl: int) -> Operation:
        """Renew the TTL of an unchanged session; ``False`` when it is gone."""
        asked_for = self._modified or not settings.SESSION_SAVE_EVERY_REQUEST
        if not asked_for and session.ttl_left is not None:
            age = ttl - session.ttl_left
            if 0 <= age < min(conf().touch_interval, ttl / 10):
                return True
        there = yield from self._try("update_ttl", session_id, ttl)
        if there is _UNABLE:
            there = yield from self._try("apply", session_id, session, ttl)
        if there is _UNABLE:
            there = yield from self._locked(session_id, self._rewrite(session_id, ttl))
        session.ttl_left = ttl
        return there is not False

    def _rewrite(self, session_id: str, ttl: int) -> Operation:
        by_pairs = "set_session" not in self._engine.able
        current = yield from (self._read_all if by_pairs else self._read)(session_id)
        if current is None:
            return False
        data = current.as_dict()
        yield from self._write(session_id, self._pairs(data) if by_pairs else {}, set(), data, ttl)
        return True

    def _apply(self, session_id: str, session: SessionMap, ttl: int) -> Operation:
        """Store what the request did to the session; ``False`` when it is gone."""
        session.unsaved()
        there = yield from self._try("apply", session_id, session, ttl)
        if there is _UNABLE:
            there = yield from self._locked(session_id, self._compose_apply(session_id, session, ttl))
        if there:
            session.saved()
            session.ttl_left = ttl
        return there

    def _compose_apply(self, session_id: str, session: SessionMap, ttl: int) -> Operation:
        changed, removed = session.changed, session.removed
        # What there is must be known as a whole to be cleared, or to be written anew where nothing removes one pair.
        by_pairs = not session.cleared and not (removed and not self._engine.able & {"remove", "set_session"})
        current: SessionMap | None = yield from (self._read if by_pairs else self._read_all)(session_id)
        if current is None:
            return False
        if current.partial:
            # Only a dict is merged with what is stored; of anything else the last one saved wins.
            for key, value in changed.items():
                stored = (yield from self._need("get", session_id, key)) if isinstance(value, dict) else None
                changed[key] = session.merged_value(key, MISSING if stored is None else stored)
            whole = session.as_dict() | changed
        else:
            if session.cleared:
                removed = current.keys() - changed.keys()
            whole = session.merged_onto(current)
            changed = {key: whole[key] for key in changed}
            if not session.renews_ttl(current):
                ttl = math.ceil(self.get_expiry_age(expiry=current.get(EXPIRY_KEY)))
        if removed and not changed and (current.partial or not whole):
            changed = self._pairs({})
        yield from self._write(session_id, changed, removed, whole, ttl)
        return True

    def _pairs(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the pairs to store of a session: never none where a medium without pairs would forget the session."""
        able = self._engine.able
        return data or ({RESERVED_KEY: True} if "get" in able or "set_session" not in able else {})

    def _write(
        self, session_id: str, changed: dict[str, Any], removed: AbstractSet[str], whole: dict[str, Any], ttl: int
    ) -> Operation:
        """Store a session with the methods of gsession: the pairs that changed, and then what is known of the whole."""
        able = self._engine.able
        if removed and not able & {"remove", "set_session"}:
            yield from self._need("remove_all", session_id)
            changed = self._pairs(whole)
        stored = False
        if changed:
            stored = (yield from self._try("set_map", session_id, changed, ttl)) is not _UNABLE
            if not stored:
                for key, value in changed.items():
                    stored = (yield from self._try("set", session_id, key, value, ttl)) is not _UNABLE
        for key in removed:
            yield from self._try("remove", session_id, key)
        if (yield from self._try("set_session", session_id, whole, ttl)) is _UNABLE and not stored:
            yield from self._need("set_map", session_id, self._pairs(whole), ttl)

    def _locked(self, session_id: str, operation: Operation) -> Operation:
        """Run an operation that is composed of several calls with the id to itself, in this process."""
        locks = self._engine.locks
        if (turn := locks.acquire(session_id)) is not None:
            yield _Turn(session_id, turn)
        try:
            return (yield from operation)
        finally:
            locks.release(session_id)

    # Ending, and changing the key.

    def clear(self) -> None:
        before: SessionMap | None = self.__dict__.get("_session_cache")
        self._session_cache = SessionMap({}) if before is None else SessionMap({}, before.version, before.ttl_left)
        self._session_cache.clear()
        self.accessed = True
        self.modified = True

    def delete(self, session_key: str | None = None) -> None:
        self._run(self._delete(session_key))

    async def adelete(self, session_key: str | None = None) -> None:
        await self._arun(self._delete(session_key))

    def _delete(self, session_key: str | None) -> Operation:
        key = session_key or self.session_key
        if key is not None and self._validate_session_key(key):
            session_id = self._id_of(key)
            yield from self._locked(session_id, self._need("remove_all", session_id))

    def cycle_key(self) -> None:
        self._run(self._cycle_key())

    async def acycle_key(self) -> None:
        await self._arun(self._cycle_key())

    def _cycle_key(self) -> Operation:
        session = yield from self._loaded()
        if self.session_key is None:
            yield from self._create()
            return
        old_id = self._id_of(self.session_key)
        ttl = yield from self._ttl(session)
        new_key = yield from self._new_key(ttl)
        new_id = self._id_of(new_key)
        moved = yield from self._try("move", old_id, new_id, ttl)
        if moved is _UNABLE:
            moved = yield from self._locked(old_id, self._compose_move(old_id, new_id, ttl))
        if moved:
            session.ttl_left = ttl
        self._gone = not moved
        self._session_key = new_key
        self.modified = True

    def _compose_move(self, old_id: str, new_id: str, ttl: int) -> Operation:
        current = yield from self._read_all(old_id)
        if current is None:
            return False
        if not (yield from self._store_new(new_id, SessionMap(current.as_dict()), ttl)):
            return False
        yield from self._need("remove_all", old_id)
        return True

    @classmethod
    def clear_expired(cls) -> None:
        engine = engine_of(cls)
        if engine.storage.expires_itself:
            return
        if "purge" not in engine.able:
            raise NotImplementedError(
                f"{cls.storage_class.__qualname__} of the engine {cls.__module__!r} cannot remove expired sessions: it "
                "has no purge(), and its expires_itself is False."
            )
        for _ in engine.storage.purge(PURGE_BATCH_SIZE):
            pass

    # A value of a per-key storage is fetched before it is used, so that no async method ever blocks.

    def fetch(self, session: SessionMap, key: str | None) -> None:
        """Part of the adapter: see :class:`gsession_django.session_map.Source`."""
        self._run(self._fetch(session, key))

    async def afetch(self, session: SessionMap, key: str | None) -> None:
        """Part of the adapter: see :class:`gsession_django.session_map.Source`."""
        await self._arun(self._fetch(session, key))

    def fetch_size(self) -> int:
        """Part of the adapter: see :class:`gsession_django.session_map.Source`."""
        size: int = self._run(self._size())
        return size

    def _fetch(self, session: SessionMap, key: str | None) -> Operation:
        assert self.session_id is not None  # or there would be nothing to fetch from
        if key is not None:
            value = yield from self._try("get", self.session_id, key)
            if value is not _UNABLE and value is not None:
                session.learn({key: value})
                return
        data = yield from self._need("get_map", self.session_id)
        session.learn(_without_reserved(data), complete=True)

    def _size(self) -> Operation:
        size = yield from self._try("get_size", self.session_id)
        if size is _UNABLE:
            return len(_without_reserved((yield from self._need("get_map", self.session_id))))
        if (yield from self._try("get", self.session_id, RESERVED_KEY)) is not None:
            size -= 1
        return size

    async def _afetched(self, key: str) -> None:
        session: SessionMap = await self._aget_session()
        await session.afetch(key)

    async def aget(self, key: str, default: Any = None) -> Any:
        await self._afetched(key)
        return await super().aget(key, default)

    async def apop(self, key: str, *args: Any, **kwargs: Any) -> Any:
        await self._afetched(key)
        return await super().apop(key, *args, **kwargs)

    async def asetdefault(self, key: str, value: Any) -> Any:
        await self._afetched(key)
        return await super().asetdefault(key, value)

    async def ahas_key(self, key: str) -> bool:
        await self._afetched(key)
        return await super().ahas_key(key)

    async def adelete_test_cookie(self) -> None:
        await self._afetched(self.TEST_COOKIE_NAME)
        await super().adelete_test_cookie()

    async def akeys(self) -> KeysView[str]:  # type: ignore[override]
        session: SessionMap = await self._aget_session()
        if session.partial:
            await session.afetch()
        return session.keys()

    async def avalues(self) -> ValuesView[Any]:  # type: ignore[override]
        session: SessionMap = await self._aget_session()
        await session.afetch()
        return session.values()

    async def aitems(self) -> ItemsView[str, Any]:  # type: ignore[override]
        session: SessionMap = await self._aget_session()
        await session.afetch()
        return session.items()


def _without_reserved(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != RESERVED_KEY}
