"""What all parts of StorageContract stand on: its set-up, and what the tests do to a storage."""

import asyncio
import os
import secrets
import time
import unittest
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, TypeVar, cast

from django.core.exceptions import ImproperlyConfigured

from gsession_django.core.abilities import abilities, missing_twins
from gsession_django.core.conf import conf
from gsession_django.core.engine import engine_of
from gsession_django.core.reserved import RESERVED_KEY
from gsession_django.core.session_map import SessionMap
from gsession_django.core.storage import Storage
from gsession_django.core.store import SessionStore

if TYPE_CHECKING:
    _TestCase = unittest.TestCase
else:
    _TestCase = object  # the author's test case has it, which may be any of Django's

F = TypeVar("F", bound=Callable[..., None])

PAGE: Final = "docs/async-storages.md"
_SHOWN: Final = 300


class NeedingTest:
    """A test that is there only where the storage has the methods that it is about; elsewhere it is ``None``."""

    def __init__(self, test: Callable[[Any], None], methods: frozenset[str]) -> None:
        self.test = test
        self.methods = methods
        self.__doc__ = test.__doc__

    def __get__(self, case: object | None, case_class: "type[ContractCase]") -> Any:
        if not self.methods <= able_of(case_class):
            return None
        return self.test.__get__(case, case_class)


def needs(*methods: str) -> Callable[[F], F]:
    """Mark a test that only a storage with these methods has to pass.

    Three more words stand for what is no method of a storage: ``async`` for all native twins, ``outage`` for the hook
    :meth:`ContractCase.outage`, and ``fork`` for a system that has ``os.fork()``.
    """

    def mark(test: F) -> F:
        return cast(F, NeedingTest(test, frozenset(methods)))

    return mark


def able_of(case_class: "type[ContractCase]") -> set[str]:
    """Return what the tests of `case_class` may need, as in :func:`needs`."""
    store_class = getattr(case_class, "store_class", None)
    storage_class = getattr(store_class, "storage_class", Storage)
    able = abilities(storage_class)
    if able and not missing_twins(storage_class):
        able.add("async")
    if case_class.outage is not ContractCase.outage:
        able.add("outage")
    if hasattr(os, "fork"):
        able.add("fork")
    return able


def shown(value: Any) -> str:
    """Return `value` for a message: as Python writes it, cut where it is long."""
    text = f"SessionMap({value.as_dict()!r})" if isinstance(value, SessionMap) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


class ContractCase(_TestCase):
    """The set-up of a contract test, and its words.

    Attributes:
        store_class: the engine's SessionStore.
        storage: its Storage object.
        able: the methods that the storage has.
    """

    store_class: ClassVar[type[SessionStore]]
    storage: Storage
    able: set[str]
    # Runs the native twins while they are what is tested.
    _runner: asyncio.Runner | None = None

    # Set-up.

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        bases = cls.__mro__
        if unittest.TestCase in bases and bases.index(unittest.TestCase) < bases.index(ContractCase):
            mixin = next(base for base in cls.__bases__ if issubclass(base, ContractCase)).__name__
            raise TypeError(f"Name {mixin} first among the bases of {cls.__name__}, before the test case.")

    @classmethod
    def setUpClass(cls) -> None:
        cls._check_store_class()
        super().setUpClass()

    def setUp(self) -> None:
        super().setUp()
        self._check_store_class()
        self._check_options()
        self.storage = self.store_class.get_storage()
        self.able = abilities(self.store_class.storage_class)

    if not TYPE_CHECKING:  # or types would be checked no more

        def __getattr__(self, name: str) -> Any:
            if not isinstance(self, unittest.TestCase):
                if name.startswith(("assert", "fail", "subTest")) or name in ("storage", "able"):
                    raise ImproperlyConfigured(
                        f"Give {type(self).__name__} a test case among its bases, as in "
                        f"class {type(self).__name__}(StorageContract, django.test.SimpleTestCase)."
                    )
            elif name in ("storage", "able"):
                raise ImproperlyConfigured(f"Call super().setUp() in {type(self).__name__}.setUp().")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @classmethod
    def _check_store_class(cls) -> None:
        given, name = getattr(cls, "store_class", None), f"{cls.__name__}.store_class"
        if given is None:
            raise ImproperlyConfigured(f"Set {name} to the engine's SessionStore: the class in its module.")
        if isinstance(given, Storage) or (isinstance(given, type) and issubclass(given, Storage)):
            storage = given.__name__ if isinstance(given, type) else type(given).__name__
            raise ImproperlyConfigured(
                f"{name} is the storage {storage}: set it to the engine's SessionStore, whose storage_class is "
                f"{storage}."
            )
        if not (isinstance(given, type) and issubclass(given, SessionStore)):
            raise ImproperlyConfigured(
                f"{name} is {given!r}: set it to the engine's SessionStore, a subclass of gsession_django.SessionStore."
            )
        storage_class = getattr(given, "storage_class", None)
        if not (isinstance(storage_class, type) and issubclass(storage_class, Storage)):
            raise ImproperlyConfigured(
                f"{name} is {given.__qualname__}, whose storage_class is {storage_class!r}: set that to the class of "
                "the storage, a subclass of gsession_django.Storage."
            )

    @classmethod
    def _check_options(cls) -> None:
        """Refuse options in the setting that are meant for this engine and do not reach it."""
        module = cls.store_class.__module__
        if module in conf().engines:
            return
        for name in conf().engines:
            if problem := _is_meant_for(cls.store_class, name):
                raise ImproperlyConfigured(
                    f'GSESSION["ENGINES"] has options under {name!r}, {problem}: put those of '
                    f"{cls.store_class.storage_class.__name__} under {module!r}, the module in which its SessionStore "
                    "is defined ({} if it has none)."
                )

    # For an author to override.

    def advance(self, seconds: float) -> None:
        """Let time pass. Override it where the clock that the storage goes by can be moved."""
        time.sleep(seconds)

    def outage(self) -> AbstractContextManager[object]:
        """Return a context manager that takes the medium away for as long as its block runs: stop the server, rename
        the folder.

        Override it, and the tests are there of what a storage does then; otherwise they are not.
        """
        raise NotImplementedError

    # What the tests do to a storage, with whichever methods it has.

    @contextmanager
    def by_twins(self) -> Iterator[None]:
        """Let the native twins be called from here on, on an event loop of their own."""
        with asyncio.Runner() as self._runner:
            try:
                yield
            finally:
                self._runner = None

    def ways(self) -> Iterator[tuple[str, Callable[[], AbstractContextManager[None]]]]:
        """Yield the ways to call the storage: the methods, and the native twins of an async one."""
        yield "methods", _plainly
        if "async" in able_of(type(self)):
            yield "native twins", self.by_twins

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the storage, or its native twin."""
        if self._runner is None:
            return getattr(self.storage, method)(*args)
        return self._runner.run(getattr(self.storage, f"a{method}")(*args))

    def named(self, method: str, *args: Any) -> str:
        """Return a call as a message names it."""
        prefix = "" if self._runner is None else "a"
        return f"{type(self.storage).__name__}.{prefix}{method}({', '.join(map(shown, args))})"

    def wrong(self, call: str, found: Any, wanted: str, because: str = "") -> NoReturn:
        """Fail: `call` did not return what it should."""
        raise self.failureException(
            f"{call} returned {shown(found)}. It should return {wanted}{because and f': {because}'}."
        )

    def expect(self, wanted: Any, method: str, *args: Any, because: str = "") -> None:
        """Call a method that should return `wanted`; what is true or false will do for ``True`` or ``False``."""
        call = self.named(method, *args)  # before an argument is changed
        found = self.call(method, *args)
        if (bool(found) if isinstance(wanted, bool) else found) != wanted:
            self.wrong(call, found, shown(wanted), because)

    def holds(self, session_id: str, wanted: Mapping[str, Any] | None, after: str) -> None:
        """Read a session, which should have these pairs, or with ``None`` not be there, `after` something was done."""
        found = self.read(session_id)
        if found != wanted:
            whole = "get_session" if wanted is None or "get" not in self.able else "get_session() or get_map"
            prefix = "" if self._runner is None else "a"
            self.wrong(f"After {after}, {type(self.storage).__name__}.{prefix}{whole}()", found, shown(wanted))

    def new_key(self) -> str:
        """Return a session key that the adapter or the storage has made."""
        return self.call("new", 60) if "new" in self.able else secrets.token_hex(16)

    def new_id(self) -> str:
        """Return what the storage is given for a new session key."""
        return engine_of(self.store_class).id_of(self.new_key())

    def put(self, data: Mapping[str, Any], ttl: int = 60, session_id: str | None = None) -> str:
        """Store a new session and return its id."""
        session_id = session_id or self.new_id()
        if "create" in self.able:
            session = SessionMap(dict(data))
            if ttl > 0:
                self.expect(True, "create", session_id, session, ttl, because="the id is new")
            else:  # it may not be there even then
                self.call("create", session_id, session, ttl)
            return session_id
        if "set_map" in self.able:
            per_key = "get" in self.able or "set_session" not in self.able
            self.call("set_map", session_id, data or ({RESERVED_KEY: True} if per_key else {}), ttl)
        if "set_session" in self.able:
            self.call("set_session", session_id, data, ttl)
        return session_id

    def found(self, session_id: str) -> Mapping[str, Any] | None:
        """Return what ``get_session`` does, which has to be a mapping or ``None``."""
        found = self.call("get_session", session_id, 60, None)
        if found is not None and not isinstance(found, Mapping):
            self.wrong(self.named("get_session", session_id, 60, None), found, "a mapping, or None")
        return found

    def read(self, session_id: str) -> dict[str, Any] | None:
        """Return all that is stored under an id; ``None`` when there is no session."""
        found = self.found(session_id)
        if found is None:
            return None
        partial = found.lacks(None) if isinstance(found, SessionMap) else not found and "get" in self.able
        data = dict(self.call("get_map", session_id) if partial else found)
        data.pop(RESERVED_KEY, None)
        return data

    def held(self, session_id: str) -> SessionMap:
        """Return a session as a request holds it."""
        found = self.found(session_id)
        if found is None:
            self.wrong(self.named("get_session", session_id, 60, None), None, "the session that was stored")
        return found if isinstance(found, SessionMap) else SessionMap(found)

    def held_with(self, session_id: str, key: str, value: Any) -> SessionMap:
        """Return a session as a request holds it that has set a key."""
        held = self.held(session_id)
        held[key] = value
        return held

    # What visitors do, through the adapter.

    def visitor(self, data: Mapping[str, Any], expiry: int | None = None) -> str:
        """Let a visitor have a session, and return its session key."""
        store = self.store_class()
        store.update(data)
        if expiry is not None:
            store.set_expiry(expiry)
        store.save()
        assert store.session_key is not None
        return store.session_key

    def reread(self, session_key: str | None) -> dict[str, Any]:
        """Return what the visitor's next request finds."""
        return dict(self.store_class(session_key).items())

    def finds(self, session_key: str | None, wanted: Mapping[str, Any], after: str) -> None:
        """Let the visitor's next request read the session, which should have these pairs."""
        if (found := self.reread(session_key)) != wanted:
            self.wrong(f"After {after}, SessionStore.items()", found, shown(wanted))


@contextmanager
def _plainly() -> Iterator[None]:
    yield


def _is_meant_for(store_class: type[SessionStore], name: str) -> str | None:
    """Return why the options under `name` are meant for the engine of `store_class`; ``None`` if they are not."""
    try:
        other = getattr(import_module(name), "SessionStore", None)
    except ImportError:
        return "which cannot be imported"
    if not isinstance(other, type) or not issubclass(other, SessionStore) or not hasattr(other, "storage_class"):
        return "which is no engine"
    if other is store_class:
        return "which only imports the SessionStore"
    if other.storage_class is not Storage and issubclass(store_class.storage_class, other.storage_class):
        return f"which is the engine of {other.storage_class.__name__}"
    return None
