"""The sessions of a user: what is known of each, and how they are ended."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from types import ModuleType
from typing import Any

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.core.exceptions import ImproperlyConfigured
from django.db.models import Model

from gsession_django.core.abilities import abilities
from gsession_django.core.driving import UNABLE, Operation
from gsession_django.core.engine import Engine, engine_module, engine_of
from gsession_django.core.pairs import EXPIRY_KEY
from gsession_django.core.session_map import SessionMap
from gsession_django.core.store import SessionStore, store_in
from gsession_django.serializers import DecodeError
from gsession_django.signals import Ended, session_ended
from gsession_django.users.about import CLIENT, SINCE


@dataclass(frozen=True, slots=True)
class Client:
    """Where a visitor came from, as far as the site was told.

    Attributes:
        address: the IP address, ``REMOTE_ADDR``; empty where the server gave none.
        user_agent: the header ``User-Agent``, at most 512 characters of it.
    """

    address: str
    user_agent: str


@dataclass(frozen=True, slots=True)
class UserSession:
    """A session in which a user is signed in, as it was when it was listed.

    Attributes:
        handle: names the session, for a form or a URL. It is not the session key, and nobody can sign in with it.
        user_id: whose session it is: the text that Django keeps in the session, ``str(user.pk)`` as a rule; ``None`` if
            nobody is signed in, which a session of :func:`sessions_of` never says.
        is_current: whether it is the session that was passed as `current`.
        created: when the user signed in; ``None`` for a session that was stored before this package listed sessions.
        last_seen: when a request last saved or touched the session; ``None`` where the storage does not tell how long
            it has to live, and where ``set_expiry()`` was given a date.
        expires: when it ends if nobody uses it; ``None`` where the storage does not tell.
        signed_in_from: where the user signed in; ``None`` unless ``GSESSION["RECORD_CLIENT"]`` is on.
        last_seen_from: where the last visit came from; ``None`` likewise.
        session_id: what the storage knows the session by. It stays on the server: with ``hash_ids`` off it is the
            session key.
    """

    handle: str
    user_id: str | None
    is_current: bool
    created: datetime | None
    last_seen: datetime | None
    expires: datetime | None
    signed_in_from: Client | None
    last_seen_from: Client | None
    session_id: str = field(repr=False)


def sessions_of(user: Model | str, current: Any = None) -> list[UserSession]:
    """Return the sessions in which a user is signed in: the current one first, then the one last seen, and so on.

    Each was loaded: it is there, and it is this user's. It costs one call of the storage, and one for each session.

    Args:
        user: a user, or the text that Django keeps in the session for one.
        current: ``request.session``, to have its own session marked.

    Raises:
        NotImplementedError: the engine cannot list the sessions of a user.
        StorageUnavailable: the storage cannot answer.
    """
    sessions = Sessions.of_site()
    found: list[UserSession] = sessions.engine.run(sessions.sessions_of(id_of(user), _current_id(current)))
    return found


async def asessions_of(user: Model | str, current: Any = None) -> list[UserSession]:
    """Do what :func:`sessions_of` does, awaited."""
    sessions = Sessions.of_site()
    found: list[UserSession] = await sessions.engine.arun(sessions.sessions_of(id_of(user), _current_id(current)))
    return found


def end_session(session: UserSession, reason: Ended = Ended.BY_ANOTHER) -> None:
    """End a session. Whoever uses it is signed out; a request under way cannot save it (``UpdateError``).

    Args:
        session: one of :func:`sessions_of`. One that has ended meanwhile is no error.
        reason: what the signal ``session_ended`` says.
    """
    sessions = Sessions.of_site()
    sessions.engine.run(sessions.end(session, reason))


async def aend_session(session: UserSession, reason: Ended = Ended.BY_ANOTHER) -> None:
    """Do what :func:`end_session` does, awaited."""
    sessions = Sessions.of_site()
    await sessions.engine.arun(sessions.end(session, reason))


def end_sessions(user: Model | str, keep: Any = None, reason: Ended = Ended.BY_ANOTHER) -> int:
    """End the sessions of a user. When this returns, none of them opens a page, nor does one that was given a new key
    meanwhile.

    Args:
        user: as for :func:`sessions_of`.
        keep: the session that goes on, ``request.session`` or a listed one; ``None`` ends all.
        reason: as for :func:`end_session`.

    Returns:
        How many were ended.
    """
    sessions = Sessions.of_site()
    ended: int = sessions.engine.run(sessions.end_all(id_of(user), _current_id(keep), reason))
    return ended


async def aend_sessions(user: Model | str, keep: Any = None, reason: Ended = Ended.BY_ANOTHER) -> int:
    """Do what :func:`end_sessions` does, awaited."""
    sessions = Sessions.of_site()
    ended: int = await sessions.engine.arun(sessions.end_all(id_of(user), _current_id(keep), reason))
    return ended


class Sessions:
    """What is asked of the sessions of an engine, as operations."""

    def __init__(self, store_class: type[SessionStore]) -> None:
        self.store_class = store_class
        self.engine: Engine = engine_of(store_class)

    @classmethod
    def of_site(cls) -> "Sessions":
        store_class = store_in(engine_module(settings.SESSION_ENGINE))
        if store_class is None:
            raise ImproperlyConfigured(
                f"SESSION_ENGINE = {settings.SESSION_ENGINE!r} is not an engine of gsession_django, which alone can "
                "list the sessions of a user. Name one of its engines."
            )
        return cls(store_class)

    def _unable(self) -> NotImplementedError:
        return NotImplementedError(
            f"{self.engine.name} cannot list the sessions of a user: it has no sessions_of(). Write one, or name an "
            "engine that has it, as SESSION_ENGINE."
        )

    def sessions_of(self, user_id: str, current_id: str | None) -> Operation:
        """Return those in which a user is signed in."""
        ids = yield from self._ids_of(user_id)
        found: list[UserSession] = yield from self._signed_in(ids, user_id, current_id)
        return sorted(found, key=_newest_first)

    def _ids_of(self, user_id: str) -> Operation:
        ids = yield "sessions_of", user_id
        if ids is UNABLE:
            raise self._unable()
        return list(dict.fromkeys(ids))

    def _signed_in(self, ids: Iterable[str], user_id: str, current_id: str | None) -> Operation:
        found = []
        for session_id in ids:
            session: SessionMap | None = yield from self.look(session_id)
            if session is not None and str(session.get(SESSION_KEY)) == user_id:
                found.append(self.describe(session_id, session, session_id == current_id))
        return found

    def look(self, session_id: str) -> Operation:
        """Return a session with what is known of it; ``None`` if there is none, or nobody can read it."""
        try:
            session: SessionMap | None = yield from self.engine.load(session_id, self.store_class())
        except DecodeError as error:
            self.engine.log_unreadable(session_id, error)
            return None
        if session is not None:
            for key in (SESSION_KEY, SINCE, CLIENT, EXPIRY_KEY):
                if session.lacks(key):
                    yield from self.engine.fetch(session_id, session, key)
        return session

    def whole(self, session_id: str) -> Operation:
        """Do what :meth:`look` does, with all values."""
        session: SessionMap | None = yield from self.look(session_id)
        if session is not None and session.lacks(None):
            yield from self.engine.fetch(session_id, session, None)
        return session

    def describe(self, session_id: str, session: SessionMap, is_current: bool = False) -> UserSession:
        """Return what is known of a session."""
        now, left, user_id = datetime.now(UTC), session.ttl_left, session.get(SESSION_KEY)
        since: int | None = session.get(SINCE)
        store = self.store_class()
        store._session_cache = session
        age = session.get(EXPIRY_KEY) or store.get_session_cookie_age()
        seen = None
        if left is not None and isinstance(age, int | float):
            seen = min(now, now - timedelta(seconds=age - left))
        first, last = session.get(CLIENT) or (None, None)
        return UserSession(
            handle=hashlib.sha256(f"gsession_django.users:{session_id}".encode()).hexdigest()[:32],
            user_id=None if user_id is None else str(user_id),
            is_current=is_current,
            created=None if since is None else datetime.fromtimestamp(since / 1_000_000, UTC),
            last_seen=seen,
            expires=None if left is None else now + timedelta(seconds=left),
            signed_in_from=None if first is None else Client(*first),
            last_seen_from=None if last is None else Client(*last),
            session_id=session_id,
        )

    def end(self, session: UserSession, reason: Ended) -> Operation:
        told = session_ended.has_listeners(self.store_class) and (
            yield from self.engine.exists(session.session_id, self.store_class())
        )
        yield from self.engine.remove(session.session_id, session.user_id)
        if told:
            arguments: dict[str, Any] = {"session_id": session.session_id, "user_id": session.user_id}
            yield partial(session_ended.send_robust, self.store_class, reason=reason, **arguments)

    def end_all(self, user_id: str, kept_id: str | None, reason: Ended) -> Operation:
        """End the sessions of a user, also one that gets a new key between two looks. Return how many."""
        yield from self.engine.end_elsewhere(user_id)
        ended: set[str] = set()
        before = None
        while True:
            ids = yield from self._ids_of(user_id)
            # Those ended already may still be shown by a database transaction that began before.
            found = yield from self._signed_in((each for each in ids if each not in ended), user_id, kept_id)
            others = [session for session in found if not session.is_current]
            if not others and ids == before:
                return len(ended)
            before = ids
            for session in others:
                yield from self.end(session, reason)
                ended.add(session.session_id)


def can_list(module: ModuleType) -> bool:
    """Return whether the engine in a module can list the sessions of a user."""
    store_class = store_in(module)
    return store_class is not None and "sessions_of" in abilities(store_class.storage_class)


def id_of(user: Model | str) -> str:
    """Return the text that Django keeps in a session for a user."""
    return user if isinstance(user, str) else user._meta.pk.value_to_string(user)


def _current_id(session: Any) -> str | None:
    if session is None or isinstance(session, SessionStore | UserSession):
        return None if session is None else session.session_id
    raise TypeError(f"{session!r} is not a session: pass request.session, or one that sessions_of() has listed.")


def _newest_first(session: UserSession) -> tuple[bool, float]:
    return not session.is_current, -(session.last_seen or session.created or datetime.fromtimestamp(0, UTC)).timestamp()
