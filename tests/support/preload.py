"""Imports the modules that forked processes of the tests need, once and before the fork."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

import tests.support.engines  # noqa: E402
from gsession_django.backends import database  # noqa: E402

__all__ = ["database", "tests"]
