"""How sessions are read, with whichever methods the storage has."""

from collections.abc import Mapping
from typing import Any, Protocol

from django.core.exceptions import ImproperlyConfigured

from gsession_django.core.driving import UNABLE, Driver, Operation
from gsession_django.core.pairs import EXPIRY_KEY, Pairs
from gsession_django.core.reserved import RESERVED_KEY, UNFINISHED, is_hidden, is_reserved
from gsession_django.core.session_map import SessionMap
from gsession_django.serializers import DecodeError, logger


class Lifetimes(Protocol):
    """How long sessions of this site live. A SessionStore knows it."""

    def get_session_cookie_age(self) -> int:
        """Return the seconds that a session without its own expiry lives."""

    def ttl_of(self, expiry: Any) -> int:
        """Return the whole seconds that a session lives from now on, if ``set_expiry()`` was given `expiry`."""

    def owner(self) -> str | None:
        """Return the id of the user who is signed in in the session as it is stored; ``None`` if that is nobody, or
        not known.
        """


class Reader(Driver):
    """Reads sessions by their ids.

    Attributes:
        name: the storage and the engine, for messages.
        hides_pairs: whether sessions may have pairs that no request sees, so that the storage cannot count the others.
    """

    __slots__ = ("name",)

    name: str
    hides_pairs = False

    def load(self, session_id: str, lifetimes: Lifetimes, reserved: bool = False) -> Operation:
        """Return what is stored, as a SessionMap, or ``None``. Raises ``DecodeError`` if it cannot be read.

        Args:
            session_id: the session's id.
            lifetimes: how long sessions of this site live.
            reserved: whether to return the reserved pairs too, and a session that is not completely stored.
        """
        found = yield "get_session", session_id, lifetimes.get_session_cookie_age(), None
        if found is None:
            return None
        if found is UNABLE:
            raise self.cannot_hold_a_session("get_session")
        if isinstance(found, SessionMap):
            session = found
        else:
            session = SessionMap(found)
            session.partial = not session and "get" in self.able
        if keys := session.held(RESERVED_KEY):
            if self._needs_a_pair():
                session.hide(RESERVED_KEY)
            if not reserved and (keys := list(filter(is_reserved, keys))):
                if UNFINISHED in map(session.get, keys):
                    return None
                for key in keys:
                    session.hide(key)
        return session

    def load_all(self, session_id: str, lifetimes: Lifetimes, reserved: bool = False) -> Operation:
        """The same, with all its pairs."""
        session = yield from self.load(session_id, lifetimes, reserved)
        if session is not None and session.lacks(None):
            session.learn((yield from self._all_pairs(session_id, reserved)), complete=True)
        return session

    def fetch(self, session_id: str, session: Pairs, key: str | None) -> Operation:
        """Bring the value of `key`, or with ``None`` all values, into a session that is read key by key."""
        if key is not None:
            value = yield from self._one_value(session_id, key)
            if value is not UNABLE and value is not None:
                session.learn({key: value})
                return
            if value is None and (key == EXPIRY_KEY or session.promises(key)):
                # It is absent: Django never stores None there, and no storage promises a None.
                session.learn_absent(key)
                return
        try:
            session.learn((yield from self._all_pairs(session_id)), complete=True)
        except DecodeError as error:
            self.log_unreadable(session_id, error)
            session.learn({}, complete=True)
            session.unreadable = len(session) == 0  # and not bool(), which decodes nothing

    def size(self, session_id: str) -> Operation:
        """Return the number of stored pairs."""
        number = (yield "get_size", session_id) if not self.hides_pairs else UNABLE
        if number is UNABLE:
            return sum(not is_hidden(key) for key in (yield from self._all_pairs(session_id)))
        reserved = yield "get", session_id, RESERVED_KEY
        return number if reserved is None else number - 1

    def _one_value(self, session_id: str, key: str) -> Operation:
        try:
            return (yield "get", session_id, key)
        except DecodeError as error:
            self.log_unreadable(session_id, error)
            return None

    def _all_pairs(self, session_id: str, reserved: bool = False) -> Operation:
        data: Mapping[str, Any] = yield from self.need("get_map", session_id)
        return {key: value for key, value in data.items() if key != RESERVED_KEY and (reserved or not is_reserved(key))}

    def log_unreadable(self, session_id: str, error: DecodeError) -> None:
        logger.warning("The session %r of %s cannot be read, and is left as it is: %s", session_id, self.name, error)

    def exists(self, session_id: str, lifetimes: Lifetimes) -> Operation:
        """Return whether there is such a session, readable or not."""
        try:
            found = yield "exists", session_id
            return (yield from self.load(session_id, lifetimes)) is not None if found is UNABLE else found
        except DecodeError:
            return True

    def _needs_a_pair(self) -> bool:
        return "get" in self.able or "set_session" not in self.able

    def need(self, name: str, *args: Any) -> Operation:
        """Call a method that every storage needs to hold a session."""
        result = yield name, *args
        if result is UNABLE:
            raise self.cannot_hold_a_session(name)
        return result

    def cannot_hold_a_session(self, name: str) -> ImproperlyConfigured:
        """Return the error to raise if the storage lacks the method `name` and so cannot hold a session."""
        return ImproperlyConfigured(
            f"{self.name} cannot hold a session without {name}(), which is missing or disabled. Write that method."
        )
