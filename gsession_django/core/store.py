"""SessionStore, the adapter: Django's SessionBase onto a Storage. Here it writes; its bases read."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, Final

from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.base import CreateError, UpdateError
from django.dispatch import Signal

from gsession_django.core.conf import conf, django_setting
from gsession_django.core.driving import Operation
from gsession_django.core.pairs import EXPIRY_KEY
from gsession_django.core.rollbacks import StoreWithRollbacks
from gsession_django.core.session_map import SessionMap
from gsession_django.serializers import DecodeError
from gsession_django.signals import Ended, session_created, session_ended, session_moved

_KEY_ATTEMPTS: Final = 100
# Attributes that no copy of a SessionStore shares.
_OF_OPERATIONS: Final = frozenset({"_lock", "_prepared", "_writes"})


class SessionStore(StoreWithRollbacks):
    """A Django session engine on any :class:`Storage`: subclass it in a module of your own and name that module in
    ``SESSION_ENGINE``.

    It behaves as https://docs.djangoproject.com/en/stable/topics/http/sessions/ says, with one difference: a value that
    was changed in place (``session["cart"]["apple"] = 1``) is saved.

    Attributes:
        storage_class: the Storage that keeps the sessions.
        failure: why the storage could not answer, if so. The middleware asks for it at the end of the request.
        gives_up: whether the storage is not asked again after it has failed. The middleware sets it while it answers
            the request.
        was_moved: whether the session got a new key in this request, so the key in the cookie has ended.
        closing: whether the view is done with the session. The middleware says so. ``save()`` then stores what
            ``modified`` has encoded to compare.
    """

    closing = False
    _modified = False
    # Whether anybody has asked for `modified`: if so, it may be only changes in place that ask for a save.
    _asked = False

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes of a copy, or a pickle: all except those of operations under way."""
        return {name: value for name, value in self.__dict__.items() if name not in _OF_OPERATIONS}

    # Whether there is anything to save.

    @property
    def modified(self) -> bool:
        """Whether a key was set, or a value that was handed out has been changed in place since.

        Also whether a save was part of a transaction that is not committed.
        Setting it to ``False`` lets it count from now. Reading it neither loads the session nor counts as access.
        """
        if self._modified or (self._writes and not all(write.transaction.committed for write in self._writes)):
            return True
        session: SessionMap | None = self.__dict__.get("_session_cache")
        self._asked = True
        if session is None:
            return False
        if self.closing and session.has_only_changes_in_place():
            self._prepared = session.saving(explicit=False)
            return self._prepared.has_changes()
        return session.altered()

    @modified.setter
    def modified(self, value: bool) -> None:
        self._modified = value
        if not value and (session := self.__dict__.get("_session_cache")) is not None:
            session.take_baseline()

    def pop(self, key: str, *args: Any, **kwargs: Any) -> Any:
        # Django's method would set `modified` because of a change in place, and so save what was made for display.
        self._modified = self._modified or key in self._session
        return self._session.pop(key, *args, **kwargs)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Set `closing` while the middleware asks for ``modified`` and saves. Nobody changes the session meanwhile."""
        self.closing = True
        try:
            yield
        finally:
            self.closing, self._prepared = False, None

    # Creating.

    def create(self) -> None:
        self._run(self._create())

    async def acreate(self) -> None:
        await self._arun(self._create())

    def _create(self) -> Operation:
        if self._writes:
            yield from self._settle()
        session = self._get_session(no_load=True)
        if session.source is not None:
            yield from self._fetch(session, None)
        ttl = self.ttl_of(session.get(EXPIRY_KEY))
        self._engine.before_save(session, ttl)
        for _ in range(_KEY_ATTEMPTS):
            key = yield from self._new_key(ttl)
            if (yield from self._engine.create(self._id_of(key), session, ttl)):
                self._session_key = key
                self._gone = None
                self.modified = True
                self._note(None, SessionStore._create_again, key, False)
                yield from self._tell(session_created, key, self.owner())
                return
        raise self._no_key()

    def _no_key(self) -> CreateError:
        return CreateError(
            f"{self._engine.name} said of {_KEY_ATTEMPTS} new session keys in a row that they are taken. Look at its "
            "new(), create() and move()."
        )

    # Saving.

    def save(self, must_create: bool = False) -> None:
        self._run(self._save(must_create))

    async def asave(self, must_create: bool = False) -> None:
        await self._arun(self._save(must_create))

    def _save(self, must_create: bool) -> Operation:
        if self._writes:
            yield from self._settle()
        if must_create and self.session_key is not None and self._gone != "moved":
            yield from self._create_at(self.session_key)
            return
        if self._gone is not None and self.session_key is not None:
            raise UpdateError
        session: SessionMap | None = self.__dict__.get("_session_cache")
        if session is None:
            session = yield from self._loaded()
        if (key := self.session_key) is None:
            yield from self._create()
            return
        self.accessed = True
        engine, session_id = self._engine, self._id_of(key)
        if session.cleared:
            session = self._session_cache = yield from engine.emptied(key, session_id, self, session)
        if session.source is not None or session.partial:
            yield from self._fetch_needed(session)
        ttl = self.ttl_of(session.get(EXPIRY_KEY))
        # With the flag, or if nobody has asked whether anything changed, the site asks for this save.
        explicit, self._asked = self._modified or not self._asked, False
        prepared, self._prepared = self._prepared, None
        stale = engine.before_save(session, ttl)
        if stale or prepared is None or prepared.session is not session or explicit:
            prepared = session.saving(explicit)
        with prepared as save:
            changed = save.has_changes()
            unreadable = session.is_unreadable()
            if unreadable:
                there = True
            elif changed:
                try:
                    apply = partial(engine.apply, session_id, save, ttl, self)
                    there = yield from engine.write(key, session_id, self, apply)
                except DecodeError as error:
                    engine.log_unreadable(session_id, error)
                    there = unreadable = True
            elif self._may_wait(session, ttl):
                return
            else:
                touch = partial(engine.touch, session_id, save, ttl, self)
                there = yield from engine.write(key, session_id, self, touch)
        if not there:
            raise UpdateError
        if not unreadable:
            self._note(save)
        if unreadable and changed:  # the changes get a session of their own: an unreadable one is not overwritten
            yield from self._create()

    def _may_wait(self, session: SessionMap, ttl: int) -> bool:
        """Return whether only ``SESSION_SAVE_EVERY_REQUEST`` asked for the touch, and it is not due yet."""
        if self._modified or not django_setting("SESSION_SAVE_EVERY_REQUEST") or session.ttl_left is None:
            return False
        return 0 <= ttl - session.ttl_left < min(conf().touch_interval, ttl / 10)

    def _create_at(self, key: str) -> Operation:
        session = self._get_session(no_load=True)
        if session.source is not None:
            yield from self._fetch(session, None)
        ttl = self.ttl_of(session.get(EXPIRY_KEY))
        engine = self._engine
        engine.before_save(session, ttl)
        taken = yield from engine.is_taken(key, self._id_of(key), self)
        if taken or not (yield from engine.create(self._id_of(key), session, ttl)):
            raise CreateError
        yield from self._created_at(key)
        yield from self._tell(session_created, key, self.owner())

    def _tell(self, signal: Signal, key: str, user: str | None, **arguments: Any) -> Operation:
        """Send a signal about the session of a key."""
        if signal.has_listeners(type(self)):
            arguments |= {"session_id": self._id_of(key), "user_id": user}
            yield partial(signal.send_robust, type(self), **arguments)

    # Ending, and changing the key.

    def clear(self) -> None:
        before: SessionMap | None = self.__dict__.get("_session_cache")
        self._owner_before = self.owner()
        self._session_cache = SessionMap({}) if before is None else SessionMap({}, before.version, before.ttl_left)
        self._session_cache.clear()
        self.accessed = True
        self.modified = True

    def delete(self, session_key: str | None = None) -> None:
        self._run(self._delete(session_key))

    async def adelete(self, session_key: str | None = None) -> None:
        await self._arun(self._delete(session_key))

    def _delete(self, session_key: str | None) -> Operation:
        key = self.session_key if session_key is None else session_key
        if key is not None and self._validate_session_key(key):
            if self._writes:
                yield from self._settle()
            user = None
            if key == self.session_key:
                self.was_moved = False  # the reply must not send its key as a cookie
                self._gone = "deleted"
                user = self.owner()
            told = session_ended.has_listeners(type(self)) and (yield from self._exists(key))
            yield from self._remove(key, user)
            if told:
                yield from self._tell(session_ended, key, user, reason=Ended.SIGNED_OUT)

    def cycle_key(self) -> None:
        self._run(self._cycle_key())

    async def acycle_key(self) -> None:
        await self._arun(self._cycle_key())

    def _cycle_key(self) -> Operation:
        if self._writes:
            yield from self._settle()
        session = yield from self._loaded()
        if (old_key := self.session_key) is None:
            yield from self._create()
            return
        old_id = self._id_of(old_key)
        if session.source is not None and self._engine.hides_pairs:
            yield from self._fetch_needed(session)
        anonymous = not session.lacks(SESSION_KEY) and not session.was_set(SESSION_KEY)
        if session.source is not None:  # an anonymous session may have to be created again, with all its values
            yield from self._fetch(session, None if anonymous else EXPIRY_KEY)
        ttl = self.ttl_of(session.get(EXPIRY_KEY))
        # If the session was cleared, perhaps nobody has looked for it.
        yield from self._engine.leave(old_key, old_id, self, unseen=session.cleared)
        try:
            if session.is_unreadable():
                raise DecodeError("nothing in it could be read")
            new_key, moved = yield from self._move(old_id, ttl)
        except DecodeError as error:
            self._engine.log_unreadable(old_id, error)
            yield from self._create()
            yield from self._remove(old_key)
            self.was_moved = True
            return
        if not moved and anonymous:  # another sign-in was faster: both succeed
            yield from self._create()
            self.was_moved = True
            return
        self._gone, self.was_moved = None if moved else "moved", moved
        self._session_key = new_key
        self.modified = True
        if moved:
            self._note(None, SessionStore._move_again, old_key, new_key, anonymous)
            yield from self._tell(session_moved, old_key, self.owner(), new_id=self._id_of(new_key))

    def _move(self, old_id: str, ttl: int) -> Operation:
        """Give the stored session a new key. Return the key, and whether there was such a session."""
        engine = self._engine
        for _ in range(_KEY_ATTEMPTS):
            new_key = yield from self._new_key(ttl)
            new_id = self._id_of(new_key)
            moved = yield from engine.move(old_id, new_id, ttl, self)
            # A random key is never taken, so the session is gone. A key that the storage made may be taken.
            if moved or "new" not in engine.able or not (yield from engine.exists(new_id, self)):
                return new_key, moved
        raise self._no_key()


def store_in(module: ModuleType) -> type[SessionStore] | None:
    """Return the SessionStore of a module that is an engine of this package's kind; ``None`` for any other module."""
    store = getattr(module, "SessionStore", None)
    ours = isinstance(store, type) and issubclass(store, SessionStore) and hasattr(store, "storage_class")
    return store if ours else None
