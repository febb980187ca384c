"""``manage.py migrate_sessions``: moves sessions from one engine to another."""

import json
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
from gsession_django.management.common import MORE_LEFT, add_limits, count, interrupt, session_store
from gsession_django.moving import steps
from gsession_django.moving.choice import check_places, source_of
from gsession_django.moving.limits import Limit, limit_of
from gsession_django.moving.our_engines import OurSource
from gsession_django.moving.refused import refused_types
from gsession_django.moving.report import Report
from gsession_django.moving.source import Found, Source
from gsession_django.moving.steps import Refused

BATCH_SIZE: Final = 500
"""How many sessions the command moves in one batch by default."""
REFUSED: Final = 3
"""The exit status of a run that got through, if the target has refused sessions."""


class Command(BaseCommand):
    help = (
        "Moves live sessions from one engine to another. They keep their keys, data and TTLs, so the visitors' cookies "
        "go on working. It never overwrites a session. You may stop it and run it again at any time."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--from", dest="source", metavar="ENGINE", required=True, help="the engine that has the sessions"
        )
        parser.add_argument(
            "--to", dest="target", metavar="ENGINE", help="the engine that gets them, if it is not SESSION_ENGINE"
        )
        parser.add_argument("--copy", action="store_true", help="also leave them in the old engine")
        parser.add_argument("--dry-run", action="store_true", help="change nothing, and say what it would do")
        add_limits(parser, "moves", BATCH_SIZE)
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
                self.stdout.write(MORE_LEFT.format(**options))
        if refusals := report.refusals():
            raise CommandError("\n".join(refusals), returncode=REFUSED)

    def _carry_all(self, migration: "_Migration", options: dict[str, Any], interrupted: threading.Event) -> bool:
        """Move all sessions until somebody interrupts it. Return whether its time ran out first."""
        size = options["batch_size"]
        migration.prepare()
        total = count(lambda: map(len, migration.source.batches(size)), interrupted)
        end = time.monotonic() + options["max_seconds"]
        with tqdm(total=total, unit=" sessions", disable=None, leave=False) as bar:
            for refs in () if interrupted.is_set() else migration.source.batches(size):
                migration.carry(refs)
                bar.update(len(refs))
                if interrupted.is_set() or time.monotonic() >= end:
                    return not interrupted.is_set()
        return False


class _Migration:
    """One run of the command. Raises ``ImproperlyConfigured`` if sessions cannot be moved this way."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.source: Source = source_of(options["source"])
        named = options["target"] is not None
        target: str = options["target"] if named else settings.SESSION_ENGINE
        store = session_store(target, "--to" if named else "SESSION_ENGINE", "Name one of those with --to.")
        if issubclass(store.storage_class, MemoryStorage):
            raise ImproperlyConfigured(
                f"Sessions cannot be moved to {target!r}: it keeps them in the memory of a process, and they would end "
                "with it."
            )
        self.dry_run: bool = options["dry_run"]
        self.report = Report(self.source.name, target, options["copy"], self.dry_run, options["json"])
        self._engine: Engine = engine_of(store)
        if lacking := {"create", "apply"} - self._engine.able:
            raise ImproperlyConfigured(
                f"Sessions cannot be moved to {self._engine.name}: its storage has no {'() and no '.join(lacking)}()."
            )
        self._id_of = _ids(self.source, self._engine)
        self._store, self._lifetimes = store, store()
        self._steps = steps.copy if options["copy"] else steps.move
        self._limit: Limit | None = None

    def prepare(self) -> None:
        """Ask the target what a run has to know before its first batch."""
        check_places("--from", self.source, self.report.target, self._store, probing=not self.dry_run)
        if self.dry_run:
            self._limit = limit_of(self._engine.storage)

    def carry(self, refs: Sequence[str]) -> None:
        """Move the sessions of one batch, or copy them, or say what a run would do with them."""
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
        """Return why the target would refuse a session, as far as a dry run knows."""
        if self._limit is not None:
            try:
                self._limit(session_id, session.data)
            except (TypeError, ValueError) as error:
                return Refused(steps.reason_of(error))
        return None


def _ids(source: Source, target: Engine) -> Callable[[str], str]:
    """Return a function that makes a session's id at the target of its ref at the source."""
    if not isinstance(source, OurSource) or not source.engine.hash_ids:
        return target.id_of
    if target.hash_ids:
        return str
    raise ImproperlyConfigured(
        f"{source.engine.name} knows sessions by hashed session keys, and {target.name} by the session keys themselves "
        "(hash_ids is off). Nobody can tell a session key from its hash: leave hash_ids on at the target."
    )
