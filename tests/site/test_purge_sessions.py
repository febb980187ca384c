"""manage.py purge_sessions removes expired sessions, and says what it did."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from gsession_django import Disabled, StorageUnavailable
from gsession_django.backends import file
from tests.support import storages
from tests.support.terminals import run_on_terminal

FILE = "gsession_django.backends.file"


@pytest.fixture
def folder(settings: Settings, tmp_path: Path) -> Path:
    settings.SESSION_FILE_PATH = tmp_path
    settings.SESSION_ENGINE = FILE
    return tmp_path


def fill(live: int, expired: int) -> None:
    for number in range(live + expired):
        store = file.SessionStore()
        store.set_expiry(60 if number < live else -1)
        store.save()


def files(folder: Path) -> int:
    return sum(1 for path in folder.glob("*/*") if not path.name.startswith("."))


def purge(**options: Any) -> str:
    output = StringIO()
    call_command("purge_sessions", stdout=output, **options)
    return output.getvalue()


def test_it_removes_the_expired_sessions_and_says_how_many(folder: Path) -> None:
    fill(live=3, expired=4)
    assert purge() == f"Removed 4 expired sessions of {FILE}.\n"
    assert files(folder) == 3
    assert purge() == f"Removed 0 expired sessions of {FILE}.\n"


def test_one_is_one(folder: Path) -> None:
    fill(live=0, expired=1)
    assert purge() == f"Removed 1 expired session of {FILE}.\n"


def test_a_dry_run_removes_nothing(folder: Path) -> None:
    fill(live=1, expired=2)
    assert purge(dry_run=True) == f"Found 2 expired sessions of {FILE}.\n"
    assert files(folder) == 3


def test_a_step_is_a_batch(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    settings.SESSION_ENGINE = "tests.support.engine_that_purges"
    asked: list[tuple[int, bool]] = []

    def record(self: Any, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        asked.append((batch_size, dry_run))
        yield from (1, 0, 2)

    monkeypatch.setattr(storages.CompleteStorage, "purge", record)
    assert purge(batch_size=7) == "Removed 3 expired sessions of tests.support.engine_that_purges.\n"
    assert asked == [(7, False)]


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_a_batch_has_at_least_one_session(folder: Path, number: str) -> None:
    with pytest.raises(CommandError, match="--batch-size"):
        call_command("purge_sessions", f"--batch-size={number}")


def test_an_engine_may_be_named(folder: Path, settings: Settings) -> None:
    fill(live=1, expired=2)
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    assert purge(engine=FILE) == f"Removed 2 expired sessions of {FILE}.\n"


def test_a_medium_that_expires_by_itself_leaves_nothing_to_do(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(file.FileStorage, "expires_itself", True)
    assert purge() == f"Nothing to do: sessions of {FILE} expire by themselves.\n"


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ("no.such.engine", "--engine names 'no.such.engine', which is not a session engine: No module named"),
        ("gsession_django.core.conf", "--engine names 'gsession_django.core.conf', which is not a session engine"),
        ("gsession_django", "--engine names 'gsession_django', which is not an engine of gsession_django"),
        ("django.contrib.sessions.backends.file", "which is not an engine of gsession_django. Use clearsessions"),
        ("tests.support.engine_that_cannot_purge", r"cannot remove expired sessions: WholeMapStorage has no purge\(\)"),
    ],
)
def test_an_engine_that_cannot_be_purged_is_an_error(engine: str, says: str) -> None:
    with pytest.raises(CommandError, match=says):
        purge(engine=engine)


def test_a_session_engine_that_cannot_be_imported_is_an_error(settings: Settings) -> None:
    settings.SESSION_ENGINE = "no.such"
    with pytest.raises(CommandError, match=r"SESSION_ENGINE names 'no\.such'"):
        purge()


def test_an_outage_says_what_was_done_before(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def fail(self: Any, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        yield 5
        raise StorageUnavailable("The disk is gone.")

    monkeypatch.setattr(file.FileStorage, "purge", fail)
    with pytest.raises(CommandError, match=r"Removed 5 expired sessions of .*\. Then: The disk is gone\."):
        purge()


def test_an_engine_that_finds_out_that_it_cannot_is_an_error(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def disabled(self: Any, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        raise Disabled
        yield 0

    monkeypatch.setattr(file.FileStorage, "purge", disabled)
    with pytest.raises(CommandError, match=r"cannot remove expired sessions: FileStorage has no purge\(\)"):
        purge()


def test_ctrl_c_stops_between_two_batches_and_says_what_was_done(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    steps: list[int] = []

    def interrupted(self: Any, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        for number in range(3):
            if number == 1:
                os.kill(os.getpid(), signal.SIGINT)
            steps.append(number)
            yield 10

    monkeypatch.setattr(file.FileStorage, "purge", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(CommandError, match=r"Interrupted\. Removed 20 expired sessions of") as raised:
        purge()
    assert raised.value.returncode == 130
    assert steps == [0, 1]
    assert signal.getsignal(signal.SIGINT) is before


def test_it_stops_between_two_batches_when_its_time_is_over_and_the_next_run_goes_on(folder: Path) -> None:
    fill(live=0, expired=30)
    stopped = purge(max_seconds=1e-9)
    assert stopped.endswith("There may be more: it stopped after 1e-09 seconds, as asked for.\n")
    assert 0 < files(folder) < 30
    assert "stopped" not in purge(max_seconds=600)
    assert files(folder) == 0


@pytest.mark.parametrize("number", ["0", "-1", "nan", "inf", "x"])
def test_the_time_it_may_take_is_more_than_none(folder: Path, number: str) -> None:
    with pytest.raises(CommandError, match="--max-seconds"):
        call_command("purge_sessions", f"--max-seconds={number}")


def test_it_runs_in_a_thread_too(folder: Path) -> None:
    fill(live=0, expired=1)
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(purge()))
    thread.start()
    thread.join()
    assert said == [f"Removed 1 expired session of {FILE}.\n"]


def command(folder: Path) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "GSESSION_TEST_FILE_PATH": str(folder)}
    return [sys.executable, "-m", "django", "purge_sessions"], environment


def test_without_a_terminal_it_prints_one_line(folder: Path) -> None:
    fill(live=0, expired=2)
    args, environment = command(folder)
    done = subprocess.run(args, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"Removed 2 expired sessions of {FILE}.\n", "")


def test_on_a_terminal_it_shows_a_progress_bar(folder: Path) -> None:
    fill(live=0, expired=2)
    args, environment = command(folder)
    said, shown = run_on_terminal(args, environment)
    assert said == f"Removed 2 expired sessions of {FILE}.\n"
    assert b" sessions/s]" in shown
    assert b" 0/2 " in shown, "the command has counted the sessions, so the bar tells how long it takes"
