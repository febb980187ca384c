"""The programs of database servers that the tests need and cannot install: where they are, or what to install.

``python -m tests.database_programs`` says what is missing, with nothing but Python; ``make test`` begins with it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

DEBIAN = Path("/usr/lib/postgresql")
BESIDE_PATH = os.pathsep.join(["/usr/local/sbin", "/usr/sbin"])  # where no ordinary user looks


def postgresql_programs() -> Path:
    """Return the folder of PostgreSQL's programs: the one that ``pg_config`` names, else the newest of Debian's."""
    folders = sorted(DEBIAN.glob("*/bin"), key=lambda folder: float(folder.parent.name))
    if config := shutil.which("pg_config"):
        named = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip()
        folders.append(Path(named))
    for folder in reversed(folders):
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return folder
    raise RuntimeError("The tests need PostgreSQL's server. Install it: apt-get install postgresql")


def mariadb_programs() -> tuple[str, str]:
    """Return the paths of MariaDB's server, and of what makes its first tables."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), BESIDE_PATH])
    server = shutil.which("mariadbd", path=path) or shutil.which("mysqld", path=path)
    installer = shutil.which("mariadb-install-db", path=path)
    if server is None or installer is None:
        raise RuntimeError("The tests need MariaDB's server. Install it: apt-get install mariadb-server-core")
    return server, installer


def main() -> int:
    missing = []
    for find in (postgresql_programs, mariadb_programs):
        try:
            find()
        except RuntimeError as error:
            missing.append(str(error))
    print("".join(f"{line}\n" for line in missing), end="", file=sys.stderr)
    return len(missing)


if __name__ == "__main__":
    sys.exit(main())
