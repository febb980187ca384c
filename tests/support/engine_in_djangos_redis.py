"""Django's cache engine, on another cache than SESSION_CACHE_ALIAS names."""

from django.contrib.sessions.backends.cache import SessionStore as CacheStore
from django.core.cache import caches


class SessionStore(CacheStore):
    def __init__(self, session_key: str | None = None) -> None:
        super().__init__(session_key)
        self._cache = caches["old"]
