"""What the processes of the tests need that are forked: imported once, before they are."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

import tests.support.engines  # noqa: E402
from gsession_django.backends import database  # noqa: E402

__all__ = ["database", "tests"]
