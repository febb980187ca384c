"""Settings of the site whose pages are asked for: the test site's, with two pages of its own.

BENCHMARK_SETTINGS, a JSON object in the environment, holds what differs from one site to the next.
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
