"""The settings of a measured site: those of the test site, with two pages of its own.

BENCHMARK_SETTINGS in the environment, a JSON object, holds the differences between the sites.
"""

import json
import os
from typing import Any

from testproject.settings import *  # noqa: F403

_given: dict[str, Any] = json.loads(os.environ["BENCHMARK_SETTINGS"])

DEBUG = False
LOGGING_CONFIG = None
ROOT_URLCONF = "benchmarks.pages"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "gsession_django"]
globals().update(_given)
