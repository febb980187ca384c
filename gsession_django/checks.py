"""System checks: they find wrong settings before a visitor does."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from gsession_django import serializers
from gsession_django.backends.memory import MemoryStorage
from gsession_django.core.abilities import abilities, bypassed_twins, missing_abilities, missing_twins
from gsession_django.core.conf import KEYS
from gsession_django.core.engine import engine_module
from gsession_django.core.options import annotations_of, fits, in_words
from gsession_django.core.store import SessionStore, store_in
from gsession_django.moving.choice import check_places, source_of

OPTIONS_OF_EVERY_ENGINE = ("hash_ids",)
_VARIABLE = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


@register("gsession_django")
def check_settings(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check ``GSESSION``, and this package's engines that are in use."""
    given = getattr(settings, "GSESSION", {})
    if not isinstance(given, dict):
        return [
            Error(
                f"GSESSION = {given!r} is not a dictionary.",
                hint='Write GSESSION = {"ENGINES": {...}, "TOUCH_INTERVAL": 10}, or leave the setting out.',
                id="gsession_django.E001",
            )
        ]
    return [
        *_check_keys(given),
        *_check_touch_interval(given),
        *_check_serializer(),
        *_check_engines(given),
        *_check_fallback(given),
        *_check_unavailable(given),
    ]


@register("gsession_django", deploy=True)
def check_deployment(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check the servers and databases of the engines in use: under ``check --deploy``, as this may connect."""
    return [message for store in _stores_in_use() for message in _own_check(store, store.check_deployment)]


def _stores_in_use() -> Iterator[type[SessionStore]]:
    """Yield the SessionStores of the engines in use. :func:`check_settings` reports the engines without one."""
    given = getattr(settings, "GSESSION", {})
    engines = given.get("ENGINES") if isinstance(given, dict) else None
    names = [settings.SESSION_ENGINE, *(engines if isinstance(engines, dict) else ())]
    stores = map(_importable_store, names)
    yield from dict.fromkeys(store for store in stores if store is not None)


def _check_keys(given: dict[str, Any]) -> Iterator[CheckMessage]:
    for key in given.keys() - KEYS.keys():
        yield Error(
            f"GSESSION[{key!r}] is unknown.",
            hint=f"The keys of GSESSION are {_quoted(KEYS)}.",
            id="gsession_django.E002",
        )


def _check_touch_interval(given: dict[str, Any]) -> Iterator[CheckMessage]:
    interval = given.get("TOUCH_INTERVAL", 0)
    if isinstance(interval, bool) or not isinstance(interval, int | float) or not interval >= 0:
        yield Error(
            f'GSESSION["TOUCH_INTERVAL"] = {interval!r} is not a number of seconds.',
            hint="Give it 0 or more; 0 renews the TTL at every request.",
            id="gsession_django.E003",
        )


def _check_engines(given: dict[str, Any]) -> Iterator[CheckMessage]:
    engines = given.get("ENGINES", {})
    if not isinstance(engines, dict) or not all(isinstance(options, dict) for options in engines.values()):
        yield Error(
            f'GSESSION["ENGINES"] = {engines!r} does not map engines to their options.',
            hint='Write {"the.engine.module": {"option": value}}.',
            id="gsession_django.E004",
        )
        engines = {}
    if settings.SESSION_ENGINE not in list(engines):
        yield from _check_engine("SESSION_ENGINE", settings.SESSION_ENGINE, {}, ours=False)
    for name, options in engines.items():
        yield from _check_engine('GSESSION["ENGINES"]', name, options, ours=True)


def _check_fallback(given: dict[str, Any]) -> Iterator[CheckMessage]:
    name, engine = given.get("FALLBACK_ENGINE"), settings.SESSION_ENGINE
    if name is None:
        return
    source = None
    try:
        source = source_of(name)
    except Exception as error:  # a site's own engine may raise anything
        yield Error(
            f'GSESSION["FALLBACK_ENGINE"] = {name!r} cannot be used. {error}',
            hint="Name the engine that SESSION_ENGINE named before, as in docs/migrating.md, or leave it out.",
            id="gsession_django.E018",
        )
    if _module(engine) is None:
        return  # _check_engines() reports it
    store = _importable_store(engine)
    if source is not None:
        try:
            check_places('GSESSION["FALLBACK_ENGINE"]', source, engine, store)
        except ImproperlyConfigured as error:
            yield Error(
                str(error),
                hint="Name the engine that SESSION_ENGINE named before. Once its sessions are moved, leave it out.",
                id="gsession_django.E019",
            )
            return
    lacking = ["create", "apply"] if store is None else {"create", "apply"} - abilities(store.storage_class)
    reason = f"has no {' and no '.join(f'{name}()' for name in sorted(lacking, reverse=True))}" if lacking else None
    if store is not None and issubclass(store.storage_class, MemoryStorage):
        reason = "keeps them in the memory of a process, and they would end with it"
    if reason is not None:
        yield Error(
            f'GSESSION["FALLBACK_ENGINE"] cannot move sessions to SESSION_ENGINE = {engine!r}: it {reason}.',
            hint="Use an engine of gsession_django whose storage has both create() and apply(), or leave "
            "FALLBACK_ENGINE out.",
            id="gsession_django.E020",
        )


def _check_unavailable(given: dict[str, Any]) -> Iterator[CheckMessage]:
    name = given.get("UNAVAILABLE")
    if name is None:
        return
    try:
        if not callable(view := import_string(name)):
            raise TypeError(f"{view!r} cannot be called")
    except Exception as error:  # a site's module may raise anything
        yield Error(
            f'GSESSION["UNAVAILABLE"] = {name!r} does not name a view: {type(error).__name__}: {error}.',
            hint="Give it the dotted path of a view, such as 'mysite.views.unavailable', or leave it out.",
            id="gsession_django.E027",
        )
        return
    try:
        with suppress(ValueError):  # from a callable without a signature
            inspect.signature(view).bind(None, None)
    except TypeError as error:
        yield Error(
            f'GSESSION["UNAVAILABLE"] = {name!r} cannot be called with a request and an exception: {error}.',
            hint="Write it as Django's handler404: def unavailable(request, exception).",
            id="gsession_django.E028",
        )


def _check_engine(setting: str, name: Any, options: dict[str, Any], ours: bool) -> Iterator[CheckMessage]:
    """Check one engine; if it need not be `ours`, leave an engine of Django's alone."""
    try:
        store = store_in(engine_module(name))
    except ImproperlyConfigured as error:
        yield Error(
            f"{setting} names the engine {name!r}, which cannot be imported: {error}.",
            hint="Give it the dotted name of a module, such as 'gsession_django.backends.file'.",
            id="gsession_django.E005",
        )
        return
    if store is None:
        if ours:
            yield Error(
                f"{setting} names {name!r}, which is not an engine of gsession_django.",
                hint="Name a module with a class SessionStore that is a subclass of gsession_django.SessionStore and "
                "has a storage_class.",
                id="gsession_django.E006",
            )
        return
    if options and store.__module__ != name:
        yield Error(
            f"{setting} gives options to {name!r}, which takes its SessionStore from {store.__module__!r}: they have "
            "no effect.",
            hint=f'Give them in GSESSION["ENGINES"][{store.__module__!r}], or subclass that SessionStore in {name!r}.',
            id="gsession_django.E022",
        )
    yield from _check_storage(name, store)
    yield from _check_options(name, store, options)
    yield from _check_single_values(name)
    yield from _own_check(store, store.check)


def _module(name: Any) -> ModuleType | None:
    try:
        return engine_module(name)
    except ImproperlyConfigured:
        return None


def _importable_store(name: Any) -> type[SessionStore] | None:
    """Return the SessionStore of an engine of this package; ``None`` for any other name."""
    module = _module(name)
    return None if module is None else store_in(module)


def _own_check(store: type[SessionStore], check: Callable[[], list[CheckMessage]]) -> list[CheckMessage]:
    """Return the messages of an engine's own check, or an error if it raises an exception."""
    try:
        return list(check())
    except Exception as error:
        return [
            Error(
                f"{check.__name__}() of the engine {store.__module__!r} raised {type(error).__name__}: {error}.",
                hint="Correct the settings that this engine uses, or the check: it has to return messages.",
                id="gsession_django.E026",
            )
        ]


def _check_storage(name: str, store: type[SessionStore]) -> Iterator[CheckMessage]:
    storage = store.storage_class
    if missing := missing_abilities(abilities(storage)):
        yield Error(
            f"{storage.__qualname__}, the storage of the engine {name!r}, cannot hold a session: it lacks "
            f"{', '.join(missing)}.",
            hint="Write the missing methods, as docs/storage-methods.md explains.",
            id="gsession_django.E007",
        )
    missing = missing_twins(storage)
    if any(hasattr(storage, f"a{method}") for method in abilities(storage)) and missing:
        yield Warning(
            f"{storage.__qualname__}, the storage of the engine {name!r}, has some async methods but not "
            f"{', '.join(missing)}.",
            hint="Write the missing ones. Until then async requests use none of them, and run in a thread.",
            id="gsession_django.W002",
        )
    for method, inherited_from in bypassed_twins(storage).items():
        yield Error(
            f"{storage.__qualname__}, the storage of the engine {name!r}, overrides {method}() and inherits "
            f"a{method}() from {inherited_from.__qualname__}: async requests bypass the override.",
            hint=f"Override a{method}() in the same class.",
            id="gsession_django.E021",
        )


def _check_options(name: str, store: type[SessionStore], options: dict[Any, Any]) -> Iterator[CheckMessage]:
    storage = store.storage_class
    try:
        parameters = dict(inspect.signature(storage).parameters)
    except (TypeError, ValueError) as error:
        yield Error(
            f"{storage.__qualname__}, the storage of the engine {name!r}, does not show which options it takes: "
            f'{error}. So {options!r} in GSESSION["ENGINES"] cannot be checked.',
            hint="Write its __init__ in Python, with a named parameter for each option.",
            id="gsession_django.E025",
        )
        return
    variable = [key for key, parameter in parameters.items() if parameter.kind in _VARIABLE]
    for key in variable:
        del parameters[key]
    taken = [*parameters, *OPTIONS_OF_EVERY_ENGINE]
    annotations = {"hash_ids": bool} | annotations_of(storage)
    for option, value in options.items():
        if not isinstance(option, str) or (option not in taken and not variable):  # **options: the storage checks them
            yield Error(
                f'GSESSION["ENGINES"][{name!r}] has the option {option!r} = {value!r}, which '
                f"{storage.__qualname__} does not take.",
                hint=f"The options of this engine are {_quoted(taken)}.",
                id="gsession_django.E009",
            )
        elif option in taken and not fits(value, annotations.get(option, Any)):
            yield Error(
                f'GSESSION["ENGINES"][{name!r}] has the option {option!r} = {value!r}, which is not '
                f"{in_words(annotations[option])}.",
                hint=f"Give it {in_words(annotations[option])}, as {storage.__qualname__} requires.",
                id="gsession_django.E023",
            )
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            yield Error(
                f'GSESSION["ENGINES"][{name!r}] lacks the option {option!r}, which {storage.__qualname__} requires.',
                hint="Add the option, or give it a default in the storage's __init__.",
                id="gsession_django.E011",
            )


def _check_serializer() -> Iterator[CheckMessage]:
    with suppress(Exception):  # _check_single_values() reports the others
        try:
            serializers.encode(None)
        except ImproperlyConfigured as error:
            yield Error(
                str(error),
                hint="Name a class with the methods dumps() and loads(), and install what it needs.",
                id="gsession_django.E024",
            )


def _check_single_values(name: str) -> Iterator[CheckMessage]:
    """Check that the serializer takes single values, as JSON does: a storage may keep each on its own."""
    for value in ("text", 1, [1, "two"], None):
        try:
            back = serializers.decode(serializers.encode(value))
            problem = None if back == value else f"it gives back {back!r}"
        except ImproperlyConfigured:
            return  # _check_serializer() reports it
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem is not None:
            yield Error(
                f"SESSION_SERIALIZER = {settings.SESSION_SERIALIZER!r} cannot take the single value {value!r}: "
                f"{problem}.",
                hint=f"The engine {name!r} needs a serializer whose dumps() and loads() take any single value, such as "
                "'django.contrib.sessions.serializers.JSONSerializer'.",
                id="gsession_django.E010",
            )
            return


def _quoted(names: Any) -> str:
    return ", ".join(repr(name) for name in names)
