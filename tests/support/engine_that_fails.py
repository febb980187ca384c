"""An engine in memory that fails on demand."""

from typing import Any

from gsession_django import SessionStore as BaseSessionStore
from gsession_django import StorageUnavailable
from gsession_django.backends import memory


class FailingStorage(memory.MemoryStorage):
    """Answers while `answers` is true. Each test has a new one."""

    reads_settings = True
    answers = True
    asked = 0

    def _answer(self) -> None:
        self.asked += 1
        if not self.answers:
            raise StorageUnavailable("it has been told\nnot to answer")

    def get_session(self, *args: Any) -> Any:
        self._answer()
        return super().get_session(*args)

    def exists(self, session_id: str) -> bool:
        self._answer()
        return super().exists(session_id)

    def update_ttl(self, *args: Any) -> bool:
        self._answer()
        return super().update_ttl(*args)

    def create(self, *args: Any) -> bool:
        self._answer()
        return super().create(*args)

    def apply(self, *args: Any) -> bool:
        self._answer()
        return super().apply(*args)

    def move(self, *args: Any) -> bool:
        self._answer()
        return super().move(*args)

    def remove_all(self, session_id: str) -> None:
        self._answer()
        super().remove_all(session_id)


class SessionStore(BaseSessionStore):
    storage_class = FailingStorage
