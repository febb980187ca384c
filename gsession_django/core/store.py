"""SessionStore, the adapter: Django's SessionBase onto a Storage."""

import asyncio
import math
import re
import secrets
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from itertools import takewhile
from typing import Any, ClassVar, Final, Literal, NoReturn

from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.base import CreateError, SessionBase, UpdateError
from django.core.checks import CheckMessage
from django.dispatch import Signal
from django.utils import timezone
from django.utils.functional import cached_property

from gsession_django import serializers
from gsession_django.core.conf import conf, django_setting
from gsession_django.core.driving import UNABLE, Operation
from gsession_django.core.engine import ENGINES, Engine, engine_of
from gsession_django.core.saving import Saving
from gsession_django.core.session_map import EXPIRY_KEY, SessionMap
from gsession_django.core.storage import Storage, StorageUnavailable
from gsession_django.core.transactions import Write
from gsession_django.core.values import Sentinel
from gsession_django.serializers import DecodeError
from gsession_django.signals import Ended, session_created, session_ended, session_moved

PURGE_BATCH_SIZE: Final = 1000
"""Sessions that one step of a purge removes at most, where nobody says otherwise."""

# What http.cookies sends as it is, without quotes (RFC 6265, section 4.1.1, allows a little more).
_COOKIE_SAFE: Final = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~:]{8,}")
_KEY_ATTEMPTS: Final = 100
# Attributes that no copy of a SessionStore shares.
_OF_OPERATIONS: Final = frozenset({"_lock", "_prepared", "_writes"})


class SessionStore(SessionBase):
    """A Django session engine on any :class:`Storage`: subclass it in a module of your own and name that module in
    ``SESSION_ENGINE``.

    It behaves as https://docs.djangoproject.com/en/stable/topics/http/sessions/ says, with one difference: a value that
    was changed in place (``session["cart"]["apple"] = 1``) is saved.

    Attributes:
        storage_class: the Storage that keeps the sessions.
        failure: why the storage could not answer, if so; the middleware asks for it at the end of the request.
        gives_up: whether the storage is not asked again after it has failed; the middleware sets it, until it has
            answered the request.
        was_moved: whether the session has got a new key in this request, so that the one in the cookie has ended.
        closing: whether the view is done with the session; the middleware says so. What ``modified`` has encoded to
            compare is then what ``save()`` stores.
    """

    storage_class: ClassVar[type[Storage]]

    failure: str | None = None
    gives_up = False
    was_moved = False
    closing = False
    _modified = False
    _prepared: Saving | None = None
    # Whether anybody has asked for `modified`, so that it may be changes in place alone that ask for a save.
    _asked = False
    # What was written in a transaction that was not committed when this was last looked at, in order.
    _writes: Sequence[Write] = ()
    # How the session has ended, if this request knows: by its own delete(), or before its cycle_key().
    _gone: Literal["deleted", "moved"] | None = None
    _id: tuple[str, str] | None = None
    # Whose the session was that clear() has dropped.
    _owner_before: str | None = None

    def __init__(self, session_key: str | None = None) -> None:
        # What Django's does, but for importing the serializer, which is seldom asked for.
        self._session_key = session_key
        self.accessed = False

    @cached_property
    def serializer(self) -> Any:
        return serializers.serializer_class()

    def encode(self, session_dict: Mapping[str, Any]) -> str:
        """Return a session as Django's own engines store it, signed: for code that calls it."""
        text: str = super().encode(session_dict.as_dict() if isinstance(session_dict, SessionMap) else session_dict)  # type: ignore[arg-type]
        return text

    # Django's name for what a session holds, which public code uses.

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

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy, or a pickle, is made of: all but what belongs to operations under way."""
        return {name: value for name, value in self.__dict__.items() if name not in _OF_OPERATIONS}

    @classmethod
    def check(cls) -> list[CheckMessage]:
        """Return what is wrong with the settings that only this engine uses; called by Django's system checks."""
        return []

    @classmethod
    def check_deployment(cls) -> list[CheckMessage]:
        """Return what is wrong with what the engine stands on; called under ``check --deploy``, so it may connect."""
        return []

    def _run(self, operation: Operation) -> Any:
        """Carry out an operation, unless the storage has failed before and nobody is to wait for it twice."""
        if self.gives_up and self.failure is not None:
            raise StorageUnavailable(self.failure)
        try:
            return self._engine.run(operation)
        except StorageUnavailable as error:
            self._remember(error)
            raise

    async def _arun(self, operation: Operation) -> Any:
        engine = self._engine
        if not engine.takes_turns:
            return await self._arun_now(operation)
        loop, held = asyncio.get_running_loop(), self.__dict__.get("_lock")
        if held is None or held[0] is not loop:
            held = self.__dict__["_lock"] = loop, asyncio.Lock()
        async with held[1]:  # other tasks assign what they have read
            return await self._arun_now(operation)

    async def _arun_now(self, operation: Operation) -> Any:
        if self.gives_up and self.failure is not None:
            raise StorageUnavailable(self.failure)
        try:
            return await self._engine.arun(operation)
        except StorageUnavailable as error:
            self._remember(error)
            raise

    def _remember(self, error: StorageUnavailable) -> None:
        # Not the exception: its traceback holds this object and the request until the garbage collector comes.
        self.failure = str(error) or type(error).__name__

    @property
    def _engine(self) -> Engine:
        return ENGINES.get(type(self)) or engine_of(type(self))

    def _id_of(self, session_key: str) -> str:
        """Return what the storage is given for a session key: made once for the session of a request."""
        if self._id is None or self._id[0] != session_key:
            self._id = session_key, self._engine.id_of(session_key)
        return self._id[1]

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

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Let the session be asked whether it was modified, and saved, with nobody changing it in between."""
        self.closing = True
        try:
            yield
        finally:
            self.closing, self._prepared = False, None

    @property
    def modified(self) -> bool:
        """Whether anything was set, or a value that was handed out has been changed in place since.

        Also whether anything was saved in a transaction that has not been committed.
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

    # Keys and ids.

    def _validate_session_key(self, key: str | None) -> bool:
        # What no cookie of ours can hold is no session key, so that it never gets near a storage.
        return key is not None and _COOKIE_SAFE.fullmatch(key) is not None

    def _get_new_session_key(self) -> str:
        key: str = self._run(self._new_key(self.get_session_cookie_age()))
        return key

    async def _aget_new_session_key(self) -> str:
        key: str = await self._arun(self._new_key(self.get_session_cookie_age()))
        return key

    # Reading.

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
                session = yield from self._stored(key)
            except DecodeError as error:
                # The key stays: the session may be readable again once a setting has been mended.
                self._engine.log_unreadable(self._id_of(key), error)
                session = SessionMap({})
                session.unreadable = True
        if session is None:
            self._session_key = None
            return SessionMap({})
        if session.lacks(None):
            session.source = self
        return session

    def _stored(self, key: str) -> Operation:
        """Return what is stored under a session key, as a SessionMap, or ``None``."""
        return self._engine.find(key, self._id_of(key), self)

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
        if type(self).aload is not SessionStore.aload:
            return self._start(await self.aload())
        loaded: SessionMap = await self._arun(self._loaded())
        return loaded

    _session = property(_get_session)

    def _start(self, session: SessionMap) -> SessionMap:
        """Let this be the request's session, if another thread has not been faster."""
        first: SessionMap = self.__dict__.setdefault("_session_cache", session)
        return first

    def _loaded(self) -> Operation:
        """Return this request's session, which is read if it was not before."""
        self.accessed = True
        session: SessionMap | None = self.__dict__.get("_session_cache")
        if session is None:
            session = self._start(SessionMap({}) if self.session_key is None else (yield from self._load()))
        return session

    def _fetch(self, session: SessionMap, key: str | None) -> Operation:
        """Bring in the value of `key`, or with ``None`` everything, if it is still in the storage."""
        if session.lacks(key) and self.session_id is not None:
            yield from self._engine.fetch(self.session_id, session, key)
            if not session.lacks(None):
                session.source = None  # the two would keep each other alive until the garbage collector comes

    def get_session_cookie_age(self) -> int:
        age: int = django_setting("SESSION_COOKIE_AGE")
        anonymous_age = conf().anonymous_age
        return age if anonymous_age is None or not self._is_anonymous() else min(age, anonymous_age)

    def _is_anonymous(self) -> bool:
        session: SessionMap | None = self.__dict__.get("_session_cache")
        return session is not None and not session.lacks(SESSION_KEY) and session.get(SESSION_KEY) is None

    def ttl_of(self, expiry: Any) -> int:
        """Return what a session lives from now on, in whole seconds, if `expiry` is what ``set_expiry()`` was given."""
        if type(self).get_expiry_age is SessionBase.get_expiry_age:
            if not expiry:  # what that would answer, but for asking the clock for a time that it does not use
                return math.ceil(self.get_session_cookie_age())
            if isinstance(expiry, str | datetime):  # of which that cuts the fraction of a second off
                return math.ceil((self.get_expiry_date(expiry=expiry) - timezone.now()).total_seconds())
        return math.ceil(self.get_expiry_age(expiry=expiry))

    def owner(self) -> str | None:
        """Return the id of the user who is signed in in the session as it is stored; ``None`` if that is nobody, or
        not known.
        """
        session: SessionMap | None = self.__dict__.get("_session_cache")
        if session is None or session.cleared:
            return self._owner_before
        user = session.base(SESSION_KEY)
        return None if user is None or isinstance(user, Sentinel) else str(user)

    def exists(self, session_key: str | None) -> bool:
        return bool(self._run(self._exists(session_key)))

    async def aexists(self, session_key: str | None) -> bool:
        return bool(await self._arun(self._exists(session_key)))

    def _exists(self, session_key: str | None) -> Operation:
        if session_key is None or not self._validate_session_key(session_key):
            return False
        return (yield from self._engine.has(session_key, self._id_of(session_key), self))

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
                yield from self._tell(session_created, key)
                return
        raise self._no_key()

    def _new_key(self, ttl: int) -> Operation:
        key = (yield "new", ttl) if "new" in self._engine.able else UNABLE
        if key is UNABLE:
            return secrets.token_hex(16)
        if not isinstance(key, str) or not self._validate_session_key(key):
            raise ValueError(
                f"{self._engine.name} returned {key!r} from new(), which is no session key: it takes at least 8 "
                "characters, all of them letters, digits or one of !#$%&'*+-.^_`|~:"
            )
        return key

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
        if session.partial:
            yield from self._fetch(session, EXPIRY_KEY)
        ttl = self.ttl_of(session.get(EXPIRY_KEY))
        # Without the flag, and where nobody has looked whether anything has changed, it is the site that saves.
        explicit, self._asked = self._modified or not self._asked, False
        prepared, self._prepared = self._prepared, None
        if engine.before_save(session, ttl) or prepared is None or prepared.session is not session or explicit:
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
        if unreadable and changed:  # what nobody can read is not overwritten
            yield from self._create()

    def _may_wait(self, session: SessionMap, ttl: int) -> bool:
        """Whether the touch is one that only ``SESSION_SAVE_EVERY_REQUEST`` asked for, and not due yet."""
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
        yield from self._tell(session_created, key)

    def _created_at(self, key: str) -> Operation:
        """Do what follows the creation of a session under a key that was given."""
        yield from self._engine.was_created(key, self._id_of(key))
        self._note(None, SessionStore._create_again, key, True)

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
                self.was_moved = False  # no cookie is to bring it back
                self._gone = "deleted"
                user = self.owner()
            yield from self._remove(key, user)
            yield from self._tell(session_ended, key, user, reason=Ended.SIGNED_OUT)

    def _remove(self, key: str, user: str | None = None) -> Operation:
        yield from self._engine.leave(key, self._id_of(key), self)
        yield from self._engine.remove(self._id_of(key), user)
        self._note(None, SessionStore._remove_again, key, user)

    def _tell(self, signal: Signal, key: str, user: str | None = None, **arguments: Any) -> Operation:
        """Send a signal about the session of a key."""
        if signal.has_listeners(type(self)):
            arguments |= {"session_id": self._id_of(key), "user_id": user or self.owner()}
            yield partial(signal.send_robust, type(self), **arguments)

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
        anonymous = not session.lacks(SESSION_KEY) and not session.was_set(SESSION_KEY)
        if session.source is not None:  # all of it where it may have to be stored anew
            yield from self._fetch(session, None if anonymous else EXPIRY_KEY)
        ttl = self.ttl_of(session.get(EXPIRY_KEY))
        # Nobody may have looked for a session that was cleared.
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
            yield from self._tell(session_moved, old_key, new_id=self._id_of(new_key))

    def _move(self, old_id: str, ttl: int) -> Operation:
        """Give the stored session a new key. Return the key, and whether there was such a session."""
        engine = self._engine
        for _ in range(_KEY_ATTEMPTS):
            new_key = yield from self._new_key(ttl)
            new_id = self._id_of(new_key)
            moved = yield from engine.move(old_id, new_id, ttl, self)
            # A random key is never taken, so that the session is gone; one that the storage made may be.
            if moved or "new" not in engine.able or not (yield from engine.exists(new_id, self)):
                return new_key, moved
        raise self._no_key()

    # What was written in a transaction that is rolled back.

    def _note(self, save: Saving | None, repeat: Callable[..., Operation] | None = None, *arguments: Any) -> None:
        """Remember what was just written, if it can still be rolled back, and how it is written again."""
        if (transaction := self._engine.storage.transaction()) is None:
            return
        if save is not None and self._writes and self._writes[-1].transaction is transaction:
            last = self._writes[-1].save
            if last is not None and last.session is save.session:
                last.include(save)
                return
        self._writes = [*self._writes, Write(transaction, save, repeat, arguments)]

    @property
    def undone(self) -> bool:
        """Whether anything that this request has written was rolled back, and not been written again yet."""
        return bool(self._writes) and any(write.transaction.rolled_back for write in self._writes)

    def settle(self) -> None:
        """Write again what was rolled back, but for the changes of the session: those ``save()`` stores."""
        self._run(self._settle())

    async def asettle(self) -> None:
        await self._arun(self._settle())

    def _settle(self) -> Operation:
        writes = [write for write in self._writes if not write.transaction.committed]
        # Whatever came after what was rolled back was rolled back with it.
        pending = list(takewhile(lambda write: not write.transaction.rolled_back, writes))
        undone = writes[len(pending) :]
        for write in reversed(undone):
            if write.save is not None and write.save.session is self.__dict__.get("_session_cache"):
                write.save.session.restore(write.save)
                self._prepared = None
        self._writes = writes
        for write in undone:
            if write.repeat is not None:
                yield from write.repeat(self, write.transaction.certain, *write.arguments)
            self._writes = [other for other in self._writes if other is not write]

    def _create_again(self, certain: bool, key: str, given: bool) -> Operation:
        if not certain:  # it may have been committed, and have ended since
            return
        session = self._get_session(no_load=True)
        ttl = self.ttl_of(session.get(EXPIRY_KEY))
        there = yield from self._engine.create(self._id_of(key), session, ttl)
        if given:
            if not there:
                raise CreateError
            yield from self._created_at(key)
        elif there:
            self._note(None, SessionStore._create_again, key, False)

    def _remove_again(self, certain: bool, key: str, user: str | None) -> Operation:
        return self._remove(key, user)

    def _move_again(self, certain: bool, old_key: str, new_key: str, anonymous: bool) -> Operation:
        engine, old_id, new_id = self._engine, self._id_of(old_key), self._id_of(new_key)
        ttl = self.ttl_of(self._get_session(no_load=True).get(EXPIRY_KEY))
        yield from engine.leave(old_key, old_id, self, unseen=True)
        moved = yield from engine.move(old_id, new_id, ttl, self)
        if moved:
            self._note(None, SessionStore._move_again, old_key, new_key, anonymous)
        elif anonymous and certain:
            yield from self._create_again(True, new_key, False)
        else:
            self._gone, self.was_moved = "moved", False

    def _no_key(self) -> CreateError:
        return CreateError(
            f"{self._engine.name} said of {_KEY_ATTEMPTS} new session keys in a row that they are taken. Look at its "
            "new(), create() and move()."
        )

    @classmethod
    def get_model_class(cls) -> NoReturn:
        """Not here: Django's ``db`` engine has it, whose sessions are rows of a model."""
        raise NotImplementedError(
            f"The engine {cls.__module__!r} keeps sessions in a storage, not in a model. Use SessionStore(session_key) "
            "for one session, SessionStore.get_storage().ids() for the ids of all, and SessionStore.clear_expired() to "
            "purge."
        )

    @classmethod
    def clear_expired(cls) -> None:
        engine = engine_of(cls)
        if engine.storage.expires_itself:
            return
        if "purge" not in engine.able:
            raise NotImplementedError(
                f"{engine.name} cannot remove expired sessions: it has no purge(), and its expires_itself is False."
            )
        for _ in engine.calls.purge(PURGE_BATCH_SIZE):
            pass

    # A value of a per-key storage is fetched before it is used, so that no async method ever blocks.

    def fetch(self, session: SessionMap, key: str | None) -> None:
        """Part of the adapter: see :class:`gsession_django.core.session_map.Source`."""
        self._run(self._fetch(session, key))

    async def afetch(self, session: SessionMap, key: str | None) -> None:
        """Part of the adapter: see :class:`gsession_django.core.session_map.Source`."""
        await self._arun(self._fetch(session, key))

    def fetch_size(self) -> int:
        """Part of the adapter: see :class:`gsession_django.core.session_map.Source`."""
        size: int = self._run(self._engine.size(str(self.session_id)))
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
