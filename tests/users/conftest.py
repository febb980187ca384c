from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections
from django.test import override_settings

from gsession_django import SessionStore
from tests.support.engines import ENGINES, empty, engine
from tests.users.site import SETTINGS

INDEXED = [*ENGINES, "redis", "redis_hash"]
"""The engines that list the sessions of a user."""


@pytest.fixture(params=INDEXED)
def store_class(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[SessionStore]]:
    with engine(request.param, tmp_path) as store_class:
        yield store_class


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the settings be those of the site, with ada and bob among its users."""
    default, connection = connections.settings["default"], connections["default"]
    connections.settings["default"] = {**default, "NAME": str(tmp_path_factory.mktemp("site") / "users.sqlite3")}
    del connections["default"]
    try:
        with override_settings(**SETTINGS):
            call_command("migrate", verbosity=0)
            for name in ("ada", "bob"):
                User.objects.create_user(name)
            yield
    finally:
        connections["default"].close()
        connections.settings["default"], connections["default"] = default, connection


@pytest.fixture
def no_sessions(site: None) -> None:
    """Let nobody be signed in yet."""
    empty(import_module(settings.SESSION_ENGINE).SessionStore)
