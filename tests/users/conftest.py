from collections.abc import Iterator
from pathlib import Path

import pytest

from gsession_django import SessionStore
from tests.support import databases
from tests.support.engines import engine

INDEXED = ["memory", "file", "redis", "redis_hash", *databases.KINDS]
"""The engines that list the sessions of a user."""


@pytest.fixture(params=INDEXED)
def store_class(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[SessionStore]]:
    with engine(request.param, tmp_path) as store_class:
        yield store_class
