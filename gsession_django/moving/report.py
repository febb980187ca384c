"""Says what a run of ``manage.py migrate_sessions`` has done, to people and to programs."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from django.conf import settings

from gsession_django.moving.refused import cure
from gsession_django.moving.steps import Outcome, Refused

# How many refused sessions, and how many reasons, people are shown.
_SHOWN: Final = 10


class Report:
    """Counts what a run has done so far.

    Args:
        source, target: the engines.
        copies: whether the run leaves the sessions at the source, too.
        dry_run: whether the run changes nothing; then all numbers say what it would do.
        lists_all: whether to keep all refused sessions, and not only those that people are shown.

    Attributes:
        expired: sessions that the source listed, and no longer had when the run read them.
        unreadable: sessions that cannot be read at the source.
        refused: sessions that the target or ``SESSION_SERIALIZER`` does not take.
    """

    def __init__(self, source: str, target: str, copies: bool, dry_run: bool, lists_all: bool) -> None:
        self.source = source
        self.target = target
        self.expired = self.unreadable = self.refused = 0
        self._copies = copies
        self._dry_run = dry_run
        self._lists_all = lists_all
        self._start = time.monotonic()
        self._outcomes: Counter[Outcome] = Counter()
        self._list: list[tuple[str, str]] = []
        self._reasons: Counter[str] = Counter()
        self._untaken = 0
        self._types: set[str] = set()

    def add(self, outcomes: Mapping[str, Outcome | Refused]) -> None:
        """Count what became of sessions, by their ids at the target."""
        for session_id, outcome in outcomes.items():
            if isinstance(outcome, Refused):
                self._reasons[outcome.reason] += 1
                self._refuse(session_id, outcome.reason)
            else:
                self._outcomes[outcome] += 1

    def add_untaken(self, session_id: str, types: Iterable[str]) -> None:
        """Count a session that ``SESSION_SERIALIZER`` cannot take, because of these types."""
        self._untaken += 1
        self._types.update(types)
        self._refuse(session_id, f"SESSION_SERIALIZER cannot take {', '.join(types)}")

    def _refuse(self, session_id: str, reason: str) -> None:
        self.refused += 1
        if self._lists_all or len(self._list) < _SHOWN:
            self._list.append((session_id, reason))

    def summary(self) -> str:
        """Return one line with the number of each kind."""
        verb = {
            (False, False): "Moved",
            (False, True): "Copied",
            (True, False): "Would move",
            (True, True): "Would copy",
        }[self._dry_run, self._copies]
        ended = self._outcomes[Outcome.ENDED]
        return (
            f"{verb} {_sessions(self._outcomes[Outcome.MOVED])} from {self.source} to {self.target}; skipped "
            f"{self._outcomes[Outcome.SKIPPED]}, expired {self.expired}, unreadable {self.unreadable}"
            f"{f', refused {self.refused}' if self.refused else ''}{f', ended meanwhile {ended}' if ended else ''}."
        )

    def remarks(self) -> list[str]:
        """Return a line for each kind of session that was left, except refused ones."""
        remarks = []
        if self._outcomes[Outcome.SKIPPED]:
            remarks.append(
                f"Skipped: {self.target} also has these sessions, with other data. Both were left as they are."
            )
        if self.unreadable:
            remarks.append(
                "Unreadable: these were left as they are. Another SECRET_KEY may have signed them, or another "
                "SESSION_SERIALIZER written them."
            )
        return remarks

    def refusals(self) -> list[str]:
        """Return lines that say which sessions were refused, why, and what to do."""
        if not self.refused:
            return []
        lines = []
        if self._untaken:
            types = sorted(self._types)
            lines.append(
                f"{'1 session holds' if self._untaken == 1 else f'{self._untaken} sessions hold'} values that "
                f"SESSION_SERIALIZER = {settings.SESSION_SERIALIZER!r} cannot take ({', '.join(types)}). {cure(types)} "
                f"They were left at {self.source}: then run the command again."
            )
        verb = "would refuse" if self._dry_run else "refused"
        for reason, number in self._reasons.most_common(_SHOWN):
            lines.append(f"{self.target} {verb} {_sessions(number)}, left at {self.source}: {reason}.")
        lines.append(f"By their ids at {self.target}:")
        lines += [f"{session_id}: {reason}" for session_id, reason in self._list[:_SHOWN]]
        if self.refused > _SHOWN:
            lines.append(f"and {self.refused - _SHOWN} more, which --json lists.")
        return lines

    def as_json(self, complete: bool, error: str | None) -> dict[str, Any]:
        """Return the object that ``--json`` prints. ``docs/migrate-sessions.md`` explains its names.

        Args:
            complete: whether the run got through all sessions.
            error: what ended it early.
        """
        moved, skipped = self._outcomes[Outcome.MOVED], self._outcomes[Outcome.SKIPPED]
        return {
            "source": self.source,
            "target": self.target,
            "copy": self._copies,
            "dry_run": self._dry_run,
            "moved": 0 if self._copies else moved,
            "copied": moved if self._copies else 0,
            "left": skipped + self.unreadable + self.refused,
            "skipped": skipped,
            "unreadable": self.unreadable,
            "refused": self.refused,
            "expired": self.expired,
            "ended": self._outcomes[Outcome.ENDED],
            "refusals": [{"id": session_id, "reason": reason} for session_id, reason in self._list],
            "complete": complete,
            "error": error,
            "seconds": round(time.monotonic() - self._start, 3),
        }


def _sessions(number: int) -> str:
    return "1 session" if number == 1 else f"{number} sessions"
