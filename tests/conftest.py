"""What the tests may do beside what pytest-django lets them, and what they say at the end beside what pytest says."""

import math
import os
from collections import Counter
from collections.abc import Generator, Iterator

import pytest
from pytest_django import DjangoDbBlocker

from gsession_django import outages
from tests.support.programs import NotInstalled

os.umask(0o022)  # the folders that tests make for sessions are for this user alone, whatever the shell's umask is


@pytest.fixture(scope="session", autouse=True)
def _databases_are_open(django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Let tests connect to databases of their own. The one in the settings is nobody's: it has no tables."""
    with django_db_blocker.unblock():
        yield


@pytest.fixture(autouse=True)
def _causes_are_logged_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test be the first in its second that meets an outage."""
    monkeypatch.setattr(outages, "_next_cause", -math.inf)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Skip a test whose program is not installed; under ``CI=true`` it has failed."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, NotInstalled) and not os.environ.get("CI"):
        report.outcome = "skipped"
        report.longrepr = (__file__, 0, f"Skipped: {call.excinfo.value}")
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests a program was missing for, and how long the hunt and the test against a model were: a short one
    passes like a long one.
    """
    skipped: list[pytest.TestReport] = terminalreporter.getreports("skipped")
    places = [report.longrepr for report in skipped if isinstance(report.longrepr, tuple)]
    missing = Counter(reason.removeprefix("Skipped: ") for path, _, reason in places if path == __file__)
    for reason, count in missing.items():
        terminalreporter.write_line(f"not run: {count} tests ({reason})")
    steps = 0
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "hunt":
                    terminalreporter.write_line(f"{report.nodeid}: {value}")
                elif name == "model":
                    steps += value
    if steps:
        terminalreporter.write_line(f"tests/engines/test_model.py: {steps} steps")
