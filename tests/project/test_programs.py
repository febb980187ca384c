"""Tests whose program is not installed are skipped, with one line about them; under ``CI=true`` they fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

MARIADB = "not run: 3 tests (MariaDB is not installed; Debian: apt-get install mariadb-server-core mariadb-client-core)"
CHROMIUM = "not run: 1 tests (Chromium is not installed; Debian: apt-get install chromium chromium-driver)"
ON_MARIADB = (
    "tests/database/test_contract.py::MariaDBTests::test_what_is_stored_is_read_back",
    "tests/database/test_servers.py::test_mariadb_is_durable_on_request",
    "tests/database/test_servers.py::test_a_killed_test_process_leaves_no_server_behind[mariadb]",
)
IN_A_BROWSER = "tests/demo/test_demo_browser.py::test_cart_survives_signing_in"
ON_NEITHER = "tests/site/test_checks.py"


def on_a_machine_without_them(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a few tests on a machine that has none of the programs."""
    code = (
        "import sys, pytest, tests.support.programs; tests.support.programs.BESIDE_PATH = ''; "
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code, *ON_MARIADB, IN_A_BROWSER, ON_NEITHER]
    variables = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST_")}
    environ = {**variables, "PYTHONPATH": os.getcwd(), "PATH": str(folder), **environ}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_they_are_skipped_and_the_last_lines_say_so(tmp_path: Path) -> None:
    done = on_a_machine_without_them(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("not run: ")] == [MARIADB, CHROMIUM]
    assert "passed, 4 skipped" in lines[-1]


def test_they_fail_in_ci(tmp_path: Path) -> None:
    done = on_a_machine_without_them(tmp_path, CI="true")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "not run" not in done.stdout
    last = done.stdout.splitlines()[-1]
    assert ("3 failed" in last, "1 error" in last) == (True, True), last
