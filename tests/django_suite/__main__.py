"""Runs Django's own tests with our session engines: `python -m tests.django_suite [ENGINE ...]`.

The tests come from the source distribution of the Django that is installed, which the package
index serves; nothing of them is kept here. Django's `runtests.py` runs them, once an engine.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import django

from tests.redis_servers import RedisServer

from .selection import LABELS

ENGINES = (
    "gsession_django.backends.file",
    "gsession_django.backends.memory",
    "gsession_django.backends.redis",
    "gsession_django.backends.redis_hash",
)


def download_tests(folder: Path) -> Path:
    """The `tests` folder of the installed Django's source distribution."""
    requirement = f"django=={django.get_version()}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", "django", "--dest", str(folder), requirement]
    # pip runs Django's build script, whose warnings are not ours.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    subprocess.run(command, env=environ, check=True)
    [archive] = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder, filter="data")
    [tests] = folder.glob("*/tests")
    return tests


def passes(engine: str, tests: Path, redis: str) -> bool:
    print(f"\n=== Django {django.get_version()}, its own tests on {engine}", flush=True)
    command = [sys.executable, "runtests.py", "--settings=tests.django_suite.settings"]
    # One process, or the memory engine would be tested in several halves.
    command += ["--parallel=1", *LABELS]
    environ = {**os.environ, "DJANGO_SUITE_ENGINE": engine, "DJANGO_SUITE_REDIS": redis, "PYTHONPATH": str(tests)}
    return subprocess.run(command, cwd=tests, env=environ, check=False).returncode == 0


def main() -> None:
    engines = sys.argv[1:] or ENGINES
    with tempfile.TemporaryDirectory() as folder, RedisServer() as redis:
        tests = download_tests(Path(folder))
        failed = [engine for engine in engines if not passes(engine, tests, redis.url())]
    print(f"\n{len(engines) - len(failed)} engines passed, {len(failed)} failed", *failed)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
