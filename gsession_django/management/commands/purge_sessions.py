"""``manage.py purge_sessions``: removes expired sessions."""

import time
from typing import Any, Final

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from tqdm import tqdm

from gsession_django.core.abilities import abilities
from gsession_django.core.engine import engine_of
from gsession_django.core.storage import Disabled, StorageUnavailable
from gsession_django.core.store import SessionStore
from gsession_django.core.store_base import PURGE_BATCH_SIZE
from gsession_django.management.common import MORE_LEFT, add_limits, count, interrupt, session_store

_OTHERS: Final = "Use clearsessions for Django's own."


class Command(BaseCommand):
    help = "Removes expired sessions. You may run it at any time, beside live traffic, and several times at once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--engine", metavar="MODULE", help="the session engine, if it is not SESSION_ENGINE")
        parser.add_argument("--dry-run", action="store_true", help="count the expired sessions and remove none")
        add_limits(parser, "removes", PURGE_BATCH_SIZE)

    def handle(self, *args: Any, **options: Any) -> None:
        named = options["engine"] is not None
        name = options["engine"] if named else settings.SESSION_ENGINE
        store = session_store(name, "--engine" if named else "SESSION_ENGINE", _OTHERS)
        engine = engine_of(store)
        if engine.storage.expires_itself:
            self.stdout.write(f"Nothing to do: sessions of {name} expire by themselves.")
            return
        if "purge" not in abilities(store.storage_class):
            raise CommandError(_cannot(name, store))
        removed, late = 0, False
        size, dry_run = options["batch_size"], options["dry_run"]
        with interrupt() as interrupted:
            try:
                total = None if dry_run else count(lambda: engine.purge(size, dry_run=True), interrupted)
                steps = () if interrupted.is_set() else engine.purge(size, dry_run=dry_run)
                end = time.monotonic() + options["max_seconds"]
                with tqdm(total=total, unit=" sessions", disable=None, leave=False) as bar:
                    for number in steps:
                        removed += number
                        bar.update(number)
                        if interrupted.is_set() or (late := time.monotonic() >= end):
                            break
            except Disabled as error:
                raise CommandError(_cannot(name, store)) from error
            except StorageUnavailable as error:
                raise CommandError(f"{_summary(name, removed, dry_run)} Then: {error}") from error
        if interrupted.is_set():
            raise CommandError(f"Interrupted. {_summary(name, removed, dry_run)}", returncode=130)
        self.stdout.write(_summary(name, removed, dry_run))
        if late:
            self.stdout.write(MORE_LEFT.format(**options))


def _cannot(name: str, store: type[SessionStore]) -> str:
    return (
        f"The engine {name!r} cannot remove expired sessions: {store.storage_class.__qualname__} has no purge(), and "
        "its expires_itself is False."
    )


def _summary(name: str, removed: int, dry_run: bool) -> str:
    sessions = "1 expired session" if removed == 1 else f"{removed} expired sessions"
    return f"{'Found' if dry_run else 'Removed'} {sessions} of {name}."
