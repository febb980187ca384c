"""An unreadable session is not a missing one: a failing serializer, or a typo in the settings, signs nobody out."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client, override_settings
from django.urls import path

from gsession_django import SessionMap, SessionStore, Storage
from gsession_django.core.engine import engine_of
from gsession_django.serializers import DecodeError
from tests.support.engines import EACH_ENGINE, engine, id_of, new_session, stored
from tests.support.sites import DJANGOS, OURS, either_client, get

LOG = "django.security.SuspiciousSession"
DATA: dict[str, Any] = {"user": {"id": 5}, "cart": {"apple": 1}, "big": {"text": "x" * 20_000}}


class Reversed:
    """A serializer whose bytes no other serializer can read."""

    def dumps(self, obj: Any) -> bytes:
        return json.dumps(obj).encode()[::-1]

    def loads(self, data: bytes) -> Any:
        return json.loads(data[::-1])


class OutOfMemory(Reversed):
    def loads(self, data: bytes) -> Any:
        raise MemoryError


class TooDeep(Reversed):
    def loads(self, data: bytes) -> Any:
        raise RecursionError


class Wrong(Reversed):
    """A serializer with a bug."""

    def loads(self, data: bytes) -> Any:
        return self.key  # type: ignore[attr-defined]


class NeedsAKey:
    def __init__(self) -> None:
        raise KeyError("SESSION_ENCRYPTION_KEY")


class NoLoads:
    def dumps(self, obj: Any) -> bytes:
        return b""


def read(request: HttpRequest) -> HttpResponse:
    return JsonResponse(dict(request.session.items()))


def write(request: HttpRequest) -> HttpResponse:
    request.session["seen"] = {"page": 1}
    return JsonResponse(dict(request.session.items()))


def cycle(request: HttpRequest) -> HttpResponse:
    request.session.cycle_key()
    request.session["seen"] = {"page": 1}
    return JsonResponse(dict(request.session.items()))


def touch(request: HttpRequest) -> HttpResponse:
    request.session.modified = True
    return HttpResponse()


urlpatterns = [path(view.__name__, view) for view in (read, write, cycle, touch)]


def serializer(name: str) -> Any:
    return override_settings(SESSION_SERIALIZER=name if "." in name else f"{__name__}.{name}")


def client_with(key: str, client_class: type[Any] = Client) -> Any:
    client = client_class(raise_request_exception=False)
    client.cookies["sessionid"] = key
    return client


@pytest.fixture(params=[DJANGOS, OURS], ids=["Django's middleware", "ours"])
def middleware(request: pytest.FixtureRequest) -> Iterator[None]:
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[request.param], ALLOWED_HOSTS=["*"]):
        yield


@pytest.fixture(params=EACH_ENGINE)
def store_class(request: pytest.FixtureRequest, tmp_path: Path, middleware: None) -> Iterator[type[SessionStore]]:
    with engine(request.param, tmp_path) as found:
        yield found


class TestSerializerThatCannotBeUsed:
    @either_client
    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("gsession_django.serializers.JSONSerialiser", "cannot be imported: .*JSONSerialiser"),
            ("no.such.module", "cannot be imported"),
            ("NeedsAKey", "cannot be constructed: 'SESSION_ENCRYPTION_KEY'"),
            ("NoLoads", r"cannot be used: it has no loads\(\)"),
        ],
    )
    def test_it_is_an_error_of_the_settings_and_signs_nobody_out(
        self, store_class: type[SessionStore], name: str, says: str, client_class: type[Any]
    ) -> None:
        key = new_session(store_class, DATA)
        client = client_with(key, client_class)
        with serializer(name):
            with pytest.raises(ImproperlyConfigured, match=f"SESSION_SERIALIZER = .*{says}.*Name a class"):
                dict(store_class(key).items())
            response = get(client, "/read")
            assert (response.status_code, response.cookies) == (500, {})
            with pytest.raises(ImproperlyConfigured):
                new_session(store_class, DATA)
        assert get(client, "/read").json() == DATA


class TestSerializerThatFails:
    """All values of the session are dicts, because two of the engines do not serialize text and numbers."""

    @either_client
    @pytest.mark.parametrize("every", [False, True], ids=["", "save every request"])
    @pytest.mark.parametrize("name", ["Reversed", "OutOfMemory", "TooDeep", "Wrong"])
    def test_a_read_gives_an_empty_session_and_changes_nothing(
        self, store_class: type[SessionStore], name: str, client_class: type[Any], every: bool
    ) -> None:
        client = client_with(key := new_session(store_class, DATA), client_class)
        with serializer(name), override_settings(SESSION_SAVE_EVERY_REQUEST=every):
            for url in ("/read", "/touch", "/read"):
                response = get(client, url)
                assert response.status_code == 200
                assert client.cookies["sessionid"].value == key
            assert response.json() == {}
            assert store_class().exists(key)
        assert get(client, "/read").json() == DATA
        assert id_of(store_class, key) in list(store_class.get_storage().ids())

    @either_client
    def test_a_save_gets_a_new_key_and_leaves_the_stored_session(
        self, store_class: type[SessionStore], client_class: type[Any]
    ) -> None:
        client = client_with(key := new_session(store_class, DATA), client_class)
        with serializer("Reversed"):
            assert get(client, "/read").json() == {}
            response = get(client, "/write")
            assert response.json() == {"seen": {"page": 1}}
            assert client.cookies["sessionid"].value != key
        assert stored(store_class, key) == DATA

    def test_cycle_key_ends_the_old_key(self, store_class: type[SessionStore]) -> None:
        client = client_with(key := new_session(store_class, DATA))
        with serializer("Reversed"):
            assert get(client, "/cycle").json() == {"seen": {"page": 1}}
            new = client.cookies["sessionid"].value
            assert new != key
            assert not store_class().exists(key)
            assert store_class().exists(new)
        assert stored(store_class, key) is None

    def test_it_is_logged(self, store_class: type[SessionStore], caplog: pytest.LogCaptureFixture) -> None:
        client = client_with(new_session(store_class, DATA))
        with serializer("Reversed"):
            get(client, "/read")
        messages = [record.getMessage() for record in caplog.records if record.name == LOG]
        assert messages
        assert all(f"SESSION_SERIALIZER = '{__name__}.Reversed' cannot read it: " in message for message in messages)

    def test_clear_and_flush_end_the_stored_session(self, store_class: type[SessionStore]) -> None:
        keys = [new_session(store_class, DATA) for _ in range(2)]
        with serializer("Reversed"):
            cleared, flushed = store_class(keys[0]), store_class(keys[1])
            assert dict(cleared.items()) == dict(flushed.items()) == {}
            cleared.clear()
            cleared.save()
            flushed.flush()
        assert [stored(store_class, key) for key in keys] == [{}, None]


class TestStoredByAnotherMeanwhile:
    """As during a deployment: a request reads the session, and then the other release writes it in other bytes."""

    @pytest.mark.parametrize("ending", ["save", "touch", "cycle_key"])
    def test_the_request_keeps_its_data_and_overwrites_nothing(
        self, store_class: type[SessionStore], ending: str
    ) -> None:
        key = new_session(store_class, DATA)
        request = store_class(key)
        assert dict(request.items()) == DATA
        with serializer("Reversed"):
            other = store_class(key)
            other.clear()
            other["theirs"] = {"item": 1}
            other.save()
        if ending == "save":
            request["cart"]["pear"] = 1
        elif ending == "cycle_key":
            request.cycle_key()
        request.save()
        with serializer("Reversed"):
            kept = stored(store_class, request.session_key if ending == "cycle_key" else key) or {}
            assert kept["theirs"] == {"item": 1}
        if ending == "save":
            # Engines that store each value separately merge the change with the other request's dict.
            by_value = store_class.__module__.endswith(("memory", "redis_hash"))
            expected = {"cart": {"pear": 1}} if by_value else {**DATA, "cart": {"apple": 1, "pear": 1}}
            assert stored(store_class, request.session_key) == expected


class Undecodable(Storage):
    """A storage in which every method finds unreadable data."""

    def __init__(self) -> None:
        self.removed: list[str] = []
        self.created: list[str] = []

    def get_session(self, session_id: str, ttl: int, data: Any = None) -> SessionMap:
        raise DecodeError("garbage")

    def exists(self, session_id: str) -> bool:
        raise DecodeError("garbage")

    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        raise DecodeError("garbage")

    def move(self, session_id: str, new_id: str, ttl: int) -> bool:
        raise DecodeError("garbage")

    def update_ttl(self, session_id: str, ttl: int) -> bool:
        raise DecodeError("garbage")

    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        if not self.created:
            self.created.append("taken")
            raise DecodeError("garbage")
        self.created.append(session_id)
        return True

    def remove_all(self, session_id: str) -> None:
        self.removed.append(session_id)


class UndecodableStore(SessionStore):
    storage_class = Undecodable


@pytest.fixture
def storage() -> Iterator[Undecodable]:
    with override_settings(GSESSION={}):
        found = engine_of(UndecodableStore).storage
        assert isinstance(found, Undecodable)
        yield found


def held() -> UndecodableStore:
    store = UndecodableStore("a" * 32)
    store._session_cache = SessionMap({"cart": {"apple": 1}})
    return store


class TestDecodeErrorOfAnyMethod:
    def test_an_unreadable_apply_stores_the_requests_data_under_a_new_key(
        self, storage: Undecodable, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = held()
        store["cart"]["pear"] = 1
        store.save()
        assert store.session_key != "a" * 32
        assert storage.created == ["taken", store.session_id]
        assert storage.removed == []
        assert "cannot be read, and is left as it is: garbage" in caplog.text

    def test_an_unreadable_move_stores_the_requests_data_under_a_new_key_and_ends_the_old_one(
        self, storage: Undecodable
    ) -> None:
        store = held()
        old = store.session_id
        store.cycle_key()
        assert storage.created == ["taken", store.session_id]
        assert storage.removed == [old]

    def test_an_unreadable_update_ttl_is_logged_and_done(
        self, storage: Undecodable, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = held()
        store.modified = True
        store.save()
        assert store.session_key == "a" * 32
        assert [record.levelno for record in caplog.records] == [logging.WARNING]

    @pytest.mark.parametrize("use", [lambda store: store.exists("a" * 32), lambda store: store.load() == {}])
    def test_an_unreadable_exists_or_get_session_means_that_the_session_is_there(
        self, storage: Undecodable, use: Callable[[SessionStore], bool]
    ) -> None:
        store = UndecodableStore("a" * 32)
        assert use(store)
        assert store.session_key == "a" * 32
