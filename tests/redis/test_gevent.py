"""On gevent, greenlets get the promises of threads."""

import pytest

from tests.support.processes import run_program

pytestmark = pytest.mark.once


@pytest.mark.parametrize("engine", ["redis", "redis_hash"])
def test_greenlets_wait_for_connections_and_survive_network_failures(engine: str) -> None:
    """Run each scenario of tests/support/redis_gevent.py."""
    run_program("tests.support.redis_gevent", f"gsession_django.backends.{engine}")
