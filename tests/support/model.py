"""What ``docs/changing-sessions.md`` and ``docs/outages.md`` say of ``request.session``, on plain dicts.

``tests/engines/test_model.py`` compares each engine with this. It imports nothing of the package.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from django.contrib.sessions.backends.base import CreateError, UpdateError

AGE: Final = 3500
"""``SESSION_COOKIE_AGE``, in seconds."""
USER: Final = "_auth_user_id"
EXPIRY: Final = "_session_expiry"
NOTHING: Final = object()
"""What there is under a key that a dict does not have."""


def form(value: Any) -> str:
    """Return the stored form of a value. Two values are the same if their stored forms are."""
    return json.dumps(value)


def same(one: Any, other: Any) -> bool:
    return one is other or (one is not NOTHING and other is not NOTHING and form(one) == form(other))


def copied(value: Any) -> Any:
    return json.loads(form(value))


def merged(read: Any, mine: Any, now: Any) -> Any:
    """Return what is stored after a request saves, of one value or of the whole session. Each may be ``NOTHING``.

    Args:
        read: what the request has read.
        mine: what the request has made of it.
        now: what is stored now.
    """
    if same(mine, read):
        return now
    if not isinstance(mine, dict) or not (now is NOTHING or isinstance(now, dict)):
        return mine
    read, now = (value if isinstance(value, dict) else {} for value in (read, now))
    parts = {key: merged(*(whole.get(key, NOTHING) for whole in (read, mine, now))) for key in {**mine, **now}}
    return {key: part for key, part in parts.items() if part is not NOTHING}


@dataclass
class Stored:
    """A session in the storage, and the moment at which it expires."""

    data: dict[str, Any]
    until: int


@dataclass
class Site:
    """The storage and the clock.

    Attributes:
        start: the time when the clock shows 0.
        composes: whether the storage has neither ``move`` nor ``apply``. What the adapter then calls takes a TTL: it
            renews the one of the stored expiry, where those leave the TTL as it is.
        now: seconds since `start`.
        sessions: by session key, expired ones too.
    """

    start: datetime
    composes: bool
    now: int = 0
    sessions: dict[str, Stored] = field(default_factory=dict)

    def live(self, key: str) -> Stored | None:
        stored = self.sessions.get(key)
        return stored if stored is not None and stored.until > self.now else None

    def moment(self) -> datetime:
        return self.start + timedelta(seconds=self.now)


class Request:
    """``request.session`` of one request. `new_key` is the session key to give, set before an operation that gives one.

    Attributes:
        data: the pairs, as the request sees them; ``None`` before it has loaded them.
        read: the pairs as the request has read them, or stored them last.
        cleared: whether all that is stored goes at the next save.
        flag: whether a key was set, or ``modified``.
        seen: what ``modified`` compares with.
        ended: whether this request knows that the session under its key has ended.
    """

    def __init__(self, site: Site, key: str | None) -> None:
        self.site, self.session_key, self.new_key = site, key, ""
        self.data: dict[str, Any] | None = None
        self.read: dict[str, Any] = {}
        self.seen: dict[str, Any] = {}
        self.cleared = self.flag = False
        self.ended: str | None = None

    def load(self) -> dict[str, Any]:
        if self.data is None:
            stored = None if self.session_key is None else self.site.live(self.session_key)
            if stored is None:
                self.session_key = None
            self.data = {} if stored is None else copied(stored.data)
            self.read = self.seen = copied(self.data)
        return self.data

    # Reading.

    def get(self, key: str, default: Any = None) -> Any:
        return self.load().get(key, default)

    def has_key(self, key: str) -> bool:
        return key in self.load()

    def keys(self) -> Any:
        return self.load().keys()

    def values(self) -> Any:
        return self.load().values()

    def items(self) -> Any:
        return self.load().items()

    def is_empty(self) -> bool:
        return self.session_key is None and not self.data

    def exists(self, key: str) -> bool:
        return self.site.live(key) is not None

    @property
    def modified(self) -> bool:
        """A key was set, or a value changed in place."""
        now = self.data or {}
        return self.flag or any(not same(now[key], value) for key, value in self.seen.items() if key in now)

    @modified.setter
    def modified(self, value: bool) -> None:
        self.flag = value
        if not value:
            self.seen = copied(self.data or {})

    # Changing.

    def set(self, key: str, value: Any) -> None:
        self.load()[key] = value
        self.flag = True

    def delete_key(self, key: str) -> None:
        del self.load()[key]
        self.flag = True

    def pop(self, key: str, *default: Any) -> Any:
        self.flag = self.flag or key in self.load()
        return self.load().pop(key, *default)

    def setdefault(self, key: str, value: Any) -> Any:
        if key not in self.load():
            self.set(key, value)
        return self.load()[key]

    def update(self, values: Mapping[str, Any]) -> None:
        self.load().update(values)
        self.flag = True

    def clear(self) -> None:
        self.data, self.read, self.seen, self.cleared, self.flag = {}, {}, {}, True, True

    def set_test_cookie(self) -> None:
        self.set("testcookie", "worked")

    def test_cookie_worked(self) -> bool:
        return bool(self.get("testcookie") == "worked")

    def delete_test_cookie(self) -> None:
        self.delete_key("testcookie")

    # How long it lives.

    def set_expiry(self, value: int | timedelta | datetime | None) -> None:
        if value is None:
            if EXPIRY in self.load():
                self.delete_key(EXPIRY)
            return
        moment = self.site.moment() + value if isinstance(value, timedelta) else value
        self.set(EXPIRY, moment.isoformat() if isinstance(moment, datetime) else moment)

    def get_expiry_age(self) -> int:
        return self.age_of(self.get(EXPIRY))

    def age_of(self, expiry: Any) -> int:
        if isinstance(expiry, str):
            return round((datetime.fromisoformat(expiry) - self.site.moment()).total_seconds())
        return expiry or AGE

    def get_expiry_date(self) -> datetime:
        return self.site.moment() + timedelta(seconds=self.get_expiry_age())

    def get_expire_at_browser_close(self) -> bool:
        return bool(self.get(EXPIRY) == 0)

    # Storing.

    def save(self, must_create: bool = False) -> None:
        if must_create and self.session_key is not None and self.ended != "moved":
            self.data = {} if self.data is None else self.data  # as Django does, which does not load it
            if self.site.live(self.session_key) is not None:
                raise CreateError
            self._create_at(self.session_key)
            return
        if self.ended and self.session_key is not None:
            raise UpdateError
        mine = self.load()
        if self.session_key is None:
            self.create()
            return
        stored = self.site.live(self.session_key)
        if stored is None:
            raise UpdateError
        read, theirs = self.read.get(EXPIRY), stored.data.get(EXPIRY)
        if self.cleared:
            stored.data = copied(mine)
            self._renew(stored)
        elif same(mine, read_data := self.read):
            if self.get_expiry_age() > 0:  # a touch, which knows of no other expiry
                self._renew(stored)
        else:
            stored.data = copied(merged(read_data, copied(mine), stored.data))
            if theirs == read or mine.get(EXPIRY) != read:
                self._renew(stored)
            elif self.site.composes:  # the TTL of another request's expiry stays, if this request set none
                stored.until = self.site.now + self.age_of(theirs)
        self._was_stored()

    def create(self) -> None:
        self.session_key = self.new_key
        self._create_at(self.session_key)
        self.flag = True

    def _create_at(self, key: str) -> None:
        self.data = {} if self.data is None else self.data
        self.site.sessions[key] = Stored(copied(self.data), self.site.now + self.get_expiry_age())
        self.ended = None
        self._was_stored()

    def _renew(self, stored: Stored) -> None:
        stored.until = self.site.now + self.get_expiry_age()

    def _was_stored(self) -> None:
        """Compare with what this request has stored from now on; it does not see what a merge took in from others."""
        self.read = self.seen = copied(self.data)
        self.cleared = False

    # Ending, and changing the key.

    def cycle_key(self) -> None:
        self.load()
        stored = None if self.session_key is None else self.site.live(self.session_key)
        if self.session_key is None or (stored is None and USER not in self.read and not self.cleared):
            self.create()
            return
        if stored is None:  # signed out, perhaps
            self.ended = "moved"
        else:
            self.ended = None
            del self.site.sessions[self.session_key]
            self.site.sessions[self.new_key] = stored
            if self.site.composes:
                stored.until = self.site.now + self.age_of(stored.data.get(EXPIRY))
        self.session_key, self.flag = self.new_key, True

    def delete(self, key: str | None = None) -> None:
        key = self.session_key if key is None else key
        if key is not None:
            self.site.sessions.pop(key, None)
            if key == self.session_key:
                self.ended = "deleted"

    def flush(self) -> None:
        self.clear()
        self.delete()
        self.session_key = None
