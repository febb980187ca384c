"""What the tests may do beside what pytest-django lets them, and what they say at the end beside what pytest says."""

from collections.abc import Iterator

import pytest
from pytest_django import DjangoDbBlocker


@pytest.fixture(scope="session", autouse=True)
def _databases_are_open(django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Let tests connect to databases of their own. The one in the settings is nobody's: it has no tables."""
    with django_db_blocker.unblock():
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how long the hunt was, as a short one passes like the full one."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "hunt":
                    terminalreporter.write_line(f"{report.nodeid}: {value}")
