import json
import os

from test_sqlite import *  # noqa: F403  Django's own: an SQLite database in memory

import tests.support.database_servers  # noqa: F401  what Django speaks to MariaDB with

if entry := json.loads(os.environ["DJANGO_SUITE_DATABASE"]):
    DATABASES = {"default": {**entry, "NAME": "suite"}, "other": {**entry, "NAME": "suite_other"}}
SESSION_ENGINE = os.environ["DJANGO_SUITE_ENGINE"]
TEST_RUNNER = "tests.django_suite.runner.Runner"
SESSION_CACHE_ALIAS = "sessions"
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "sessions": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": os.environ["DJANGO_SUITE_REDIS"]},
}
