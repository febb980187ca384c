"""An engine in this process: its one Storage object, what that turns out to be able to do, and how it is called.

What Django asks for may take several calls. Such an operation is written once, as a generator that yields the calls it
wants made and is sent what they return (``operations.py``). It is driven by plain calls (:meth:`Engine.run`), by
awaiting the storage's native twins, or in a thread (:meth:`Engine.arun`). What it wants of another engine, one that
sessions are moved from, it yields as a function without arguments.
"""

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Generator
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from gsession_django.conf import conf
from gsession_django.locks import IdLocks, Turn
from gsession_django.observing import OBSERVERS, Observer, Recorder
from gsession_django.storage import Disabled, Storage

if TYPE_CHECKING:
    from gsession_django.moving.source import Source
    from gsession_django.store import SessionStore

# All that is called in a request, and so decides whether a storage is async.
_METHODS: Final = (
    *("new", "get", "get_map", "get_size", "set", "set_map", "remove", "remove_all", "get_session", "set_session"),
    *("update_ttl", "exists", "create", "apply", "move"),
)
_COMMANDS: Final = ("purge", "ids")
_TWINS: Final = frozenset(f"a{name}" for name in _METHODS)

UNABLE: Final = object()
"""What a call returns when the storage does not have the method."""

Call = tuple[Any, ...]
"""The name of a method of the Storage interface, and its arguments."""
Operation = Generator[Call | Turn | Callable[[], Any], Any, Any]


def abilities(storage_class: type[Storage]) -> set[str]:
    """Return the names of the methods that `storage_class` has, of those in the Storage interface."""
    return {name for name in (*_METHODS, *_COMMANDS) if getattr(storage_class, name) is not getattr(Storage, name)}


def missing_abilities(able: set[str]) -> list[str]:
    """Return what a storage with these methods lacks to hold a session at all."""
    missing = [name for name in ("get_session", "remove_all") if name not in able]
    writes = able & {"set_session", "set_map"} or able >= {"create", "apply"}
    return missing if writes else [*missing, "set_session (or set_map, or create and apply)"]


def missing_twins(storage_class: type[Storage]) -> list[str]:
    """Return the native twins that `storage_class` lacks to be async."""
    wanted = [f"a{name}" for name in _METHODS if name in abilities(storage_class)]
    return [name for name in wanted if not hasattr(storage_class, name)]


def bypassed_twins(storage_class: type[Storage]) -> dict[str, type]:
    """Return the methods that `storage_class` overrides without their native twins, each with the class that the twin
    is inherited from: async requests would go on calling that, and so the method that was overridden.
    """
    bypassed = {}
    bases = storage_class.__mro__
    for name in sorted(abilities(storage_class) - set(_COMMANDS)):
        method_class, twin_class = (next((b for b in bases if n in vars(b)), None) for n in (name, f"a{name}"))
        if method_class is None or twin_class is None or bases.index(method_class) >= bases.index(twin_class):
            continue
        # A twin that was written for no method, as in a mixin, is inherited on purpose.
        if getattr(twin_class, name, None) not in (None, getattr(Storage, name), getattr(storage_class, name)):
            bypassed[name] = twin_class
    return bypassed


def engine_module(name: Any) -> ModuleType:
    """Import the module of an engine.

    Raises ``ImproperlyConfigured``, which says why, where `name` is none that can be imported, whatever it is.
    """
    if not isinstance(name, str) or not name or name.startswith("."):
        raise ImproperlyConfigured("it is not the dotted name of a module")
    try:
        return import_module(name)
    except ImportError as error:
        raise ImproperlyConfigured(str(error)) from error
    except (Exception, SystemExit) as error:  # the module is the site's own, and may raise anything
        raise ImproperlyConfigured(f"{type(error).__name__}: {error}") from error


def name_without_effect(store: "type[SessionStore]") -> str | None:
    """Return a name in ``GSESSION["ENGINES"]`` that has options, of a module that only imports `store`; if any."""
    for name, options in conf().engines.items():
        if options and name != store.__module__ and getattr(sys.modules.get(name), "SessionStore", None) is store:
            return name
    return None


class Engine:
    """What the SessionStores of one engine have in common.

    Attributes:
        name: the storage and the engine, for messages.
        options: what the storage was made with.
        storage: the Storage object: one a process, shared by threads and event loops.
        calls: what its methods are called on: the storage, or a Recorder before it while anybody observes.
        able: the methods that it has; one that raises ``Disabled`` at run time is taken out.
        is_async: whether it has native twins.
        hash_ids: whether it is given hashed session keys.
        locks: what keeps apart, in this process, the operations that are composed of several calls.
        fallback: what sessions are moved from on first touch that this engine does not have, if anything.
    """

    __slots__ = ("able", "calls", "fallback", "hash_ids", "is_async", "locks", "name", "options", "storage")

    def __init__(self, store: "type[SessionStore]") -> None:
        if name := name_without_effect(store):
            raise ImproperlyConfigured(
                f'GSESSION["ENGINES"][{name!r}] would have no effect: {name!r} takes its SessionStore from '
                f"{store.__module__!r}. Give the options there, or make a subclass in {name!r}."
            )
        self.options = options = dict(conf().engines.get(store.__module__, {}))
        self.name = f"{store.storage_class.__qualname__} of the engine {store.__module__!r}"
        self.hash_ids: bool = options.pop("hash_ids", store.storage_class.hash_ids)
        self.able = abilities(store.storage_class)
        if missing := missing_abilities(self.able):
            raise ImproperlyConfigured(f"{self.name} cannot hold a session. Give it {', '.join(missing)}.")
        former = _former.get(store)
        kept = former if former is not None and former.options == options else None
        self.storage: Storage = store.storage_class(**options) if kept is None else kept.storage
        self.locks: IdLocks = IdLocks() if kept is None else kept.locks
        self.is_async = not missing_twins(store.storage_class)
        self.fallback = _fallback_of(store)
        _look_for_opentelemetry()
        self.choose_calls()

    def choose_calls(self) -> None:
        """Call the storage itself, or where anybody observes, by way of a Recorder."""
        self.calls: Any = Recorder(self.storage, _TWINS) if OBSERVERS else self.storage

    def id_of(self, session_key: str) -> str:
        """Return what the storage is given for a session key."""
        return hashlib.sha256(session_key.encode()).hexdigest() if self.hash_ids else session_key

    def run(self, operation: Operation) -> Any:
        """Carry out an operation with plain calls, and return what it returns."""
        able, calls = self.able, self.calls
        try:
            call = next(operation)
            while True:
                try:
                    if isinstance(call, tuple):
                        result = getattr(calls, call[0])(*call[1:]) if call[0] in able else UNABLE
                    elif isinstance(call, Turn):
                        self.locks.wait(call)
                        result = None
                    else:
                        result = call()
                except Disabled as error:
                    result = self._unable(call, error)
                except BaseException as error:
                    call = operation.throw(error)
                    continue
                call = operation.send(result)
        except StopIteration as stop:
            return stop.value

    async def arun(self, operation: Operation) -> Any:
        """The same, awaiting the native twins; for a storage that is not async, all of it in one thread hop."""
        if not self.is_async:
            return await sync_to_async(self.run)(operation)
        able, calls = self.able, self.calls
        try:
            call = next(operation)
            while True:
                try:
                    if isinstance(call, tuple):
                        result = await getattr(calls, f"a{call[0]}")(*call[1:]) if call[0] in able else UNABLE
                    elif isinstance(call, Turn):
                        await self.locks.await_turn(call)
                        result = None
                    else:
                        result = await sync_to_async(call)()
                except Disabled as error:
                    result = self._unable(call, error)
                except BaseException as error:
                    call = operation.throw(error)
                    continue
                call = operation.send(result)
        except StopIteration as stop:
            return stop.value

    def _unable(self, call: Any, error: Disabled) -> object:
        """Remember that the storage does not have what was called."""
        if not isinstance(call, tuple):  # another engine's
            raise error
        self.able.discard(call[0])
        return UNABLE

    def need(self, name: str, *args: Any) -> Operation:
        """Call a method without which no session can be held."""
        result = yield name, *args
        if result is UNABLE:
            raise self.cannot_hold_a_session(name)
        return result

    def cannot_hold_a_session(self, name: str) -> ImproperlyConfigured:
        """Return what to raise where the storage does not have the method `name`, without which there is no session."""
        return ImproperlyConfigured(f"{self.name} cannot hold a session: its {name}() is disabled, or not there.")


def _fallback_of(store: "type[SessionStore]") -> "Source | None":
    """Return what ``GSESSION["FALLBACK_ENGINE"]`` names, for the engine that ``SESSION_ENGINE`` names."""
    name = conf().fallback_engine
    if name is None or getattr(engine_module(settings.SESSION_ENGINE), "SessionStore", None) is not store:
        return None
    if name == settings.SESSION_ENGINE:
        raise ImproperlyConfigured(f'GSESSION["FALLBACK_ENGINE"] and SESSION_ENGINE name the same engine, {name!r}.')
    # Here, as it knows the engines that stand on this module.
    from gsession_django.moving.choice import source_of
    from gsession_django.moving.our_engines import OurSource

    source = source_of(name)
    if isinstance(source, OurSource) and source.is_place_of(store, conf().engines):
        raise ImproperlyConfigured(
            f'GSESSION["FALLBACK_ENGINE"] = {name!r} and SESSION_ENGINE = {settings.SESSION_ENGINE!r} keep their '
            "sessions in one and the same place, so that there is nothing to move. Leave FALLBACK_ENGINE out."
        )
    return source


def _look_for_opentelemetry() -> None:
    """Let OpenTelemetry observe, where its API is installed and the site has set it up."""
    try:
        from gsession_django import telemetry
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
    else:
        telemetry.start()


ENGINES: "Final[dict[type[SessionStore], Engine]]" = {}
"""Those that are there already, by SessionStore: see :func:`engine_of`."""
_former: "Final[dict[type[SessionStore], Engine]]" = {}
"""Engines made before a setting changed, whose storages do not read it: the next one takes the storage over."""
_engines_lock = threading.RLock()  # a storage may ask for another engine while it is made


def engine_of(store: "type[SessionStore]") -> Engine:
    """Return the Engine of `store`, made when it is first asked for and again after a setting has changed."""
    try:
        return ENGINES[store]
    except KeyError:
        with _engines_lock:
            return ENGINES.get(store) or ENGINES.setdefault(store, Engine(store))


def observe(observer: Observer) -> None:
    """Let `observer` see each call of a storage from now on, on every engine."""
    with _engines_lock:
        if observer not in OBSERVERS:
            OBSERVERS.append(observer)
        _choose_calls()


def stop_observing(observer: Observer) -> None:
    """Undo :func:`observe`, if that was called."""
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
    """Let a forked child have storages and locks of its own: a thread that is not there might hold the parent's."""
    global _engines_lock
    _engines_lock = threading.RLock()
    ENGINES.clear()
    _former.clear()


setting_changed.connect(_forget)
os.register_at_fork(after_in_child=_start_anew)
