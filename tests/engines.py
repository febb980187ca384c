"""The two engines under test, each with a place of its own to keep sessions, and what visitors do with them."""

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.test.utils import override_settings

from gsession_django import SessionStore
from gsession_django.backends import file, memory

ENGINES = ["memory", "file"]
_MODULES = {"memory": memory, "file": file}


@contextmanager
def engine(name: str, folder: Path | str, **options: Any) -> Iterator[type[SessionStore]]:
    """Yield the SessionStore of an engine that is new and empty, with these options."""
    module = _MODULES[name]
    with override_settings(
        SESSION_ENGINE=module.__name__,
        SESSION_FILE_PATH=os.fspath(folder),
        GSESSION={"ENGINES": {module.__name__: options}},
    ):
        yield module.SessionStore


def new_session(store_class: type[SessionStore], data: Mapping[str, Any]) -> str:
    """Let a visitor have a session, and return its key."""
    store = store_class()
    store.update(data)
    store.save()
    assert store.session_key is not None
    return store.session_key


def stored(store_class: type[SessionStore], key: str | None) -> dict[str, Any] | None:
    """Return what a visitor's next request finds under a session key; ``None`` when there is no session."""
    store = store_class(key)
    data = dict(store.items())
    return None if store.session_key is None else data


def id_of(store_class: type[SessionStore], key: str) -> str:
    """Return the id that the storage is given for a session key."""
    session_id = store_class(key).session_id
    assert session_id is not None
    return session_id


def path_of(folder: Path, session_id: str) -> Path:
    """Return the file of a session."""
    (path,) = folder.glob(f"*/{session_id}")
    return path


def same_shard(count: int, seed: str = "") -> list[str]:
    """Return ids that the file engine keeps in one and the same shard."""
    ids: list[str] = []
    number = 0
    while len(ids) < count:
        session_id = hashlib.sha256(f"{seed}{number}".encode()).hexdigest()
        if zlib.crc32(session_id.encode()) & 255 == 7:
            ids.append(session_id)
        number += 1
    return ids
