"""What the management commands have in common."""

import argparse
import contextlib
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError, CommandParser

from gsession_django.core.engine import engine_module
from gsession_django.core.store import SessionStore, store_in

MORE_LEFT: Final = "There may be more: it stopped after {max_seconds:g} seconds, as asked for."
"""What a command says if ``--max-seconds`` has ended it."""


def add_limits(parser: CommandParser, verb: str, batch_size: int) -> None:
    """Add ``--batch-size`` and ``--max-seconds``.

    Args:
        parser: the command's.
        verb: what the command does with a batch, such as ``"moves"``.
        batch_size: the default.
    """
    parser.add_argument(
        "--batch-size",
        type=_positive,
        default=batch_size,
        metavar="N",
        help=f"how many sessions it {verb} in one batch (default: %(default)s)",
    )
    parser.add_argument(
        "--max-seconds",
        type=_seconds,
        default=math.inf,
        metavar="N",
        help="begin no batch after N seconds; the next run goes on with the rest",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def session_store(name: str, setting: str, others: str) -> type[SessionStore]:
    """Return the SessionStore of an engine of this package, or of one that a site has written with it.

    Args:
        name: the engine.
        setting: the setting or option that names it, for the message.
        others: what to do with other engines, for the message.
    """
    try:
        module = engine_module(name)
        _ = module.SessionStore
    except (ImproperlyConfigured, AttributeError) as error:
        raise CommandError(f"{setting} names {name!r}, which is not a session engine: {error}.") from error
    if (store := store_in(module)) is not None:
        return store
    raise CommandError(f"{setting} names {name!r}, which is not an engine of gsession_django. {others}")


@contextlib.contextmanager
def interrupt() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets, so a command can end between two batches."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # no signal arrives there
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda *args: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def count(sizes: Callable[[], Iterable[int]], interrupted: threading.Event) -> int | None:
    """Return the sum of the sizes of all batches, for a progress bar; ``None`` if there is no terminal to show one."""
    if not sys.stderr.isatty():
        return None
    found = 0
    for size in sizes():
        found += size
        if interrupted.is_set():
            break
    return found
