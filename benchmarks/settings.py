"""Django's settings for the benchmarks: what every engine shares. What one engine needs, ``engines.py`` declares."""

SECRET_KEY = "not a secret"
INSTALLED_APPS = ["gsession_django"]
USE_TZ = True
