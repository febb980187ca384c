"""No session engine: the least that a load from Redis costs with redis-py's ordinary client, ``client.get``."""

import json
import secrets
from collections.abc import ItemsView, Mapping
from typing import Any, ClassVar

from redis import Redis


class SessionStore:
    """The part of a SessionStore that the benchmark of a load calls. :meth:`get` returns the whole session as bytes."""

    __slots__ = ("_data", "session_key")

    client: ClassVar[Redis]

    def __init__(self, session_key: str = "") -> None:
        self.session_key = session_key

    def get(self, key: str) -> Any:
        return self.client.get(self.session_key)

    def update(self, data: Mapping[str, Any]) -> None:
        self._data = data

    def save(self) -> None:
        self.session_key = secrets.token_hex(32)
        self.client.set(self.session_key, json.dumps(self._data))

    def items(self) -> ItemsView[str, Any]:
        return value_of(self.client.get(self.session_key)).items()


def value_of(stored: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(stored)
    return data
