"""SessionStore behaves as Django documents request.session, except where it differs on purpose."""

import asyncio
import copy
import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.sessions.backends.base import SessionBase, UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.contrib.sessions.management.commands import clearsessions
from django.contrib.sessions.middleware import SessionMiddleware
from django.core import management
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.test import RequestFactory
from django.utils import timezone
from pytest_django import Settings

from gsession_django import SessionStore, Storage, StorageUnavailable
from gsession_django.backends import memory
from tests.support.storages import CompleteStorage, PerKeyStorage, WholeMapStorage, engine


@pytest.fixture(params=[CompleteStorage, PerKeyStorage, WholeMapStorage, memory.MemoryStorage])
def store_class(request: pytest.FixtureRequest) -> type[SessionStore]:
    return engine(request.param)


@pytest.fixture
def key(store_class: type[SessionStore]) -> str:
    """The session key of a visitor."""
    store = store_class()
    store.update({"cart": {"apple": 1}, "number": 1})
    store.save()
    assert store.session_key is not None
    return store.session_key


def answer(middleware: SessionMiddleware, request: HttpRequest) -> HttpResponseBase:
    response = middleware(request)
    assert isinstance(response, HttpResponseBase)
    return response


class TestModified:
    def test_reading_it_neither_loads_nor_counts_as_access(self, store_class: type[SessionStore], key: str) -> None:
        store = store_class(key)
        assert not store.modified
        assert not store.accessed
        assert "_session_cache" not in vars(store)

    def test_a_session_that_was_only_read_is_not_modified(self, store_class: type[SessionStore], key: str) -> None:
        store = store_class(key)
        assert (store["cart"], store["number"], dict(store.items())) == (
            {"apple": 1},
            1,
            {"cart": {"apple": 1}, "number": 1},
        )
        assert store.accessed
        assert not store.modified

    def test_a_value_changed_in_place_modifies_the_session_and_is_saved(
        self, store_class: type[SessionStore], key: str
    ) -> None:
        store = store_class(key)
        store["cart"]["pear"] = 2
        assert store.modified
        store.save()
        assert store_class(key)["cart"] == {"apple": 1, "pear": 2}

    def test_false_takes_a_new_baseline(self, store_class: type[SessionStore], key: str) -> None:
        store = store_class(key)
        store["cart"]["pear"] = 2
        store["number"] = 5
        store.modified = False
        assert not store.modified
        store["cart"]["plum"] = 3
        assert store.modified

    def test_false_also_counts_while_the_middleware_saves(self, store_class: type[SessionStore], key: str) -> None:
        store = store_class(key)
        store.clear()
        store.modified = False
        with store.closed():
            assert not store.modified

    def test_the_middleware_saves_what_was_changed_in_place(
        self, store_class: type[SessionStore], key: str, settings: Settings
    ) -> None:
        def view(request: HttpRequest) -> HttpResponse:
            request.session["cart"]["pear"] = 2
            return HttpResponse()

        request = RequestFactory().get("/")
        request.COOKIES[settings.SESSION_COOKIE_NAME] = key
        middleware = SessionMiddleware(view)
        middleware.SessionStore = store_class
        assert settings.SESSION_COOKIE_NAME in answer(middleware, request).cookies
        assert store_class(key)["cart"] == {"apple": 1, "pear": 2}


class TestKeysAndIds:
    def test_a_session_key_has_128_random_bits_in_32_characters(self) -> None:
        keys = {engine(PerKeyStorage)()._get_new_session_key() for _ in range(100)}
        assert len(keys) == 100
        assert {len(key) for key in keys} == {32}
        assert set("".join(keys)) == set("0123456789abcdef")

    def test_the_storage_is_given_the_hash_of_the_key_and_never_the_key(self) -> None:
        store = engine(WholeMapStorage)()
        store.save()
        assert store.session_key is not None
        hashed = hashlib.sha256(store.session_key.encode()).hexdigest()
        assert store.session_id == hashed
        storage: Any = store.get_storage()
        assert list(storage.medium.rows) == [hashed]

    def test_hash_ids_is_an_option_of_every_engine(self, settings: Settings) -> None:
        settings.GSESSION = {"ENGINES": {"tests.support.storages": {"hash_ids": False}}}
        store = engine(WholeMapStorage)()
        store.save()
        assert store.session_id == store.session_key

    def test_there_is_no_id_without_a_key(self) -> None:
        assert engine(WholeMapStorage)().session_id is None

    def test_an_unknown_key_is_never_adopted(self, store_class: type[SessionStore]) -> None:
        store = store_class("a" * 32)
        store["number"] = 1
        assert store.session_key is None
        store.save()
        assert store.session_key != "a" * 32

    def test_an_expired_session_is_an_unknown_one(self, store_class: type[SessionStore]) -> None:
        store = store_class()
        store["number"] = 1
        store.set_expiry(-timedelta(seconds=10))
        store.save()
        again = store_class(store.session_key)
        assert "number" not in again
        assert again.session_key is None

    def test_a_session_that_ended_leaves_an_empty_one_to_begin(self, store_class: type[SessionStore], key: str) -> None:
        store = store_class(key)
        store.flush()
        assert store.is_empty()
        assert store.session_key is None
        store["new"] = 1
        store.save()
        assert store.session_key not in (None, key)
        assert dict(store_class(store.session_key).items()) == {"new": 1}


class TestTtl:
    @pytest.mark.parametrize(
        ("expiry", "ttl"), [(1.5, 2), (60, 60), (0.001, 1), (-1.5, -1), (timedelta(days=1), 86400), (0, 1000)]
    )
    def test_it_is_whole_seconds_rounded_up(
        self, settings: Settings, expiry: Any, ttl: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.SESSION_COOKIE_AGE = 1000
        now = timezone.now()
        monkeypatch.setattr(timezone, "now", lambda: now)
        store = engine(WholeMapStorage)()
        store.set_expiry(expiry)
        store.save()
        storage: Any = store.get_storage()
        assert storage.medium.calls[-1][2] == ttl

    def test_the_remaining_ttl_is_known_if_the_storage_tells(self) -> None:
        store = engine(memory.MemoryStorage)()
        store.set_expiry(60)
        store.save()
        left = type(store)(store.session_key).ttl_left
        assert left is not None
        assert 59 < left <= 60
        silent = engine(WholeMapStorage)()
        silent.save()
        assert type(silent)(silent.session_key).ttl_left is None

    def test_the_age_of_a_subclass_counts(self) -> None:
        class LongLived(engine(WholeMapStorage)):  # type: ignore[misc]
            def get_session_cookie_age(self) -> int:
                return 12345

        store = LongLived()
        store.save()
        assert store.get_storage().medium.calls[-1] == ("set_session", {}, 12345)


class TestSaving:
    def test_changes_of_others_stay_when_a_request_saves_twice(self, store_class: type[SessionStore], key: str) -> None:
        one, other = store_class(key), store_class(key)
        one["cart"]["pear"] = 2
        other["cart"]["plum"] = 3
        other.save()
        one.save()
        assert one["cart"] == {"apple": 1, "pear": 2}
        one["cart"]["fig"] = 4
        one.save()
        assert store_class(key)["cart"] == {"apple": 1, "pear": 2, "plum": 3, "fig": 4}

    def test_changes_of_others_get_into_no_object_of_the_site(self, store_class: type[SessionStore]) -> None:
        default: dict[str, int] = {}
        first = store_class()
        first.save()
        one, other = store_class(first.session_key), store_class(first.session_key)
        one.setdefault("cart", default)
        other.setdefault("cart", {"theirs": 1})
        other.save()
        one["more"] = 1
        one.save()
        assert default == {}
        assert store_class(first.session_key)["cart"] == {"theirs": 1}

    def test_one_object_under_two_keys_is_two_values(self, store_class: type[SessionStore]) -> None:
        first = store_class()
        first["a"] = {"y": 1}
        first.save()
        one, other = store_class(first.session_key), store_class(first.session_key)
        assert one["a"] == {"y": 1}
        one["a"] = one["b"] = {"y": 1, "x": 1}
        other["a"]["other"] = 1
        other.save()
        one.save()
        one["more"] = 1
        one.save()
        assert store_class(first.session_key)["a"] == {"y": 1, "x": 1, "other": 1}

    def test_create_of_a_session_in_use_keeps_all_of_it(self, store_class: type[SessionStore], key: str) -> None:
        store = store_class(key)
        assert store["number"] == 1
        store.create()
        assert dict(store_class(store.session_key).items()) == {"cart": {"apple": 1}, "number": 1}

    def test_the_session_can_be_copied(self, store_class: type[SessionStore], key: str) -> None:
        store = store_class(key)
        store["cart"]["pear"] = 2
        copied = copy.deepcopy(store)
        copied["cart"]["plum"] = 3
        assert store["cart"] == {"apple": 1, "pear": 2}
        copied.save()
        assert store_class(key)["cart"] == {"apple": 1, "pear": 2, "plum": 3}

    def test_a_value_that_cannot_be_stored_is_the_developers_error(
        self, store_class: type[SessionStore], key: str
    ) -> None:
        store = store_class(key)
        store["number"] = object()
        with pytest.raises(TypeError):
            store.save()
        assert store_class(key)["number"] == 1

    def test_a_session_ended_meanwhile_interrupts_the_request(
        self, store_class: type[SessionStore], key: str, settings: Settings
    ) -> None:
        def view(request: HttpRequest) -> HttpResponse:
            request.session["number"] = 2
            store_class(key).flush()
            return HttpResponse()

        request = RequestFactory().get("/")
        request.COOKIES[settings.SESSION_COOKIE_NAME] = key
        middleware = SessionMiddleware(view)
        middleware.SessionStore = store_class
        with pytest.raises(SessionInterrupted):
            middleware(request)

    def test_cycle_key_with_unsaved_changes_keeps_them(self, store_class: type[SessionStore], key: str) -> None:
        store = store_class(key)
        store["number"] = 2
        store["cart"]["pear"] = 2
        store.cycle_key()
        assert store.modified
        store.save()
        assert dict(store_class(store.session_key).items()) == {"cart": {"apple": 1, "pear": 2}, "number": 2}

    def test_a_save_that_overlaps_a_cycle_key_is_an_update_error(
        self, store_class: type[SessionStore], key: str
    ) -> None:
        late = store_class(key)
        late["number"] = 2
        store_class(key).cycle_key()
        with pytest.raises(UpdateError):
            late.save()
        assert not late.exists(key)

    def test_composed_saves_of_one_session_take_turns_in_a_process(self) -> None:
        class Slow(WholeMapStorage):
            inside = 0
            most = 0

            def get_session(self, *args: Any) -> dict[str, Any] | None:
                cls = type(self)
                cls.inside += 1
                cls.most = max(cls.most, cls.inside)
                return super().get_session(*args)

            def set_session(self, *args: Any) -> None:
                super().set_session(*args)
                type(self).inside -= 1

        store_class = engine(Slow)
        store = store_class()
        store.save()
        requests = [store_class(store.session_key) for _ in range(8)]
        for number, request in enumerate(requests):
            request[str(number)] = number
        Slow.inside = Slow.most = 0
        threads = [threading.Thread(target=request.save) for request in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Slow.most == 1
        assert len(store_class(store.session_key).keys()) == 8


class TestUndecodable:
    @pytest.mark.parametrize("storage_class", [WholeMapStorage, CompleteStorage, PerKeyStorage])
    def test_a_value_that_cannot_be_decoded_is_left_out_and_logged(
        self, storage_class: type[Storage], caplog: pytest.LogCaptureFixture
    ) -> None:
        store_class = engine(storage_class)
        store = store_class()
        store["number"] = 1
        store.save()
        storage: Any = store.get_storage()
        storage.medium.rows[store.session_id].pairs["number"] = b"{"
        again = store_class(store.session_key)
        assert again.get("number") is None
        assert dict(again.items()) == {}
        assert {record.name for record in caplog.records} == {"django.security.SuspiciousSession"}
        assert (
            f"of {storage_class.__name__} of the engine 'tests.support.storages' cannot be read, and is left"
            in caplog.text
        )
        caplog.clear()


class Down(Storage):
    """A storage that cannot be reached."""

    def get_session(self, *args: Any) -> Any:
        raise StorageUnavailable("down")

    set_session = remove_all = update_ttl = get_session  # type: ignore[assignment]


class TestOutage:
    @pytest.mark.parametrize("save_every_request", [False, True])
    def test_the_cookie_stays_and_no_session_looks_empty(self, settings: Settings, save_every_request: bool) -> None:
        settings.SESSION_SAVE_EVERY_REQUEST = save_every_request

        def view(request: HttpRequest) -> HttpResponse:
            with pytest.raises(StorageUnavailable):
                request.session.get("user")
            return HttpResponse(status=500)

        request = RequestFactory().get("/")
        request.COOKIES[settings.SESSION_COOKIE_NAME] = "a" * 32
        middleware = SessionMiddleware(view)
        middleware.SessionStore = engine(Down)
        if save_every_request:
            with pytest.raises(StorageUnavailable):
                middleware(request)
        else:
            assert answer(middleware, request).cookies == {}

    @pytest.mark.parametrize(
        "use",
        [
            lambda store: store.save(),
            lambda store: store.exists("a" * 32),
            lambda store: store.cycle_key(),
            lambda store: store.delete(),
            lambda store: store.flush(),
            lambda store: store.load(),
        ],
    )
    def test_every_operation_raises_storage_unavailable(self, use: Any) -> None:
        with pytest.raises(StorageUnavailable):
            use(engine(Down)("a" * 32))

    def test_a_session_that_could_not_be_read_can_be_read_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store_class = engine(WholeMapStorage)
        first = store_class()
        first["number"] = 1
        first.save()
        store = store_class(first.session_key)
        with monkeypatch.context() as patch:
            patch.setattr(WholeMapStorage, "get_session", Down.get_session)
            with pytest.raises(StorageUnavailable):
                store["number"]
        assert store["number"] == 1


class TestTheStorageObject:
    def test_there_is_one_an_engine_and_process_made_at_first_use(self) -> None:
        store_class = engine(WholeMapStorage)
        storages: list[Storage] = []
        threads = [threading.Thread(target=lambda: storages.append(store_class.get_storage())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(map(id, storages))) == 1

    @pytest.mark.parametrize(
        ("name", "value"), [("GSESSION", {}), ("CACHES", {}), ("SESSION_COOKIE_AGE", 5), ("SESSION_CACHE_ALIAS", "x")]
    )
    def test_it_is_dropped_when_a_setting_changes_that_it_may_depend_on(
        self, settings: Settings, name: str, value: Any
    ) -> None:
        store_class = engine(WholeMapStorage)
        before = store_class.get_storage()
        settings.USE_THOUSAND_SEPARATOR = True
        assert store_class.get_storage() is before
        if name != "CACHES":  # overriding it makes Django warn; the signal is the same
            setattr(settings, name, value)
        else:
            from django.core.signals import setting_changed

            setting_changed.send(sender=None, setting=name, value=value, enter=True)
        assert store_class.get_storage() is not before

    def test_it_takes_the_options_of_its_engine(self, settings: Settings) -> None:
        settings.GSESSION = {"ENGINES": {"gsession_django.backends.memory": {"max_sessions": 1}}}
        one, two = memory.SessionStore(), memory.SessionStore()
        one.save()
        two.save()
        assert not one.exists(one.session_key)
        assert one.exists(two.session_key)

    def test_an_option_that_is_not_in_the_setting_has_its_default(self) -> None:
        assert engine(WholeMapStorage).get_storage() is not None


def test_a_forked_child_has_storages_and_locks_of_its_own() -> None:
    store_class = engine(WholeMapStorage)
    store = store_class()
    store["number"] = 1
    store.save()
    assert store.session_id is not None
    # As if another thread were saving this session now. The child does not have that thread.
    store._engine.locks.acquire(store.session_id)
    child = os.fork()
    if child == 0:
        fresh = store_class()
        fresh.save()
        store.delete()
        os._exit(0 if fresh.session_key and store_class.get_storage() is not None else 1)
    waited = threading.Thread(target=os.waitpid, args=(child, 0), daemon=True)
    waited.start()
    waited.join(30)
    if waited.is_alive():
        os.kill(child, signal.SIGKILL)
        pytest.fail("the child hangs")


def test_a_storage_may_ask_for_another_engine_while_it_is_made() -> None:
    other = engine(WholeMapStorage)

    class Falling(WholeMapStorage):
        def __init__(self) -> None:
            super().__init__()
            self.fallback = other.get_storage()

    made: list[Storage] = []
    thread = threading.Thread(target=lambda: made.append(engine(Falling).get_storage()), daemon=True)
    thread.start()
    thread.join(30)
    assert made


class TestPurging:
    def test_clearsessions_works(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        settings.SESSION_ENGINE = "gsession_django.backends.memory"
        live, dead = memory.SessionStore(), memory.SessionStore()
        dead.set_expiry(-1)
        live.save()
        dead.save()
        storage: Any = memory.SessionStore.get_storage()
        assert dead.session_id in storage._entries.ids()
        management.call_command(clearsessions.Command())
        assert storage._entries.ids() == [live.session_id]

    def test_no_purge_runs_if_the_medium_expires_sessions_itself(self) -> None:
        class Self(WholeMapStorage):
            expires_itself = True

        engine(Self).clear_expired()

    def test_a_storage_that_cannot_says_so(self) -> None:
        with pytest.raises(
            NotImplementedError, match=r"WholeMapStorage of the engine 'tests.support.storages' .* has no purge\(\)"
        ):
            engine(WholeMapStorage).clear_expired()


class TestAsync:
    def test_a_request_may_mix_both_forms(self, store_class: type[SessionStore], key: str) -> None:
        async def visit() -> str | None:
            store = store_class(key)
            assert await store.aget("number") == 1
            (await store.aget("cart"))["pear"] = 2
            assert store.modified
            await store.aset_expiry(50)
            assert await store.aget_expiry_age() == 50
            await store.asave()
            return store.session_key

        assert asyncio.run(visit()) == key
        assert store_class(key)["cart"] == {"apple": 1, "pear": 2}

    def test_deleting_the_test_cookie_asks_for_a_save(self, store_class: type[SessionStore], key: str) -> None:
        async def main() -> bool:
            store = store_class(key)
            await store.aset_test_cookie()
            await store.asave()
            other = store_class(key)
            await other.adelete_test_cookie()
            return other.modified

        assert asyncio.run(main())

    def test_create_cycle_key_and_delete_work_under_async(self, store_class: type[SessionStore]) -> None:
        async def visit() -> None:
            store = store_class()
            await store.acreate()
            first = store.session_key
            await store.aset("a", 1)
            await store.acycle_key()
            await store.asave()
            assert not await store.aexists(first)
            assert dict(await store_class(store.session_key).aitems()) == {"a": 1}
            await store.adelete()
            assert dict(await store.aload()) == {}
            assert len(await store._aget_new_session_key()) >= 8

        asyncio.run(visit())


def test_the_store_has_every_method_of_djangos_interface() -> None:
    ours = {name for name in dir(SessionStore) if not name.startswith("_")}
    assert {name for name in dir(SessionBase) if not name.startswith("_")} <= ours


@pytest.mark.parametrize("installed", [["gsession_django"], ["django.contrib.sessions", "gsession_django"]])
def test_it_works_with_and_without_djangos_sessions_app(installed: list[str], tmp_path: Any) -> None:
    program = f"""
import django
from django.conf import settings
settings.configure(SECRET_KEY="x", INSTALLED_APPS={installed!r}, SESSION_ENGINE="gsession_django.backends.file",
    SESSION_FILE_PATH={str(tmp_path)!r}, DATABASES={{}})
django.setup()
from django.core.management import call_command
call_command("check")
from django.contrib.sessions.management.commands import clearsessions
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpResponse
from django.test import RequestFactory
def view(request):
    request.session["a"] = 1
    return HttpResponse()
print(SessionMiddleware(view)(RequestFactory().get("/")).cookies["sessionid"].value)
call_command("purge_sessions")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()[1]) == 32


@pytest.fixture(autouse=True)
def _nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING, "django.security.SuspiciousSession"):
        yield
    assert caplog.record_tuples == []
