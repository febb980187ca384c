"""One request's session in several tasks or threads at once, its copies, and Django's own names on it."""

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.sessions.backends.base import UpdateError
from django.test import RequestFactory, override_settings

from gsession_django import SessionMap, SessionStore
from tests.support.engines import EACH_ENGINE, engine, new_session, stored

LARGE = "x" * 20_000


@pytest.fixture(params=EACH_ENGINE)
def store_class(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[SessionStore]]:
    with engine(request.param, tmp_path) as found:
        yield found


@pytest.fixture
def loads(store_class: type[SessionStore], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the ids of loaded sessions."""
    asked: list[str] = []
    storage: Any = store_class.get_storage()

    def watch(name: str) -> None:
        method = getattr(storage, name)

        def load(session_id: str, *args: Any) -> Any:
            asked.append(session_id)
            return method(session_id, *args)

        monkeypatch.setattr(storage, name, load)

    watch("get_session")
    if store_class.__module__.endswith(("redis", "redis_hash")):  # whose twin does not call it
        watch("aget_session")
    return asked


class TestTasks:
    def test_first_uses_at_once_are_one_load_and_lose_nothing(
        self, store_class: type[SessionStore], loads: list[str]
    ) -> None:
        key = new_session(store_class, {"old": 1})
        store = store_class(key)

        async def visit() -> None:
            sets = [store.aset(f"key {number}", number) for number in range(4)]
            await asyncio.gather(store.aget("old"), *sets, store.asave(), store.aitems(), store.aset("last", 1))
            await store.asave()

        asyncio.run(visit())
        assert len(loads) == 1
        assert stored(store_class, key) == {"old": 1, "last": 1, **{f"key {number}": number for number in range(4)}}

    def test_first_saves_at_once_store_one_session(self, store_class: type[SessionStore]) -> None:
        store = store_class()

        async def visit() -> None:
            await asyncio.gather(*(self._set_and_save(store, number) for number in range(4)))

        asyncio.run(visit())
        assert stored(store_class, store.session_key) == {f"key {number}": number for number in range(4)}
        assert len(list(store_class.get_storage().ids())) == 1

    @staticmethod
    async def _set_and_save(store: SessionStore, number: int) -> None:
        await store.aset(f"key {number}", number)
        await store.asave()

    def test_a_task_cancelled_while_it_loads_blocks_nobody(self, store_class: type[SessionStore]) -> None:
        store = store_class(new_session(store_class, {"old": 1}))

        async def visit() -> None:
            first, second = asyncio.create_task(store.aget("old")), asyncio.create_task(store.aget("old"))
            await asyncio.sleep(0)
            first.cancel()
            assert await second == 1

        asyncio.run(visit())

    def test_a_key_set_during_cycle_key_is_kept(self, store_class: type[SessionStore]) -> None:
        store = store_class(new_session(store_class, {"old": 1}))

        async def visit() -> None:
            await asyncio.gather(store.acycle_key(), store.aset("a", 1), store.aset("b", 2))
            await store.asave()

        asyncio.run(visit())
        assert stored(store_class, store.session_key) == {"old": 1, "a": 1, "b": 2}

    def test_a_thread_that_awaits_in_turn_is_waited_for(self, store_class: type[SessionStore]) -> None:
        store = store_class(new_session(store_class, {"old": 1}))

        async def visit() -> list[int]:
            return list(await asyncio.gather(sync_to_async(async_to_sync(store.aget))("old"), store.aget("old")))

        assert asyncio.run(asyncio.wait_for(visit(), 10)) == [1, 1]

    def test_each_event_loop_may_use_it(self, store_class: type[SessionStore]) -> None:
        store = store_class(new_session(store_class, {"old": 1}))

        async def visit(name: str) -> None:
            await asyncio.gather(*(self._set_and_save(store, number) for number in range(4)))

        for name in ("one", "other"):
            async_to_sync(visit)(name)
        assert len(stored(store_class, store.session_key) or {}) == 5

    def test_a_load_method_of_the_site_is_called(self, store_class: type[SessionStore]) -> None:
        class Own(store_class):  # type: ignore[misc, valid-type]
            async def aload(self) -> SessionMap:
                found: SessionMap = await super().aload()
                found["own"] = 1
                return found

        Own.__module__ = store_class.__module__
        store = Own(new_session(store_class, {"old": 1}))
        assert asyncio.run(store.aget("own")) == 1


def test_a_change_after_the_response_is_saved_if_the_site_asks_for_it(store_class: type[SessionStore]) -> None:
    """Save as the body of a streaming response does."""
    store = store_class(new_session(store_class, {"job": {"done": 0}}))
    job = store["job"]
    with store.closed():
        assert not store.modified
    job["done"] = 1
    store.save()
    assert stored(store_class, store.session_key) == {"job": {"done": 1}}


class TestThreads:
    def test_keys_that_are_set_while_the_view_saves_are_kept(self, store_class: type[SessionStore]) -> None:
        key = new_session(store_class, {"cart": {"apple": 1}})
        store = store_class(key)
        done = threading.Event()

        def save() -> None:
            while not done.is_set():
                store.save()
                assert store.modified in (True, False)

        def set_keys(worker: int) -> None:
            for number in range(150):
                store[f"{worker} {number}"] = number
                if number % 3 == 0:
                    del store[f"{worker} {number}"]

        with ThreadPoolExecutor(4) as pool:
            saving = pool.submit(save)
            try:
                for future in [pool.submit(set_keys, worker) for worker in range(3)]:
                    future.result()
            finally:
                done.set()
            saving.result()
        store.save()
        assert len(stored(store_class, key) or {}) == 1 + 3 * 100

    def test_a_key_deleted_by_another_thread_is_stored_by_the_save_that_has_begun(
        self, store_class: type[SessionStore], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key = new_session(store_class, {"old": 1})
        store = store_class(key)
        store["new"] = 2
        original: Any = SessionMap
        as_dict, encoded, changed = original.as_dict, original.encoded, original.changed.fget

        def after(found: Any) -> Any:
            store.pop("new", None)  # as another thread would, between two lines of the storage
            return found

        with monkeypatch.context() as patch:
            patch.setattr(SessionMap, "as_dict", lambda session: after(as_dict(session)))
            patch.setattr(SessionMap, "encoded", lambda session: after(encoded(session)))
            patch.setattr(SessionMap, "changed", property(lambda session: after(changed(session))))
            store.save()
        assert stored(store_class, key) == {"old": 1, "new": 2}
        store.save()
        assert stored(store_class, key) == {"old": 1}

    def test_first_uses_at_once_lose_nothing(self, store_class: type[SessionStore]) -> None:
        key = new_session(store_class, {"old": 1})
        store = store_class(key)
        barrier = threading.Barrier(4, timeout=60)

        def use(number: int) -> None:
            barrier.wait()
            store[f"key {number}"] = number

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(use, range(4)))
        store.save()
        assert stored(store_class, key) == {"old": 1, **{f"key {number}": number for number in range(4)}}


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, through_pickle])
class TestCopies:
    def test_copies_of_a_session_have_all_of_it(
        self, store_class: type[SessionStore], duplicate: Callable[[Any], Any]
    ) -> None:
        store = store_class(key := new_session(store_class, {"small": {"a": 1}, "large": LARGE}))
        assert store["small"] == {"a": 1}
        store["new"] = 1
        again = duplicate(store)
        assert (again.session_key, again.modified) == (key, True)
        assert dict(again.items()) == {"small": {"a": 1}, "large": LARGE, "new": 1}
        again["small"]["b"] = 2
        again.save()
        assert stored(store_class, key) == {"small": {"a": 1, "b": 2}, "large": LARGE, "new": 1}

    def test_copies_of_an_unloaded_session_load_it(
        self, store_class: type[SessionStore], duplicate: Callable[[Any], Any]
    ) -> None:
        again = duplicate(store_class(new_session(store_class, {"small": 1})))
        assert again["small"] == 1

    def test_copies_of_its_map_have_all_of_it(
        self, store_class: type[SessionStore], duplicate: Callable[[Any], Any]
    ) -> None:
        store = store_class(new_session(store_class, {"small": {"a": 1}, "large": LARGE}))
        again = duplicate(store._session)
        assert isinstance(again, SessionMap)
        assert dict(again.items()) == {"small": {"a": 1}, "large": LARGE}
        assert not again.has_changes()
        del again["large"]
        assert again.removed == {"large"}

    def test_copies_of_a_request_have_all_of_it(
        self, store_class: type[SessionStore], duplicate: Callable[[Any], Any]
    ) -> None:
        request: Any = RequestFactory().get("/")
        request.session = store_class(new_session(store_class, {"small": {"a": 1}, "large": LARGE}))
        assert request.session["small"] == {"a": 1}
        if duplicate is through_pickle:
            request.environ = request.META = {}  # its streams cannot be pickled, with any engine
        again = duplicate(request)
        assert dict(again.session.items()) == {"small": {"a": 1}, "large": LARGE}


class TestNamesThatPublicCodeUses:
    def test_a_dict_that_is_assigned_is_the_session(self, store_class: type[SessionStore]) -> None:
        store = store_class(key := new_session(store_class, {"old": 1}))
        store._session_cache = data = {"cart": {"apple": 1}}
        data["more"] = {"n": 1}
        assert dict(store.items()) == {"cart": {"apple": 1}, "more": {"n": 1}}
        store["cart"]["pear"] = 1
        store.save()
        assert stored(store_class, key) == {"cart": {"apple": 1, "pear": 1}, "more": {"n": 1}}

    def test_it_can_be_deleted_to_read_anew(self, store_class: type[SessionStore]) -> None:
        store = store_class(key := new_session(store_class, {"old": 1}))
        assert not hasattr(store, "_session_cache")
        assert store["old"] == 1
        store_class(key)["old"] = 2
        other = store_class(key)
        other["old"] = 2
        other.save()
        del store._session_cache
        assert store["old"] == 2
        del store._session_cache
        with pytest.raises(AttributeError):
            del store._session_cache

    def test_a_session_is_encoded_as_django_does(self, store_class: type[SessionStore]) -> None:
        store = store_class(new_session(store_class, {"cart": {"apple": 1}}))
        assert store.decode(store.encode(store._session)) == {"cart": {"apple": 1}}
        assert store.decode(store.encode({"a": 1})) == {"a": 1}

    def test_views_are_reversed(self, store_class: type[SessionStore]) -> None:
        store = store_class(new_session(store_class, {"a": 1, "b": 2}))
        order = list(store.keys())
        assert sorted(order) == ["a", "b"]
        assert list(reversed(store.keys())) == order[::-1]
        assert list(reversed(store.items())) == list(store.items())[::-1]
        assert list(reversed(store.values())) == list(store.values())[::-1]

    @pytest.mark.parametrize("every", [False, True], ids=["", "save every request"])
    @pytest.mark.parametrize("use", [lambda s: None, lambda s: s["old"], lambda s: s.update({"a": 1})])
    def test_save_after_delete_raises_update_error(
        self, store_class: type[SessionStore], use: Callable[[Any], Any], every: bool
    ) -> None:
        with override_settings(SESSION_SAVE_EVERY_REQUEST=every):
            store = store_class(key := new_session(store_class, {"old": 1}))
            use(store)
            store.delete()
            with pytest.raises(UpdateError):
                store.save()
            assert not store_class().exists(key)
            store.save(must_create=True)
            assert store_class().exists(key)

    def test_a_session_that_is_created_again_after_delete_can_be_saved(self, store_class: type[SessionStore]) -> None:
        store = store_class(key := new_session(store_class, {"old": 1}))
        store.delete()
        store.save(must_create=True)
        store["new"] = 2
        store.save()
        assert stored(store_class, key) == {"new": 2}

    def test_deleting_another_session_does_not_stop_the_save(self, store_class: type[SessionStore]) -> None:
        key, other = (new_session(store_class, {"old": 1}) for _ in range(2))
        store = store_class(key)
        store["new"] = 1
        store.delete(other)
        store.save()
        assert stored(store_class, key) == {"old": 1, "new": 1}

    def test_get_model_class_says_what_to_use_instead(self, store_class: type[SessionStore]) -> None:
        name: Any = "get_model_class"
        with pytest.raises(NotImplementedError, match=r"get_storage\(\).ids\(\)"):
            getattr(store_class, name)()
