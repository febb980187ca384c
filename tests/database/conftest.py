"""The databases for the tests in this folder."""

from collections.abc import Iterator

import pytest
from django.test import override_settings

from gsession_django import SessionStore
from gsession_django.backends import database
from tests.support.database_servers import SERVERS, DatabaseServer
from tests.support.databases import KINDS, connected, migrate, options_for
from tests.support.databases import database as a_database


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def alias(kind: str) -> Iterator[str]:
    with a_database(kind) as found, override_settings(**options_for(found)):
        yield found


@pytest.fixture
def store_class(alias: str) -> type[SessionStore]:
    return database.SessionStore


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[DatabaseServer]:
    """Yield a server that a test may stop or demote. The test must undo that."""
    with SERVERS[request.param]() as found:
        with connected(found.entry()) as alias:
            migrate(alias)
        yield found
