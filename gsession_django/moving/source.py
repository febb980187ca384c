"""What sessions are moved from: any engine that keeps them on a server, Django's or ours."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Found:
    """A live session at its source.

    Attributes:
        data: all its pairs.
        ttl_left: seconds that it has left to live, more than zero.
    """

    data: dict[str, Any]
    ttl_left: float


class Source(Protocol):
    """An engine to move sessions from. It knows a session by a ``ref``: one of Django's by the session key, one of ours
    by the session id. All methods are plain calls; under async they run in a thread.

    Each raises :class:`gsession_django.StorageUnavailable` if the engine cannot answer. It never answers then as if a
    session were not there.

    Attributes:
        name: the engine's module.
    """

    name: str

    def ref_of(self, session_key: str) -> str:
        """Return what the engine knows the session of this key by."""

    def batches(self, size: int) -> Iterator[Sequence[str]]:
        """Yield the refs of all sessions, `size` at most at a time; expired ones too if the medium still holds them.

        One that is there throughout is yielded at least once, one that comes or goes meanwhile may be or not.
        """

    def read(self, refs: Sequence[str]) -> Mapping[str, Found | None]:
        """Return the sessions that live, by ref; ``None`` for one that is there and cannot be read (a broken signature,
        a foreign serializer). One that is not there, or has expired, is left out.

        What is in one may be more than ``SESSION_SERIALIZER`` can take.
        """

    def present(self, refs: Sequence[str]) -> set[str]:
        """Return those of `refs` whose session is still there, and has not expired. No session is read."""

    def remove(self, refs: Sequence[str]) -> None:
        """Remove the sessions; nothing happens where there is none."""
