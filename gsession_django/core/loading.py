"""LoadingStore: how a request gets its session, and the values that a per-key storage is asked for one by one."""

from collections.abc import ItemsView, KeysView, ValuesView
from typing import Any

from django.contrib.auth import SESSION_KEY

from gsession_django.core.conf import conf
from gsession_django.core.driving import Operation
from gsession_django.core.pairs import Pairs
from gsession_django.core.session_map import SessionMap
from gsession_django.core.store_base import StoreBase
from gsession_django.core.values import Sentinel
from gsession_django.serializers import DecodeError


class LoadingStore(StoreBase):
    """The reading half of :class:`gsession_django.SessionStore`."""

    # Whose the session was that clear() has dropped.
    _owner_before: str | None = None

    # Django's name for the pairs of a session. Public code uses it.

    @property
    def _session_cache(self) -> SessionMap:
        try:
            session: SessionMap = self.__dict__["_session_cache"]
        except KeyError:
            raise AttributeError("_session_cache") from None
        return session

    @_session_cache.setter
    def _session_cache(self, session: SessionMap | dict[str, Any]) -> None:
        self.__dict__["_session_cache"] = session if isinstance(session, SessionMap) else SessionMap.replacing(session)

    @_session_cache.deleter
    def _session_cache(self) -> None:
        try:
            del self.__dict__["_session_cache"]
        except KeyError:
            raise AttributeError("_session_cache") from None

    # The session.

    def load(self) -> SessionMap:  # type: ignore[override]
        session: SessionMap = self._run(self._load())
        return session

    async def aload(self) -> SessionMap:  # type: ignore[override]
        session: SessionMap = await self._arun(self._load())
        return session

    def _load(self) -> Operation:
        key, session = self.session_key, None
        if key is not None:
            try:
                session = yield from self._engine.find(key, self._id_of(key), self)
            except DecodeError as error:
                # The key stays: once a setting is corrected, the session may be readable again.
                self._engine.log_unreadable(self._id_of(key), error)
                session = SessionMap({})
                session.unreadable = True
        if session is None:
            self._session_key = None
            return SessionMap({})
        if session.lacks(None):
            session.source = self
        return session

    def _fetch_needed(self, session: SessionMap) -> Operation:
        """Bring in the values that a save or a move has to know."""
        for key in self._engine.needed:
            if session.lacks(key):
                yield from self._fetch(session, key)

    def owner(self) -> str | None:
        """Return the id of the user who is signed in in the session as it is stored; ``None`` if that is nobody, or
        not known.
        """
        session: SessionMap | None = self.__dict__.get("_session_cache")
        if session is None or session.cleared:
            return self._owner_before
        user = session.base(SESSION_KEY)
        return None if user is None or isinstance(user, Sentinel) else str(user)

    def get_session_cookie_age(self) -> int:
        age, anonymous_age = super().get_session_cookie_age(), conf().anonymous_age
        return age if anonymous_age is None or not self._is_anonymous() else min(age, anonymous_age)

    def _is_anonymous(self) -> bool:
        session: SessionMap | None = self.__dict__.get("_session_cache")
        return session is not None and not session.lacks(SESSION_KEY) and session.get(SESSION_KEY) is None

    def _get_session(self, no_load: bool = False) -> SessionMap:
        self.accessed = True
        session: SessionMap | None = self.__dict__.get("_session_cache")
        if session is not None:
            return session
        return self._start(SessionMap({}) if no_load or self.session_key is None else self.load())

    async def _aget_session(self, no_load: bool = False) -> SessionMap:
        self.accessed = True
        session: SessionMap | None = self.__dict__.get("_session_cache")
        if session is not None:
            return session
        if no_load or self.session_key is None:
            return self._start(SessionMap({}))
        if type(self).aload is not LoadingStore.aload:
            return self._start(await self.aload())
        loaded: SessionMap = await self._arun(self._loaded())
        return loaded

    _session = property(_get_session)

    def _start(self, session: SessionMap) -> SessionMap:
        """Make this the request's session, unless another thread was faster. Return the request's session."""
        first: SessionMap = self.__dict__.setdefault("_session_cache", session)
        return first

    def _loaded(self) -> Operation:
        """Return the request's session. Load it if that was not done before."""
        self.accessed = True
        session: SessionMap | None = self.__dict__.get("_session_cache")
        if session is None:
            session = self._start(SessionMap({}) if self.session_key is None else (yield from self._load()))
        return session

    @property
    def ttl_left(self) -> float | None:
        """Seconds that the session had left to live when it was read or last renewed; ``None`` if not known."""
        session: SessionMap = self._session
        return session.ttl_left

    def exists(self, session_key: str | None) -> bool:
        return bool(self._run(self._exists(session_key)))

    async def aexists(self, session_key: str | None) -> bool:
        return bool(await self._arun(self._exists(session_key)))

    def _exists(self, session_key: str | None) -> Operation:
        if session_key is None or not self._validate_session_key(session_key):
            return False
        return (yield from self._engine.has(session_key, self._id_of(session_key), self))

    # Values that are fetched later: this store is the Source of its session.

    def fetch(self, session: Pairs, key: str | None) -> None:
        """Part of the adapter: see :class:`gsession_django.core.pairs.Source`."""
        self._run(self._fetch(session, key))

    async def afetch(self, session: Pairs, key: str | None) -> None:
        """Part of the adapter: see :class:`gsession_django.core.pairs.Source`."""
        await self._arun(self._fetch(session, key))

    def fetch_size(self) -> int:
        """Part of the adapter: see :class:`gsession_django.core.pairs.Source`."""
        size: int = self._run(self._engine.size(str(self.session_id)))
        return size

    def _fetch(self, session: Pairs, key: str | None) -> Operation:
        """Bring in the value of `key`, or with ``None`` all values, unless they are here."""
        if session.lacks(key) and self.session_id is not None:
            yield from self._engine.fetch(self.session_id, session, key)
            if not session.lacks(None):
                session.source = None  # else the two would keep each other alive until a garbage collection

    # Each of these awaits the value before Django's method uses it, so no async method ever blocks.

    async def _afetched(self, key: str) -> None:
        session: SessionMap = await self._aget_session()
        await session.afetch(key)

    async def aget(self, key: str, default: Any = None) -> Any:
        await self._afetched(key)
        return await super().aget(key, default)

    async def apop(self, key: str, *args: Any, **kwargs: Any) -> Any:
        await self._afetched(key)
        return self.pop(key, *args, **kwargs)

    async def asetdefault(self, key: str, value: Any) -> Any:
        await self._afetched(key)
        return await super().asetdefault(key, value)

    async def ahas_key(self, key: str) -> bool:
        await self._afetched(key)
        return await super().ahas_key(key)

    async def adelete_test_cookie(self) -> None:
        await self._afetched(self.TEST_COOKIE_NAME)
        self.delete_test_cookie()  # Django's async method does not set `modified`

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
