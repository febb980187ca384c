"""The interface of an engine to move sessions from, Django's or ours."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Found:
    """A live session at its source.

    Attributes:
        data: all its pairs.
        ttl_left: the seconds that it has left, more than zero.
    """

    data: dict[str, Any]
    ttl_left: float


class Source(Protocol):
    """An engine to move sessions from.

    It knows a session by a ``ref``: the session key in an engine of Django's, the session id in one of ours. An async
    request calls the methods in a thread. In an outage they raise :class:`gsession_django.StorageUnavailable`, and
    never report a session as missing.

    Attributes:
        name: the engine's module.
    """

    name: str

    def ref_of(self, session_key: str) -> str:
        """Return the ref of the session with this key."""

    def batches(self, size: int) -> Iterator[Sequence[str]]:
        """Yield the refs of all sessions, at most `size` at a time, with expired ones that the medium still holds.

        A session that is there throughout comes at least once. One that begins or ends meanwhile may not come.
        """

    def read(self, refs: Sequence[str]) -> Mapping[str, Found | None]:
        """Return the live sessions by ref, and ``None`` for one that cannot be read (bad signature, other serializer).

        Leaves out missing and expired sessions. ``SESSION_SERIALIZER`` may be unable to take the values of a session.
        """

    def present(self, refs: Sequence[str]) -> set[str]:
        """Return those of `refs` that have a live session."""

    def remove(self, refs: Sequence[str]) -> None:
        """Remove the sessions that are there."""
