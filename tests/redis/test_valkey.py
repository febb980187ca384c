"""The Redis engines on a real Valkey server."""

import atexit
import functools
from typing import Any

import pytest
from django.test import SimpleTestCase, override_settings

from gsession_django import StorageUnavailable
from gsession_django.backends import redis as redis_engine
from gsession_django.backends import redis_hash
from gsession_django.checks import check_deployment
from gsession_django.testing import StorageContract
from tests.support.engines import new_session, stored
from tests.support.redis_servers import ValkeyServer, settings_for

pytestmark = pytest.mark.once


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


def test_the_checks_accept_valkey() -> None:
    with server().client() as client:
        info: Any = client.info("server")
    assert info["server_name"] == "valkey"
    with override_settings(**settings_for(redis_engine.__name__, server().url())):
        assert check_deployment() == []


@pytest.mark.parametrize("module", [redis_engine, redis_hash], ids=["redis", "redis_hash"])
def test_a_master_without_replicas_may_refuse_writes(module: Any) -> None:
    """``min-replicas-to-write`` stops the writes of a demoted master. Redis 6.2 let scripts write."""
    with ValkeyServer() as alone, override_settings(**settings_for(module.__name__, alone.url())):
        store = module.SessionStore(new_session(module.SessionStore, {"name": "ada"}))
        store["name"] = "bob"
        with alone.client() as client:
            client.config_set("min-replicas-to-write", 1)
        for change in (store.save, store.cycle_key, module.SessionStore().create):
            with pytest.raises(StorageUnavailable, match="good replicas"):
                change()
        assert stored(module.SessionStore, store.session_key) == {"name": "ada"}
