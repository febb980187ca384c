"""What the tests say at the end beside what pytest says."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how long the hunt was, as a short one passes like the full one."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "hunt":
                    terminalreporter.write_line(f"{report.nodeid}: {value}")
