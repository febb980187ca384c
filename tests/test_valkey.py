"""The Redis engines on a real Valkey server."""

import atexit
import functools
from typing import Any

from django.test import SimpleTestCase, override_settings

from gsession_django.backends import redis as redis_engine
from gsession_django.backends import redis_hash
from gsession_django.checks import check_deployment
from gsession_django.testing import StorageContract
from tests.redis_servers import ValkeyServer, settings_for


@functools.cache
def server() -> ValkeyServer:
    found = ValkeyServer(appendonly="yes")
    atexit.register(found.stop)
    return found


class ValkeyTests(StorageContract, SimpleTestCase):
    store_class = redis_engine.SessionStore

    def setUp(self) -> None:
        self.enterContext(override_settings(**settings_for(redis_engine.__name__, server().url())))
        super().setUp()


class ValkeyHashTests(StorageContract, SimpleTestCase):
    store_class = redis_hash.SessionStore

    def setUp(self) -> None:
        self.enterContext(override_settings(**settings_for(redis_hash.__name__, server().url("?protocol=3"))))
        super().setUp()


def test_it_is_valkey_and_the_checks_have_nothing_against_it() -> None:
    with server().client() as client:
        info: Any = client.info("server")
    assert info["server_name"] == "valkey"
    with override_settings(**settings_for(redis_engine.__name__, server().url())):
        assert check_deployment() == []
