"""A session engine that fetches sessions key by key. Sessions can be moved to it."""

from collections.abc import Mapping
from typing import Any

from gsession_django import SessionStore as BaseSessionStore
from tests.support.storages import CompleteStorage


class ByKeys(CompleteStorage):
    def get_session(  # type: ignore[override]
        self, session_id: str, ttl: int, data: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        return None if super().get_session(session_id, ttl, data) is None else {}


class SessionStore(BaseSessionStore):
    storage_class = ByKeys
