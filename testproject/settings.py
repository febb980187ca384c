"""Settings of the test site. The environment may change some of them:

GSESSION_DEMO_ENGINE      the session engine
GSESSION_DEMO_DB          the SQLite database with the users; the site's other files are beside it
GSESSION_DEMO_FILE_PATH   the folder of the file engine
GSESSION_DEMO_DEBUG       0 turns DEBUG off
GSESSION_DEMO_SECRET_KEY  the secret key
"""

import os
from pathlib import Path
from typing import Any

DATABASE = Path(os.environ.get("GSESSION_DEMO_DB") or Path(__file__).with_name("demo.sqlite3")).absolute()

SECRET_KEY = os.environ.get("GSESSION_DEMO_SECRET_KEY", "demo-key-that-protects-nothing")
DEBUG = os.environ.get("GSESSION_DEMO_DEBUG", "1") != "0"
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]

SESSION_ENGINE = os.environ.get("GSESSION_DEMO_ENGINE", "gsession_django.backends.file")
SESSION_FILE_PATH = os.environ.get("GSESSION_DEMO_FILE_PATH")
GSESSION: dict[str, Any] = {
    "ENGINES": {
        "testproject.sessions": {"path": str(DATABASE.with_suffix(".sessions.sqlite3"))},
    },
    "RECORD_CLIENT": True,
}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "testproject.demo",  # before gsession_django, whose base template it extends
    "gsession_django",
]
if SESSION_ENGINE.startswith("django.contrib.sessions."):
    INSTALLED_APPS.append("django.contrib.sessions")

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "gsession_django.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "testproject.urls"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "testproject.demo.context_processors.site",
            ],
        },
    },
]

DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": DATABASE}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Messages in the session would make every cart change a change of a top-level key too. The site
# would then no longer show that the engine saves a value changed in place.
MESSAGE_STORAGE = "django.contrib.messages.storage.cookie.CookieStorage"

LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "home"

LANGUAGES = [("en", "English"), ("zh-hans", "简体中文")]  # of "Your sessions" and the admin
STATIC_URL = "static/"
TIME_ZONE = "UTC"
USE_TZ = True

DEMO_USER = "demo"
DEMO_PASSWORD = "demo"
DEMO_COMPARISON_PATH = DATABASE.with_suffix(".comparison")
