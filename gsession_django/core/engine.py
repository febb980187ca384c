"""An engine in this process: its one Storage object, which methods that has, and how they are called."""

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from gsession_django.core.abilities import TWINS, abilities, missing_abilities, missing_twins
from gsession_django.core.conf import conf
from gsession_django.core.driving import Operation
from gsession_django.core.locks import IdLocks
from gsession_django.core.observing import OBSERVERS, Observer, Recorder
from gsession_django.core.operations import Operations
from gsession_django.core.pairs import EXPIRY_KEY
from gsession_django.core.reading import Lifetimes
from gsession_django.core.session_map import SessionMap
from gsession_django.core.storage import Storage

if TYPE_CHECKING:
    from gsession_django.core.store_base import StoreBase


def engine_module(name: Any) -> ModuleType:
    """Import the module of an engine.

    Args:
        name: its dotted name. It comes from a setting, so it may be anything.

    Raises:
        ImproperlyConfigured: there is no such module, or its import failed. The message says why.
    """
    if not isinstance(name, str) or not name or name.startswith("."):
        raise ImproperlyConfigured("it is not the dotted name of a module")
    try:
        return import_module(name)
    except ImportError as error:
        raise ImproperlyConfigured(str(error)) from error
    except (Exception, SystemExit) as error:  # a module of the site may raise anything
        raise ImproperlyConfigured(f"{type(error).__name__}: {error}") from error


def name_without_effect(store: "type[StoreBase]") -> str | None:
    """Return a module with options in ``GSESSION["ENGINES"]`` that only imports `store`, if there is one."""
    for name, options in conf().engines.items():
        if options and name != store.__module__ and getattr(sys.modules.get(name), "SessionStore", None) is store:
            return name
    return None


class Engine(Operations):
    """What the SessionStores of one engine have in common.

    A SessionStore calls the methods below, with the session key and the id. In this class they use the id only. An
    engine whose sessions may be in another place too overrides them.

    Attributes:
        options: the keyword arguments that the storage was made with.
        storage: the Storage object, one per process. Threads and event loops share it.
        calls: the storage, or while anybody observes, a Recorder that calls it.
        hash_ids: whether the ids are hashed session keys.
        needed: the keys whose values a save or a move has to know.
        takes_turns: whether the tasks of a request wait for each other before each operation.
    """

    __slots__ = ("hash_ids", "options", "storage", "takes_turns")

    needed: tuple[str, ...] = (EXPIRY_KEY,)

    def __init__(self, store: "type[StoreBase]") -> None:
        if name := name_without_effect(store):
            raise ImproperlyConfigured(
                f'GSESSION["ENGINES"][{name!r}] would have no effect: {name!r} takes its SessionStore from '
                f"{store.__module__!r}. Give the options there, or make a subclass in {name!r}."
            )
        storage_class = store.storage_class
        self.name = f"{storage_class.__qualname__} of the engine {store.__module__!r}"
        self.options = options = dict(conf().engines.get(store.__module__, {}))
        self.hash_ids: bool = options.pop("hash_ids", storage_class.hash_ids)
        able = abilities(storage_class)
        if missing := missing_abilities(able):
            raise ImproperlyConfigured(f"{self.name} cannot hold a session. Give it {', '.join(missing)}.")
        former = _former.get(store)
        kept = former if former is not None and former.options == options else None
        self.storage: Storage = storage_class(**options) if kept is None else kept.storage
        super().__init__(able, not missing_twins(storage_class), IdLocks() if kept is None else kept.locks)
        # One thread carries out the operations of a storage that is not async, so they follow each other anyway. An
        # operation that waited for a lock in that thread would wait for ever.
        self.takes_turns = self.is_async
        self.choose_calls()

    def choose_calls(self) -> None:
        """Let `calls` be the storage, or while anybody observes, a Recorder."""
        self.calls = Recorder(self.storage, TWINS) if OBSERVERS else self.storage

    def id_of(self, session_key: str) -> str:
        """Return the id that the storage is given for a session key."""
        return hashlib.sha256(session_key.encode()).hexdigest() if self.hash_ids else session_key

    # By session key and id.

    def find(self, session_key: str, session_id: str, lifetimes: Lifetimes) -> Operation:
        """Return the session, as :meth:`load` does."""
        return self.load(session_id, lifetimes)

    def has(self, session_key: str, session_id: str, lifetimes: Lifetimes) -> Operation:
        """Return whether there is such a session, as :meth:`exists` does."""
        return self.exists(session_id, lifetimes)

    def write(
        self, session_key: str, session_id: str, lifetimes: Lifetimes, operation: Callable[[], Operation]
    ) -> Operation:
        """Carry out an operation that changes or touches the session. Return its result: ``False`` if that is gone."""
        return operation()

    def before_save(self, session: SessionMap, ttl: int) -> bool:
        """Set hidden pairs of a session that is about to be stored. Return whether it has set or removed any.

        Args:
            session: the session, with the values of :attr:`needed`.
            ttl: seconds that it lives from now on.
        """
        return False

    def will_create(self, session_id: str, session: SessionMap, ttl: int) -> Operation:
        """Do what comes before a session is stored under a new id."""
        yield from ()

    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        """Do what :meth:`.Storage.purge` does."""
        steps: Iterator[int] = self.calls.purge(batch_size, dry_run)
        return steps

    def end_elsewhere(self, user_id: str) -> Operation:
        """End the sessions of a user that this engine does not have yet."""
        yield from ()

    def was_not_created(self, session_id: str, data: Mapping[str, Any]) -> Operation:
        """Undo :meth:`will_create`: the storage has refused the session."""
        yield from ()

    def emptied(self, session_key: str, session_id: str, lifetimes: Lifetimes, session: SessionMap) -> Operation:
        """Return the session to save in place of one that was cleared, and perhaps filled again."""
        yield from ()
        return session

    def is_taken(self, session_key: str, session_id: str, lifetimes: Lifetimes) -> Operation:
        """Return whether a given key is taken, as far as :meth:`create` does not find out."""
        # A composed create does not look for another session. For a random key it does not need to.
        return "create" not in self.able and (yield from self.has(session_key, session_id, lifetimes))

    def was_created(self, session_key: str, session_id: str) -> Operation:
        """Finish the creation of a session under a given key."""
        yield from ()

    def leave(self, session_key: str, session_id: str, lifetimes: Lifetimes, unseen: bool = False) -> Operation:
        """Prepare the end of a session under this key: next, it is removed or gets another key.

        Args:
            session_key, session_id: the session.
            lifetimes: how long sessions of this site live.
            unseen: whether it gets another key, and this request may not have looked for it.
        """
        yield from ()


ENGINES: "Final[dict[type[StoreBase], Engine]]" = {}
"""The engines that were made, by SessionStore: see :func:`engine_of`."""
_former: "Final[dict[type[StoreBase], Engine]]" = {}
"""Engines from before a setting changed whose storages read no settings: the next engine takes the storage over."""
_class_of: "Callable[[type[StoreBase]], type[Engine]]" = lambda store: Engine  # noqa: E731 - may be replaced
_engines_lock = threading.RLock()  # a storage may ask for another engine while it is made


def engine_of(store: "type[StoreBase]") -> Engine:
    """Return the Engine of `store`. It is made at the first call, and again after a setting has changed."""
    try:
        return ENGINES[store]
    except KeyError:
        with _engines_lock:
            return ENGINES.get(store) or ENGINES.setdefault(store, _class_of(store)(store))


def choose_engines(class_of: "Callable[[type[StoreBase]], type[Engine]]") -> None:
    """Let `class_of` choose the class of the Engine of each SessionStore."""
    global _class_of
    _class_of = class_of


def observe(observer: Observer) -> None:
    """Let `observer` see each call of every storage from now on."""
    with _engines_lock:
        if observer not in OBSERVERS:
            OBSERVERS.append(observer)
        _choose_calls()


def stop_observing(observer: Observer) -> None:
    """Undo :func:`observe`, if it was called."""
    with _engines_lock:
        if observer in OBSERVERS:
            OBSERVERS.remove(observer)
            _choose_calls()


def _choose_calls() -> None:
    for engine in list(ENGINES.values()):
        engine.choose_calls()


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting in ("GSESSION", "CACHES") or setting.startswith("SESSION_"):
        _former.update({store: engine for store, engine in ENGINES.items() if not engine.storage.reads_settings})
        ENGINES.clear()


def _start_anew() -> None:
    """Give a forked child its own storages and locks: a thread of the parent may hold the old ones."""
    global _engines_lock
    _engines_lock = threading.RLock()
    ENGINES.clear()
    _former.clear()


setting_changed.connect(_forget)
os.register_at_fork(after_in_child=_start_anew)
