"""``manage.py migrate_sessions``: moves sessions from one engine to another."""

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseError
from tqdm import tqdm

from gsession_django.backends.memory import MemoryStorage
from gsession_django.core.engine import Engine, engine_of
from gsession_django.core.storage import StorageUnavailable
from gsession_django.core.store import SessionStore
from gsession_django.management.common import interrupt, positive, seconds, session_store
from gsession_django.moving import steps
from gsession_django.moving.choice import source_of
from gsession_django.moving.limits import Limit, limit_of
from gsession_django.moving.our_engines import OurSource
from gsession_django.moving.refused import refused_types
from gsession_django.moving.report import Report
from gsession_django.moving.source import Found, Source
from gsession_django.moving.steps import Refused

BATCH_SIZE: Final = 500
"""Sessions that are moved in one go, where nobody says otherwise."""
REFUSED: Final = 3
"""The exit status of a run that got through, and of whose sessions the target has refused some."""


class Command(BaseCommand):
    help = (
        "Moves the live sessions of one engine to another, with their keys, their data and what they have left to "
        "live, so that the visitors' cookies go on working. It never overwrites a session, and may be stopped and run "
        "again at any time."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--from", dest="source", metavar="ENGINE", required=True, help="the session engine to move them from"
        )
        parser.add_argument(
            "--to", dest="target", metavar="ENGINE", help="the one to move them to, if it is not SESSION_ENGINE"
        )
        parser.add_argument("--copy", action="store_true", help="leave them where they are, too")
        parser.add_argument("--dry-run", action="store_true", help="change nothing, and say what would be done")
        parser.add_argument(
            "--batch-size",
            type=positive,
            default=BATCH_SIZE,
            metavar="N",
            help="how many sessions are moved in one go (default: %(default)s)",
        )
        parser.add_argument(
            "--max-seconds",
            type=seconds,
            default=math.inf,
            metavar="N",
            help="begin no batch later than this; the next run goes on with the rest",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object at the end")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            migration = _Migration(options)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        report, failure, late = migration.report, None, False
        with interrupt() as interrupted:
            try:
                late = self._carry_all(migration, options, interrupted)
            except ImproperlyConfigured as error:
                raise CommandError(str(error)) from error
            except (StorageUnavailable, DatabaseError) as error:
                failure = str(error).strip().rstrip(".")
        stopped = failure is not None or interrupted.is_set()
        if options["json"]:
            why = failure if failure is not None else "Interrupted" if stopped else None
            self.stdout.write(json.dumps(report.as_json(not stopped and not late, why)))
        if stopped:
            said = f"{report.summary()} Then: {failure}." if failure is not None else f"Interrupted. {report.summary()}"
            lines = [f"{said} Run it again to go on.", *report.refusals()]
            raise CommandError("\n".join(lines), returncode=1 if failure is not None else 130)
        if not options["json"]:
            for line in (report.summary(), *report.remarks()):
                self.stdout.write(line)
            if late:
                self.stdout.write(
                    f"There may be more: it stopped after {options['max_seconds']:g} seconds, as asked for."
                )
        if refusals := report.refusals():
            raise CommandError("\n".join(refusals), returncode=REFUSED)

    def _carry_all(self, migration: "_Migration", options: dict[str, Any], interrupted: threading.Event) -> bool:
        """Move all sessions, unless somebody interrupts it; return whether its time was over before."""
        size = options["batch_size"]
        migration.prepare()
        # Whoever looks on wants to know how long it takes.
        total = _count(migration.source, size, interrupted) if sys.stderr.isatty() else None
        end = time.monotonic() + options["max_seconds"]
        with tqdm(total=total, unit=" sessions", disable=None, leave=False) as bar:
            for refs in () if interrupted.is_set() else migration.source.batches(size):
                migration.carry(refs)
                bar.update(len(refs))
                if interrupted.is_set() or time.monotonic() >= end:
                    return not interrupted.is_set()
        return False


def _count(source: Source, batch_size: int, interrupted: threading.Event) -> int:
    """Return how many sessions there are to look at."""
    found = 0
    for refs in source.batches(batch_size):
        found += len(refs)
        if interrupted.is_set():
            break
    return found


class _Migration:
    """One run of the command: from where, to where and how.

    Raises ``ImproperlyConfigured`` where sessions cannot be moved so.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.source: Source = source_of(options["source"])
        named = options["target"] is not None
        target: str = options["target"] if named else settings.SESSION_ENGINE
        store = session_store(
            target,
            "--to" if named else "SESSION_ENGINE",
            "Sessions are moved to one of those: name it with --to.",
        )
        _check_engines(self.source, target, store)
        self.dry_run: bool = options["dry_run"]
        self.report = Report(self.source.name, target, options["copy"], self.dry_run, options["json"])
        self._engine: Engine = engine_of(store)
        if lacking := {"create", "apply"} - self._engine.able:
            raise ImproperlyConfigured(
                f"No session can be moved to {self._engine.name}: its storage has no {'() and no '.join(lacking)}()."
            )
        self._id_of = _ids(self.source, self._engine)
        self._lifetimes = store()
        self._steps = steps.copy if options["copy"] else steps.move
        self._limit: Limit | None = None

    def prepare(self) -> None:
        """Ask the target what has to be known before the first batch."""
        if self.dry_run:
            self._limit = limit_of(self._engine.storage)
        else:
            self._check_places()

    def _check_places(self) -> None:
        """Refuse two engines that are one place under two names: a session would be taken for its own copy there."""
        source = self.source
        if isinstance(source, OurSource) and self._engine.run(
            steps.probe(self._engine, lambda session_id: source.present([session_id]))
        ):
            raise ImproperlyConfigured(
                f"The engines {source.name!r} and {self.report.target!r} keep their sessions in one and the same "
                "place, so that there is nothing to move."
            )

    def carry(self, refs: Sequence[str]) -> None:
        """Move the sessions of one batch, or do what was asked for instead."""
        found = self.source.read(refs)
        self.report.expired += len(refs) - len(found)
        batch: dict[str, tuple[str, Found]] = {}
        for ref, session in found.items():
            session_id = self._id_of(ref)
            if session is None:
                self.report.unreadable += 1
            elif types := refused_types(session.data):
                self.report.add_untaken(session_id, types)
            elif refused := self._foreseen(session_id, session):
                self.report.add({session_id: refused})
            else:
                batch[ref] = session_id, session
        if self.dry_run:
            outcomes = self._engine.run(steps.foresee(self._engine, batch, self._lifetimes))
        else:
            outcomes = self._engine.run(self._steps(self._engine, self.source, batch, self._lifetimes))
        self.report.add({batch[ref][0]: outcome for ref, outcome in outcomes.items()})

    def _foreseen(self, session_id: str, session: Found) -> Refused | None:
        """Return what a dry run knows without trying it."""
        if self._limit is not None:
            try:
                self._limit(session_id, session.data)
            except (TypeError, ValueError) as error:
                return Refused(steps.reason_of(error))
        return None


def _check_engines(source: Source, target: str, store: type[SessionStore]) -> None:
    if source.name == target:
        raise ImproperlyConfigured(
            f"Sessions are to be moved from {target!r} to the same engine. Name another one with --from or --to."
        )
    if issubclass(store.storage_class, MemoryStorage):
        raise ImproperlyConfigured(
            f"The engine {target!r} keeps sessions in the memory of a process, where no other can reach them, so that "
            "they cannot be moved there."
        )


def _ids(source: Source, target: Engine) -> Callable[[str], str]:
    """Return what makes the id at the target of what a session is known by at the source."""
    if not isinstance(source, OurSource) or not source.engine.hash_ids:
        return target.id_of
    if target.hash_ids:
        return str
    raise ImproperlyConfigured(
        f"{source.engine.name} knows sessions by hashed session keys, and {target.name} by the session keys themselves "
        "(hash_ids is off), which nobody can tell from the hashes. Leave hash_ids on at the target."
    )
