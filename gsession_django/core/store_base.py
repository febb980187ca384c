"""StoreBase: a SessionStore's way to its engine, session keys and ids, and how long sessions live."""

import asyncio
import math
import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, Final, NoReturn

from django.contrib.sessions.backends.base import SessionBase
from django.core.checks import CheckMessage
from django.utils import timezone
from django.utils.functional import cached_property

from gsession_django import serializers
from gsession_django.core.conf import django_setting
from gsession_django.core.driving import UNABLE, Operation
from gsession_django.core.engine import ENGINES, Engine, engine_of
from gsession_django.core.reserved import is_hidden
from gsession_django.core.session_map import SessionMap
from gsession_django.core.storage import Storage, StorageUnavailable

PURGE_BATCH_SIZE: Final = 1000
"""The most sessions that one step of a purge removes by default."""

# The characters that http.cookies sends without quotes (RFC 6265, section 4.1.1, allows a few more).
_COOKIE_SAFE: Final = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~:]{8,}")


class StoreBase(SessionBase):
    """The part of :class:`gsession_django.SessionStore` that holds no session yet."""

    storage_class: ClassVar[type[Storage]]

    failure: str | None = None
    gives_up = False
    _id: tuple[str, str] | None = None

    def __init__(self, session_key: str | None = None) -> None:
        # As Django's does, but without the import of the serializer, which is rarely used.
        self._session_key = session_key
        self.accessed = False

    @cached_property
    def serializer(self) -> Any:
        return serializers.serializer_class()

    def encode(self, session_dict: Mapping[str, Any]) -> str:
        """Return a session as Django's own engines store it, signed, for code that calls this method."""
        data: Any = session_dict
        if isinstance(session_dict, SessionMap):
            data = {key: value for key, value in session_dict.as_dict().items() if not is_hidden(key)}
        text: str = super().encode(data)
        return text

    @classmethod
    def check(cls) -> list[CheckMessage]:
        """Return what is wrong with the settings that only this engine uses. Django's system checks call it."""
        return []

    @classmethod
    def check_deployment(cls) -> list[CheckMessage]:
        """Return what is wrong with what the engine stands on. ``check --deploy`` calls it, so it may connect."""
        return []

    # The engine.

    @property
    def _engine(self) -> Engine:
        return ENGINES.get(type(self)) or engine_of(type(self))

    @classmethod
    def get_storage(cls) -> Storage:
        """Return the engine's Storage object: one per process, made when it is first asked for."""
        return engine_of(cls).storage

    def _run(self, operation: Operation) -> Any:
        """Carry out an operation. If the storage has failed before and `gives_up` is set, do not wait for it again."""
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
        async with held[1]:  # another task may be about to assign what it has read
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
        # Not the exception: its traceback would keep this object and the request until a garbage collection.
        self.failure = str(error) or type(error).__name__

    # Session keys and ids.

    @property
    def session_id(self) -> str | None:
        """The id that the storage is given for this session; ``None`` while there is no session key."""
        key = self.session_key
        return None if key is None else self._id_of(key)

    def _id_of(self, session_key: str) -> str:
        """Return the id that the storage is given for a session key. The id of the request's session is kept."""
        if self._id is None or self._id[0] != session_key:
            self._id = session_key, self._engine.id_of(session_key)
        return self._id[1]

    def _validate_session_key(self, key: str | None) -> bool:
        # A key that no cookie can hold never reaches a storage.
        return key is not None and _COOKIE_SAFE.fullmatch(key) is not None

    def _get_new_session_key(self) -> str:
        key: str = self._run(self._new_key(self.get_session_cookie_age()))
        return key

    async def _aget_new_session_key(self) -> str:
        key: str = await self._arun(self._new_key(self.get_session_cookie_age()))
        return key

    def _new_key(self, ttl: int) -> Operation:
        key = (yield "new", ttl) if "new" in self._engine.able else UNABLE
        if key is UNABLE:
            return secrets.token_hex(16)
        if not isinstance(key, str) or not self._validate_session_key(key):
            raise ValueError(
                f"{self._engine.name} returned {key!r} from new(), which is not a session key. Return a str of at "
                "least 8 characters, all of them letters, digits or one of !#$%&'*+-.^_`|~:"
            )
        return key

    # How long sessions live.

    def get_session_cookie_age(self) -> int:
        age: int = django_setting("SESSION_COOKIE_AGE")
        return age

    def ttl_of(self, expiry: Any) -> int:
        """Return the whole seconds that a session lives from now on, if ``set_expiry()`` was given `expiry`."""
        if type(self).get_expiry_age is SessionBase.get_expiry_age:
            if not expiry:  # what Django's method returns, without the clock that it reads and does not use
                return math.ceil(self.get_session_cookie_age())
            if isinstance(expiry, str | datetime):  # Django's method cuts off the fraction of a second
                return math.ceil((self.get_expiry_date(expiry=expiry) - timezone.now()).total_seconds())
        return math.ceil(self.get_expiry_age(expiry=expiry))

    @classmethod
    def clear_expired(cls) -> None:
        engine = engine_of(cls)
        if engine.storage.expires_itself:
            return
        if "purge" not in engine.able:
            raise NotImplementedError(
                f"{engine.name} cannot remove expired sessions: it has no purge(), and its expires_itself is False. "
                "Write purge(), or set expires_itself if the medium removes expired sessions."
            )
        for _ in engine.purge(PURGE_BATCH_SIZE):
            pass

    @classmethod
    def get_model_class(cls) -> NoReturn:
        """Raise ``NotImplementedError``: only the sessions of Django's ``db`` engine are rows of a model."""
        raise NotImplementedError(
            f"The engine {cls.__module__!r} keeps sessions in a storage, not in a model. Use SessionStore(session_key) "
            "for one session, SessionStore.get_storage().ids() for the ids of all, and SessionStore.clear_expired() to "
            "purge."
        )
