"""Moves sessions from the engines of this package, and from those that sites write with it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from gsession_django.core.driving import Operation
from gsession_django.core.engine import Engine, engine_of
from gsession_django.core.pairs import EXPIRY_KEY
from gsession_django.core.reading import Lifetimes
from gsession_django.core.reserved import RESERVED_KEY, is_reserved
from gsession_django.core.session_map import SessionMap
from gsession_django.core.storage import Disabled
from gsession_django.core.store import SessionStore
from gsession_django.moving.source import Found
from gsession_django.serializers import DecodeError
from gsession_django.users.about import LISTED


class OurSource:
    """Reads and removes sessions of an engine with a storage.

    Attributes:
        store_class: its SessionStore.
    """

    def __init__(self, name: str, store_class: type[SessionStore]) -> None:
        self.name = name
        self.store_class = store_class

    @property
    def engine(self) -> Engine:
        return engine_of(self.store_class)

    def ref_of(self, session_key: str) -> str:
        return self.engine.id_of(session_key)

    def batches(self, size: int) -> Iterator[Sequence[str]]:
        """Yield the refs, as every source does; ``ImproperlyConfigured`` if the storage cannot list its sessions."""
        try:
            ids = iter(self.engine.storage.ids())
            while batch := list(islice(ids, size)):
                yield batch
        except Disabled as error:
            raise ImproperlyConfigured(f"{self.engine.name} cannot list its sessions: it has no ids().") from error

    def read(self, refs: Sequence[str]) -> Mapping[str, Found | None]:
        engine, lifetimes = self.engine, self.store_class()
        found: dict[str, Found | None] = {}
        for ref in refs:
            try:
                session = engine.run(self._read(engine, ref, lifetimes))
            except DecodeError:
                session = None
            # To a load, a session that cannot be read looks like none.
            if session is None and engine.run(engine.exists(ref, lifetimes)):
                found[ref] = None
            elif session is not None and session.ttl_left > 0:
                found[ref] = session
        return found

    def _read(self, engine: Engine, session_id: str, lifetimes: Lifetimes) -> Operation:
        """Return a session; ``None`` if it is not there, or cannot be read."""
        session: SessionMap | None = yield from engine.load(session_id, lifetimes)
        if session is None:
            return None
        there = bool(session)
        if session.lacks(None):
            pairs: Mapping[str, Any] = yield from engine.need("get_map", session_id)
            session.learn({key: value for key, value in pairs.items() if not _is_ours(key)}, complete=True)
        data = session.as_dict()
        data.pop(LISTED, None)  # in the index of this engine, not of the target's
        if there and not data:  # none of its values can be decoded
            return None
        left = session.ttl_left
        return Found(data, lifetimes.ttl_of(data.get(EXPIRY_KEY)) if left is None else left)

    def present(self, refs: Sequence[str]) -> set[str]:
        engine, lifetimes = self.engine, self.store_class()
        return {ref for ref in refs if engine.run(engine.exists(ref, lifetimes))}

    def remove(self, refs: Sequence[str]) -> None:
        engine = self.engine
        for ref in refs:
            engine.run(engine.remove(ref))


def _is_ours(key: str) -> bool:
    """Whether the package keeps this key for itself."""
    return key == RESERVED_KEY or is_reserved(key)
