import os

from test_sqlite import *  # noqa: F403  Django's own: an SQLite database in memory

SESSION_ENGINE = os.environ["DJANGO_SUITE_ENGINE"]
TEST_RUNNER = "tests.django_suite.runner.Runner"
SESSION_CACHE_ALIAS = "sessions"
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "sessions": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": os.environ["DJANGO_SUITE_REDIS"]},
}
