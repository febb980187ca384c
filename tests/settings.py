import atexit
import os
import shutil
import tempfile

SECRET_KEY = "not a secret"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "gsession_django",
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
SESSION_ENGINE = "gsession_django.backends.file"
# One folder for the run and the processes that it starts; the one that made it removes it.
if "GSESSION_TEST_FILE_PATH" not in os.environ:
    os.environ["GSESSION_TEST_FILE_PATH"] = tempfile.mkdtemp(prefix="gsession-tests-")
    atexit.register(shutil.rmtree, os.environ["GSESSION_TEST_FILE_PATH"], ignore_errors=True)
SESSION_FILE_PATH = os.environ["GSESSION_TEST_FILE_PATH"]
USE_TZ = True
