"""``manage.py purge_sessions``: removes expired sessions."""

import argparse
import contextlib
import signal
import threading
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from tqdm import tqdm

from gsession_django.engine import abilities
from gsession_django.storage import Disabled, StorageUnavailable
from gsession_django.store import PURGE_BATCH_SIZE, SessionStore


class Command(BaseCommand):
    help = "Removes expired sessions. It may run at any time, several times at once, beside live traffic."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--engine", metavar="MODULE", help="the session engine, if it is not SESSION_ENGINE")
        parser.add_argument("--dry-run", action="store_true", help="count the expired sessions and remove none")
        parser.add_argument(
            "--batch-size",
            type=_positive,
            default=PURGE_BATCH_SIZE,
            metavar="N",
            help="how many sessions are removed in one step (default: %(default)s)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        name = options["engine"] or settings.SESSION_ENGINE
        store = _session_store(name, "--engine" if options["engine"] else "SESSION_ENGINE")
        storage = store.get_storage()
        if storage.expires_itself:
            self.stdout.write(f"Nothing to do: expired sessions of {name} go by themselves.")
            return
        if "purge" not in abilities(store.storage_class):
            raise CommandError(_cannot(name, store))
        removed = 0
        with _interrupt() as interrupted, tqdm(unit=" sessions", disable=None, leave=False) as bar:
            try:
                for number in storage.purge(options["batch_size"], dry_run=options["dry_run"]):
                    removed += number
                    bar.update(number)
                    if interrupted.is_set():
                        break
            except Disabled as error:
                raise CommandError(_cannot(name, store)) from error
            except StorageUnavailable as error:
                raise CommandError(f"{_summary(name, removed, options['dry_run'])} Then: {error}") from error
        if interrupted.is_set():
            raise CommandError(f"Interrupted. {_summary(name, removed, options['dry_run'])}", returncode=130)
        self.stdout.write(_summary(name, removed, options["dry_run"]))


def _cannot(name: str, store: type[SessionStore]) -> str:
    return (
        f"The engine {name!r} cannot remove expired sessions: {store.storage_class.__qualname__} has no purge(), and "
        "its expires_itself is False."
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _session_store(name: str, setting: str) -> type[SessionStore]:
    try:
        store: Any = import_module(name).SessionStore
    except (ImportError, AttributeError, ValueError) as error:
        raise CommandError(f"{setting} names {name!r}, which is no session engine: {error}.") from error
    if isinstance(store, type) and issubclass(store, SessionStore):
        return store
    raise CommandError(
        f"{setting} names {name!r}, which is no engine of gsession_django. Use clearsessions for Django's own."
    )


def _summary(name: str, removed: int, dry_run: bool) -> str:
    sessions = "1 expired session" if removed == 1 else f"{removed} expired sessions"
    return f"{'Found' if dry_run else 'Removed'} {sessions} of {name}."


@contextlib.contextmanager
def _interrupt() -> Iterator[threading.Event]:
    """Yield what Ctrl-C sets, so that it ends the purge between two batches and not in the midst of one."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda *args: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
