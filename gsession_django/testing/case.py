"""The base of every part of StorageContract: its set-up, and the helpers that call a storage."""

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
    _TestCase = object  # the author chooses the test case, any of Django's

F = TypeVar("F", bound=Callable[..., None])

PAGE: Final = "docs/async-storages.md"
_SHOWN: Final = 300


class NeedingTest:
    """A test that exists only if the storage has the methods that it needs. Otherwise it is ``None``."""

    def __init__(self, test: Callable[[Any], None], methods: frozenset[str]) -> None:
        self.test = test
        self.methods = methods
        self.__doc__ = test.__doc__

    def __get__(self, case: object | None, case_class: "type[ContractCase]") -> Any:
        if not self.methods <= able_of(case_class):
            return None
        return self.test.__get__(case, case_class)


def needs(*methods: str) -> Callable[[F], F]:
    """Mark a test that only a storage with these methods must pass.

    Three more words are possible: ``async`` for all native twins, ``outage`` for the hook :meth:`ContractCase.outage`,
    and ``fork`` for a system with ``os.fork()``.
    """

    def mark(test: F) -> F:
        return cast(F, NeedingTest(test, frozenset(methods)))

    return mark


def able_of(case_class: "type[ContractCase]") -> set[str]:
    """Return the words for :func:`needs` that hold for `case_class`."""
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
    """Return `value` for a message: its ``repr()``, cut after 300 characters."""
    text = f"SessionMap({value.as_dict()!r})" if isinstance(value, SessionMap) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


class ContractCase(_TestCase):
    """The set-up of a contract test, and its helpers.

    Attributes:
        store_class: the engine's SessionStore.
        storage: its Storage object.
        able: the methods that the storage has.
    """

    store_class: ClassVar[type[SessionStore]]
    storage: Storage
    able: set[str]
    # Runs the native twins while a test calls those.
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

    if not TYPE_CHECKING:  # mypy would take it for every attribute

        def __getattr__(self, name: str) -> Any:
            if not isinstance(self, unittest.TestCase):
                if name.startswith(("assert", "fail", "subTest")) or name in ("storage", "able"):
                    raise ImproperlyConfigured(
                        f"{type(self).__name__} has no test case among its bases. Add one, as in "
                        f"class {type(self).__name__}(StorageContract, django.test.SimpleTestCase)."
                    )
            elif name in ("storage", "able"):
                raise ImproperlyConfigured(f"Call super().setUp() in {type(self).__name__}.setUp().")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @classmethod
    def _check_store_class(cls) -> None:
        given, name = getattr(cls, "store_class", None), f"{cls.__name__}.store_class"
        if given is None:
            raise ImproperlyConfigured(f"{name} is not set. Set it to the SessionStore in the engine's module.")
        if isinstance(given, Storage) or (isinstance(given, type) and issubclass(given, Storage)):
            storage = given.__name__ if isinstance(given, type) else type(given).__name__
            raise ImproperlyConfigured(
                f"{name} is the storage {storage}. Set it to the engine's SessionStore, which names {storage} as its "
                "storage_class."
            )
        if not (isinstance(given, type) and issubclass(given, SessionStore)):
            raise ImproperlyConfigured(
                f"{name} is {given!r}. Set it to the engine's SessionStore, a subclass of gsession_django.SessionStore."
            )
        storage_class = getattr(given, "storage_class", None)
        if not (isinstance(storage_class, type) and issubclass(storage_class, Storage)):
            raise ImproperlyConfigured(
                f"{name} is {given.__qualname__}, whose storage_class is {storage_class!r}. Set storage_class to the "
                "class of the storage, a subclass of gsession_django.Storage."
            )

    @classmethod
    def _check_options(cls) -> None:
        """Refuse options in ``GSESSION`` that are meant for this engine but have another key."""
        module = cls.store_class.__module__
        if module in conf().engines:
            return
        for name in conf().engines:
            if problem := _is_meant_for(cls.store_class, name):
                raise ImproperlyConfigured(
                    f'GSESSION["ENGINES"] has options under {name!r}, {problem}. Put the options of '
                    f"{cls.store_class.storage_class.__name__} under {module!r}, the module that defines its "
                    "SessionStore, or {} if it has none."
                )

    # The author may override these.

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass. Override it if the test can move the storage's clock."""
        time.sleep(seconds)

    def outage(self) -> AbstractContextManager[object]:
        """Return a context manager that takes the medium away while its block runs: stop the server, rename the folder.

        The tests of an outage exist only when the author overrides this method.
        """
        raise NotImplementedError

    # Calls of the storage, with whichever methods it has.

    @contextmanager
    def by_twins(self) -> Iterator[None]:
        """Call the native twins inside the block, on an event loop of their own."""
        with asyncio.Runner() as self._runner:
            try:
                yield
            finally:
                self._runner = None

    def ways(self) -> Iterator[tuple[str, Callable[[], AbstractContextManager[None]]]]:
        """Yield the ways to call the storage: its methods, and its native twins if it has them."""
        yield "methods", _plainly
        if "async" in able_of(type(self)):
            yield "native twins", self.by_twins

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the storage, or its native twin inside :meth:`by_twins`."""
        if self._runner is None:
            return getattr(self.storage, method)(*args)
        return self._runner.run(getattr(self.storage, f"a{method}")(*args))

    def named(self, method: str, *args: Any) -> str:
        """Return a call as text for a message."""
        prefix = "" if self._runner is None else "a"
        return f"{type(self.storage).__name__}.{prefix}{method}({', '.join(map(shown, args))})"

    def wrong(self, call: str, found: Any, wanted: str, because: str = "") -> NoReturn:
        """Fail, because `call` returned `found` and not `wanted`."""
        raise self.failureException(
            f"{call} returned {shown(found)}. It should return {wanted}{because and f': {because}'}."
        )

    def expect(self, wanted: Any, method: str, *args: Any, because: str = "") -> None:
        """Call a method that should return `wanted`. For a ``bool`` any value as true or as false will do."""
        call = self.named(method, *args)  # before the call can change an argument
        found = self.call(method, *args)
        if (bool(found) if isinstance(wanted, bool) else found) != wanted:
            self.wrong(call, found, shown(wanted), because)

    def holds(self, session_id: str, wanted: Mapping[str, Any] | None, after: str) -> None:
        """Read a session `after` something happened. It should have the pairs `wanted`; with ``None`` not exist."""
        found = self.read(session_id)
        if found != wanted:
            whole = "get_session" if wanted is None or "get" not in self.able else "get_session() or get_map"
            prefix = "" if self._runner is None else "a"
            self.wrong(f"After {after}, {type(self.storage).__name__}.{prefix}{whole}()", found, shown(wanted))

    def new_key(self) -> str:
        """Return a new session key, from the storage's ``new`` or as the adapter makes one."""
        return self.call("new", 60) if "new" in self.able else secrets.token_hex(16)

    def new_id(self) -> str:
        """Return a new session id, as the adapter hands it to the storage."""
        return engine_of(self.store_class).id_of(self.new_key())

    def put(self, data: Mapping[str, Any], ttl: int = 60, session_id: str | None = None) -> str:
        """Store a new session and return its id."""
        session_id = session_id or self.new_id()
        if "create" in self.able:
            session = SessionMap(dict(data))
            if ttl > 0:
                self.expect(True, "create", session_id, session, ttl, because="the id is new")
            else:  # a session that has expired at once may already be gone
                self.call("create", session_id, session, ttl)
            return session_id
        if "set_map" in self.able:
            per_key = "get" in self.able or "set_session" not in self.able
            self.call("set_map", session_id, data or ({RESERVED_KEY: True} if per_key else {}), ttl)
        if "set_session" in self.able:
            self.call("set_session", session_id, data, ttl)
        return session_id

    def found(self, session_id: str) -> Mapping[str, Any] | None:
        """Return the result of ``get_session``, which must be a mapping or ``None``."""
        found = self.call("get_session", session_id, 60, None)
        if found is not None and not isinstance(found, Mapping):
            self.wrong(self.named("get_session", session_id, 60, None), found, "a mapping, or None")
        return found

    def read(self, session_id: str) -> dict[str, Any] | None:
        """Return all pairs of a session; ``None`` when there is no session."""
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
        """Return a session as a request holds it after it has set a key."""
        held = self.held(session_id)
        held[key] = value
        return held

    # Calls through the adapter, as a visitor's requests make them.

    def visitor(self, data: Mapping[str, Any], expiry: int | None = None) -> str:
        """Save a new session through the adapter, and return its session key."""
        store = self.store_class()
        store.update(data)
        if expiry is not None:
            store.set_expiry(expiry)
        store.save()
        assert store.session_key is not None
        return store.session_key

    def reread(self, session_key: str | None) -> dict[str, Any]:
        """Return the data that the visitor's next request reads."""
        return dict(self.store_class(session_key).items())

    def finds(self, session_key: str | None, wanted: Mapping[str, Any], after: str) -> None:
        """Let the visitor's next request read the session, which should have the pairs `wanted`."""
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
        return "which is not an engine"
    if other is store_class:
        return "which only imports the SessionStore"
    if other.storage_class is not Storage and issubclass(store_class.storage_class, other.storage_class):
        return f"which is the engine of {other.storage_class.__name__}"
    return None
