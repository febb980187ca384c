"""Settings of a site with django-debug-toolbar. ``toolbar_pages.py`` has its pages."""

import os

SECRET_KEY = "not a secret"
DEBUG = True
ALLOWED_HOSTS = INTERNAL_IPS = ["127.0.0.1"]
INSTALLED_APPS = ["django.contrib.staticfiles", "debug_toolbar", "gsession_django"]
MIDDLEWARE = [
    "debug_toolbar.middleware.DebugToolbarMiddleware",
    "gsession_django.middleware.SessionMiddleware",
]
DEBUG_TOOLBAR_PANELS = ["gsession_django.panels.SessionStoragePanel", "debug_toolbar.panels.timer.TimerPanel"]
ROOT_URLCONF = "tests.demo.toolbar_pages"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
STATIC_URL = "static/"
SESSION_ENGINE = os.environ["GSESSION_DEMO_ENGINE"]
SESSION_FILE_PATH = os.environ["GSESSION_DEMO_FILE_PATH"]
