"""What the management commands have in common."""

import argparse
import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError

from gsession_django.core.engine import engine_module
from gsession_django.core.store import SessionStore


def positive(text: str) -> int:
    """Return the number that an argument is; one below 1 is refused."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def seconds(text: str) -> float:
    """Return the number of seconds that an argument is; none, and one without end, are refused."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return number


def session_store(name: str, setting: str, others: str) -> type[SessionStore]:
    """Return the SessionStore of an engine of this package, or one that a site has written with it.

    Args:
        name: the engine.
        setting: what names it, for the message if there is no such engine.
        others: what the message says to do with Django's.
    """
    try:
        store: Any = engine_module(name).SessionStore
    except (ImproperlyConfigured, AttributeError) as error:
        raise CommandError(f"{setting} names {name!r}, which is no session engine: {error}.") from error
    if isinstance(store, type) and issubclass(store, SessionStore) and hasattr(store, "storage_class"):
        return store
    raise CommandError(f"{setting} names {name!r}, which is no engine of gsession_django. {others}")


@contextlib.contextmanager
def interrupt() -> Iterator[threading.Event]:
    """Yield what Ctrl-C sets, so that a command ends between two batches and not in the midst of one."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda *args: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
