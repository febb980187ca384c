"""The engines without a server, and the peers and targets of each. ``redis_engines.py`` has those on Redis.

To add an engine, write a context manager that creates its medium (a folder, a server), and list both here.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from django.conf import settings
from django.contrib.sessions.backends.file import SessionStore as DjangoFileStore
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.test.utils import override_settings

from benchmarks.curves import CURVES
from gsession_django.backends.memory import SessionStore as MemoryStore
from gsession_django.core.engine import engine_of
from gsession_django.core.session_map import SessionMap


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The surroundings of an engine in a measurement.

    Attributes:
        settings: Django settings during the engine's turn. Each engine may have a different folder.
        options: keyword arguments of its Storage, for ``GSESSION["ENGINES"]``.
        caches: entries of ``CACHES``.
        count: returns the number of stored sessions, expired ones too.
        copy: stores so many copies of each session, under keys that nobody knows. Through a SessionStore a million
            sessions would take minutes.
        expire: makes the stored session of a key expire, if the engine cannot create an expired one.
        value_of: turns the result of a load into the requested value, if they differ.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    caches: Mapping[str, Any] = field(default_factory=dict)
    count: Callable[[], int] | None = None
    copy: Callable[[int], None] | None = None
    expire: Callable[[str], None] | None = None
    value_of: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Engine:
    """A session engine.

    Attributes:
        name: its name in the table.
        module: the module that ``SESSION_ENGINE`` would name.
        setup: creates the engine's medium, empty, and removes it afterwards.
        operations: the names of the operations to measure.
    """

    name: str
    module: str
    setup: Callable[[], AbstractContextManager[Setup]]
    operations: frozenset[str]


@dataclass(frozen=True)
class Peer:
    """An engine to compare ours with.

    Attributes:
        targets: the ratio to reach in each operation with a target, by the name of our engine.
    """

    engine: Engine
    targets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Engines of ours and their peers, which take turns. Several comparisons may have the same name."""

    name: str
    ours: tuple[Engine, ...]
    peers: tuple[Peer, ...]


# The limit of the two engines in memory. By default they keep 100,000 sessions and 300 cache entries.
_MOST_IN_MEMORY = 2_000_000


@contextmanager
def _memory() -> Iterator[Setup]:
    options = {"max_sessions": _MOST_IN_MEMORY}
    yield Setup(options=options, copy=_copy_in_memory)
    # The storage, with its sessions, would outlive its settings.
    with override_settings(GSESSION={"ENGINES": {MemoryStore.__module__: options}}):
        storage = engine_of(MemoryStore).storage
        for session_id in storage.ids():
            storage.remove_all(session_id)


def _copy_in_memory(copies: int) -> None:
    storage = engine_of(MemoryStore).storage
    ttl = settings.SESSION_COOKIE_AGE
    for session_id in list(storage.ids()):
        session = storage.get_session(session_id, ttl)
        assert session is not None
        data = dict(session)
        for number in range(copies):
            storage.create(f"{session_id}-{number}", SessionMap(data), ttl)


UNTIL_THE_END = ExitStack()
"""Closes the servers and removes the folders of session files when the run ends.

Not earlier: for minutes after many removals some file systems are slow to create files, and the next engine would pay.
"""


def _folder() -> str:
    return UNTIL_THE_END.enter_context(TemporaryDirectory(prefix="benchmark-"))


def _link(folder: str, copies: int) -> None:
    """Give each file `copies` more names in its folder.

    Links are enough, because only the folders grow with the number of sessions. Removing a million files could take a
    quarter of an hour where freeing a block is slow.
    """
    for path in [f"{parent}/{name}" for parent, _, names in os.walk(folder) for name in names if name[0] != "."]:
        for number in range(copies):
            os.link(path, f"{path}-{number}")


@contextmanager
def _our_files() -> Iterator[Setup]:
    folder = _folder()

    def count() -> int:
        return sum(not name.startswith(".") for _, _, files in os.walk(folder) for name in files)

    yield Setup(settings={"SESSION_FILE_PATH": folder}, count=count, copy=partial(_link, folder))


@contextmanager
def _django_files() -> Iterator[Setup]:
    folder = _folder()

    def count() -> int:
        return len(os.listdir(folder))

    def expire(session_key: str) -> None:
        # For Django's engine a session's age is that of the file's last modification.
        os.utime(f"{folder}/sessionid{session_key}", (0, 0))

    # The class would keep the first folder that it saw.
    DjangoFileStore._storage_path = folder  # type: ignore[attr-defined]
    try:
        yield Setup(count=count, copy=partial(_link, folder), expire=expire)
    finally:
        del DjangoFileStore._storage_path  # type: ignore[attr-defined]


@contextmanager
def _locmem() -> Iterator[Setup]:
    cache = {
        "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
        "LOCATION": "benchmarks",
        "OPTIONS": {"MAX_ENTRIES": _MOST_IN_MEMORY},
    }
    try:
        yield Setup(settings={"SESSION_CACHE_ALIAS": "locmem"}, caches={"locmem": cache}, copy=_copy_in_cache)
    finally:
        LocMemCache("benchmarks", {}).clear()


def _copy_in_cache(copies: int) -> None:
    cache = caches["locmem"]
    for key in [key.partition(":1:")[2] for key in cache._cache]:  # type: ignore[attr-defined]
        session = cache.get(key)
        for number in range(copies):
            cache.set(f"{key}-{number}", session, settings.SESSION_COOKIE_AGE)


CHANGES_IN_PLACE = frozenset({f"change in place, {size} kB" for size in (1, 10, 100)})
_IN_PROCESS = CURVES | CHANGES_IN_PLACE | {"touch", "touch, due", "save, not due", "save, due", "create", "login"}

OUR_FILE = Engine("file", "gsession_django.backends.file", _our_files, _IN_PROCESS | {"purge"})
DJANGO_FILE = Engine("Django file", "django.contrib.sessions.backends.file", _django_files, OUR_FILE.operations)
OUR_MEMORY = Engine("memory", "gsession_django.backends.memory", _memory, _IN_PROCESS)
LOCMEM = Engine("cache on locmem", "django.contrib.sessions.backends.cache", _locmem, _IN_PROCESS)

_FILE_TARGETS = {"load": 0.4, "modify": 0.55, "touch": 0.1, "create": 0.4, "login": 0.4, "purge": 0.1}
_MEMORY_TARGETS = {"load": 1.0, "modify": 0.8, "touch": 0.8, "create": 0.8, "login": 0.8}

COMPARISONS = (
    Comparison("file", (OUR_FILE,), (Peer(DJANGO_FILE, {OUR_FILE.name: _FILE_TARGETS}),)),
    Comparison("memory", (OUR_MEMORY,), (Peer(LOCMEM, {OUR_MEMORY.name: _MEMORY_TARGETS}),)),
)
