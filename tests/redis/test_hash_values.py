"""The fields of a session in a Redis hash: text as it is, and the encoding of any other value."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.sessions.serializers import JSONSerializer
from django.test import override_settings
from django.utils.safestring import SafeString

from gsession_django import SessionStore
from gsession_django.backends import redis_hash
from tests.support.engines import saved
from tests.support.redis_servers import settings_for, shared

TEXTS = ["", "4711", "null", '"quoted"', "é", "\ud800", "\0", "x" * 64, "x" * 20_000]
OTHERS = [None, True, 4711, 1.5, [], ["x"], {}, {"text": "x"}, ["x" * 20_000]]


class Reversed(JSONSerializer):
    """A serializer whose texts must not be stored as they are."""

    def dumps(self, obj: Any) -> bytes:
        return super().dumps(obj)[::-1]

    def loads(self, data: bytes) -> Any:
        return super().loads(data[::-1])


@contextmanager
def site(**settings: Any) -> Iterator[type[SessionStore]]:
    prefix = f"{random.getrandbits(64):x}:"
    with override_settings(**settings_for(redis_hash.__name__, shared().url(), prefix=prefix), **settings):
        yield redis_hash.SessionStore


def session(key: str) -> dict[str, Any]:
    return dict(redis_hash.SessionStore(key).items())


def fields(key: str) -> dict[bytes, bytes]:
    """Return the fields of both hashes of a session."""
    storage: Any = redis_hash.SessionStore.get_storage()
    with shared().client() as client:
        small, large = (client.hgetall(name) for name in storage._keys(redis_hash.SessionStore(key).session_id))
    return {**small, **large}


def put(key: str, field: str, stored: bytes) -> None:
    storage: Any = redis_hash.SessionStore.get_storage()
    with shared().client() as client:
        client.hset(storage._key(redis_hash.SessionStore(key).session_id), field, stored)


@pytest.mark.parametrize("value", TEXTS)
def test_text_is_stored_as_it_is(value: str) -> None:
    with site():
        key = saved(redis_hash.SessionStore(), {"key": value})
        assert fields(key)[b"key"] == value.encode("utf-8", "surrogatepass")
        assert session(key) == {"key": value}
        assert redis_hash.SessionStore(key).get("key") == value
        storage: Any = redis_hash.SessionStore.get_storage()
        assert storage.get(redis_hash.SessionStore(key).session_id, "key") == value


@pytest.mark.parametrize("value", OTHERS)
def test_any_other_value_is_marked(value: Any) -> None:
    with site():
        key = saved(redis_hash.SessionStore(), {"key": value})
        assert fields(key)[b"key"] == b"\xff" + JSONSerializer().dumps(value)
        assert session(key) == {"key": value}
        storage: Any = redis_hash.SessionStore.get_storage()
        assert storage.get(redis_hash.SessionStore(key).session_id, "key") == value


def test_text_of_another_type_is_stored_as_text() -> None:
    with site():
        assert fields(saved(redis_hash.SessionStore(), {"key": SafeString("<b>")}))[b"key"] == b"<b>"


def test_a_serializer_of_the_sites_own_is_given_text_too() -> None:
    with site(SESSION_SERIALIZER=f"{__name__}.Reversed"):
        key = saved(redis_hash.SessionStore(), {"key": "secret", "cart": {"pear": 1}})
        assert fields(key)[b"key"] == b'\xff"terces"'
        one, other = redis_hash.SessionStore(key), redis_hash.SessionStore(key)
        one["cart"]["apple"] = 1
        other["cart"]["plum"] = 1
        one.save()
        other.save()
        assert session(key) == {"key": "secret", "cart": {"pear": 1, "apple": 1, "plum": 1}}


def test_the_session_of_a_signed_in_user_is_kept_in_one_piece() -> None:
    with site():
        key = saved(
            redis_hash.SessionStore(),
            {
                "_auth_user_id": "4711",
                "_auth_user_backend": "django.contrib.auth.backends.ModelBackend",
                "_auth_user_hash": "5b1c0c9f" * 8,
                "cart": {"apple": 3, "pear": 1},
            },
        )
        storage: Any = redis_hash.SessionStore.get_storage()
        with shared().client() as client:
            encoding = client.object("ENCODING", storage._key(redis_hash.SessionStore(key).session_id))
        assert encoding in (b"ziplist", b"listpack")  # before and since Redis 7


@pytest.mark.parametrize("serializer", [JSONSerializer, Reversed])
@pytest.mark.parametrize("before", [None, "", "text", 1, ["x"], {"pear": 1}])
def test_a_dict_replaces_any_stored_value_in_one_turn(
    before: Any, serializer: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site(SESSION_SERIALIZER=f"{serializer.__module__}.{serializer.__name__}"):
        key = saved(redis_hash.SessionStore(), {"key": before})
        saved(redis_hash.SessionStore(key), {"other": 1})  # the server knows the script from here on
        store = redis_hash.SessionStore(key)
        store["key"] = {"apple": 1}
        storage: Any = redis_hash.SessionStore.get_storage()
        turns, exchange = [], storage.client._way.exchange

        def counted(batch: Any) -> Any:
            turns.append(batch)
            return exchange(batch)

        monkeypatch.setattr(storage.client._way, "exchange", counted)
        store.save()
        assert len(turns) == 1
        assert session(key) == {"key": {"apple": 1}, "other": 1}


@pytest.mark.parametrize("meanwhile", ["", "text", 1, {"pear": 1}])
def test_a_dict_merges_with_any_value_that_is_stored_meanwhile(meanwhile: Any) -> None:
    with site():
        key = saved(redis_hash.SessionStore(), {"key": {}})
        store = redis_hash.SessionStore(key)
        store["key"]["apple"] = 1
        saved(redis_hash.SessionStore(key), {"key": meanwhile})
        store.save()
        assert session(key) == {"key": {"apple": 1, **(meanwhile if isinstance(meanwhile, dict) else {})}}


@pytest.mark.parametrize("expiry", [500, timedelta(seconds=500)], ids=["seconds", "a time"])
def test_a_save_renews_the_ttl_that_set_expiry_has_given(expiry: Any) -> None:
    with site():
        store = redis_hash.SessionStore()
        store.set_expiry(expiry)  # it turns a timedelta into a point in time
        key = saved(store, {"key": 1})
        storage: Any = redis_hash.SessionStore.get_storage()
        name = storage._key(redis_hash.SessionStore(key).session_id)
        with shared().client() as client:
            client.expire(name, 100)
            saved(redis_hash.SessionStore(key), {"key": 2})
            assert 400 < int(client.ttl(name)) <= 500


@pytest.mark.parametrize("stored", [b"\x80\x04K\x01.", b"\xffno JSON", b'\xff"broken', b'\xff"te"xt"', b"\xff"])
def test_a_field_that_is_neither_text_nor_encoded_is_absent(stored: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with site():
        key = saved(redis_hash.SessionStore(), {"key": "value", "other": "text", "cart": {"pear": 1}})
        put(key, "key", stored)
        assert session(key) == {"other": "text", "cart": {"pear": 1}}
        assert redis_hash.SessionStore(key).get("key") is None
        assert {record.name for record in caplog.records} == {"django.security.SuspiciousSession"}
        storage: Any = redis_hash.SessionStore.get_storage()
        assert storage.get_map(redis_hash.SessionStore(key).session_id) == {"other": "text", "cart": {"pear": 1}}
        saved(redis_hash.SessionStore(key), {"key": {"apple": 1}})
        assert session(key) == {"key": {"apple": 1}, "other": "text", "cart": {"pear": 1}}


def test_a_single_value_that_is_neither_reads_as_none() -> None:
    with site():
        key = saved(redis_hash.SessionStore(), {"key": "value"})
        put(key, "key", b"\x80")
        storage: Any = redis_hash.SessionStore.get_storage()
        assert storage.get(redis_hash.SessionStore(key).session_id, "key") is None
