"""The Django settings that all engines share in the benchmarks. ``engines.py`` has those of a single engine."""

import atexit
import shutil
import tempfile

_FOLDER = tempfile.mkdtemp(prefix="benchmark-database-")
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)

SECRET_KEY = "not a secret"
INSTALLED_APPS = ["django.contrib.sessions", "gsession_django"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": f"{_FOLDER}/db.sqlite3",
        # The settings that the documentation advises: without them each save would wait for the disk.
        "OPTIONS": {"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"},
    }
}
BENCHMARK_DATABASE: str | None = None
DATABASE_ROUTERS = ["benchmarks.database_engines.Router"]
USE_TZ = True
