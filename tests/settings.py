import os
import tempfile

SECRET_KEY = "not a secret"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "gsession_django",
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
SESSION_ENGINE = "gsession_django.backends.file"
# A folder of the run's own; tests/conftest.py removes it.
SESSION_FILE_PATH = os.environ.get("GSESSION_TEST_FILE_PATH") or tempfile.mkdtemp(prefix="gsession-tests-")
USE_TZ = True
