"""A session engine whose storage has create() and no apply()."""

from gsession_django import SessionMap
from gsession_django import SessionStore as BaseSessionStore
from tests.support.storages import PerKeyStorage


class Pairs(PerKeyStorage):
    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        if self.medium.live(session_id) is not None:
            return False
        self.put(session_id, session.as_dict(), ttl)
        return True


class SessionStore(BaseSessionStore):
    storage_class = Pairs
