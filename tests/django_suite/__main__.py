"""Runs Django's own tests with our session engines: `python -m tests.django_suite [ENGINE ...]`.

The tests come from the source distribution of the installed Django, which pip downloads. This
repository has no copy. Django's `runtests.py` runs them, once for each engine.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import django

from tests.support.database_servers import SERVERS
from tests.support.programs import NotInstalled
from tests.support.redis_servers import RedisServer

from .selection import LABELS

ENGINES = (
    "gsession_django.backends.file",
    "gsession_django.backends.memory",
    "gsession_django.backends.redis",
    "gsession_django.backends.redis_hash",
    "gsession_django.backends.database",
)


def download_tests(folder: Path) -> Path:
    """Download the source distribution of the installed Django, and return its folder `tests`."""
    requirement = f"django=={django.get_version()}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", "django", "--dest", str(folder), requirement]
    # pip runs Django's build script, and its warnings must not be errors.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    subprocess.run(command, env=environ, check=True)
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 has no filters
        opened.extractall(folder)
    [tests] = folder.glob("*/tests")
    return tests


def passes(engine: str, tests: Path, redis: str, database: dict[str, Any]) -> bool:
    kind = f", in {database['ENGINE']}" if database else ""
    print(f"\n=== Django {django.get_version()}, its own tests on {engine}{kind}", flush=True)
    command = [sys.executable, "runtests.py", "--settings=tests.django_suite.settings"]
    # One process: several would each have only a part of the memory engine's sessions.
    command += ["--parallel=1", *LABELS]
    values = {"ENGINE": engine, "REDIS": redis, "DATABASE": json.dumps(database)}
    environ = {**os.environ, **{f"DJANGO_SUITE_{name}": value for name, value in values.items()}}
    return subprocess.run(command, cwd=tests, env={**environ, "PYTHONPATH": str(tests)}, check=False).returncode == 0


def main() -> None:
    engines = sys.argv[1:] or ENGINES
    missing = []
    with ExitStack() as stack:
        tests = download_tests(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        redis = stack.enter_context(RedisServer()).url()
        runs: list[tuple[str, dict[str, Any]]] = [(engine, {}) for engine in engines]
        if (engine := "gsession_django.backends.database") in engines:
            for kind, server in SERVERS.items():
                try:
                    runs.append((engine, stack.enter_context(server()).entry()))
                except NotInstalled as error:
                    if os.environ.get("CI"):
                        raise
                    missing.append(f"not run: the database engine on {kind} ({error})")
        failed = [
            f"{engine} {database.get('ENGINE', '')}"
            for engine, database in runs
            if not passes(engine, tests, redis, database)
        ]
    print(f"\n{len(runs) - len(failed)} runs passed, {len(failed)} failed", *failed)
    for line in missing:
        print(line)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
