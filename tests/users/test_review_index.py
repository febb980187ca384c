"""Review: entries of the index that are lost, and sessions that are not ended."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import SESSION_KEY

from gsession_django import Disabled, SessionMap, StorageUnavailable
from gsession_django.backends.file import SessionStore as FileStore
from gsession_django.backends.memory import SessionStore as MemoryStore
from gsession_django.core.engine import engine_of
from gsession_django.core.values import UNFETCHED
from gsession_django.moving import steps
from gsession_django.moving.our_engines import OurSource
from gsession_django.users import end_sessions, sessions_of
from gsession_django.users.about import LISTED, SINCE
from tests.support.engines import empty, stored
from tests.support.sign_ins import ids_of, sign_in
from tests.users.review_sites import Async, ByKeys, ComposedByKeys, Whole, engine_with

FILE = "gsession_django.backends.file"
MEMORY = "gsession_django.backends.memory"


# Storages that tell a session key by key.


def test_by_keys_a_cycle_key_keeps_the_session_listed() -> None:
    with engine_with(ByKeys) as store_class:
        request = store_class(sign_in(store_class()).session_key)
        request.cycle_key()  # by a view that has not looked at request.user
        request.save()
        assert stored(store_class, request.session_key) is not None
        assert ids_of() == {request.session_id}


def test_by_keys_the_time_of_the_sign_in_stays() -> None:
    with engine_with(ByKeys) as store_class:
        key = sign_in(store_class()).session_key
        (before,) = sessions_of("7")
        request = store_class(key)
        assert request[SESSION_KEY] == "7"  # as request.user does
        request["cart"] = 1
        request.save()
        (after,) = sessions_of("7")
        assert after.created == before.created


def test_by_keys_a_touch_writes_nothing() -> None:
    with engine_with(ByKeys) as store_class:
        request = store_class(sign_in(store_class()).session_key)
        assert request[SESSION_KEY] == "7"
        medium = store_class.get_storage().medium  # type: ignore[attr-defined]
        medium.calls.clear()
        request.modified = True
        request.save()
        assert "apply" not in medium.names()


def test_by_keys_a_session_in_use_stays_listed() -> None:
    with engine_with(ByKeys) as store_class:
        store = sign_in(store_class())
        storage: Any = store_class.get_storage()
        storage.medium.rows[store.session_id].pairs[LISTED] = storage.encode(int(time.time()) + 60)  # it is due
        storage.added.clear()
        request = store_class(store.session_key)
        request["cart"] = 1  # by a view that does not look at request.user
        request.save()
        assert storage.added


def test_a_user_id_that_is_still_in_an_async_storage_is_no_obstacle() -> None:
    class Later(Async):
        """As a hash does with a large value."""

        async def aget_session(self, session_id: str, ttl: int, data: Any = None) -> Any:
            found = await super().aget_session(session_id, ttl, data)
            return found and SessionMap(dict.fromkeys(found.held_pairs, UNFETCHED), None, found.ttl_left)

    async def visit(store: Any) -> None:
        await store.aset("cart", 1)
        await store.asave()

    with engine_with(Later) as store_class:
        asyncio.run(visit(store_class(sign_in(store_class()).session_key)))


# clear()


def test_a_clear_on_composed_pairs_leaves_nothing_of_the_user() -> None:
    with engine_with(ComposedByKeys) as store_class:
        store = store_class(sign_in(store_class()).session_key)
        store.clear()
        store["cart"] = 1
        store.save()
        assert not [key for key in store_class.get_storage().get_map(str(store.session_id)) if key.startswith("_gs.")]


# Disabled at run time.


def test_a_sign_out_succeeds_where_the_list_is_disabled_at_run_time() -> None:
    class Late(Whole):
        def remove_from_user(self, user_id: str, session_id: str, ended: bool) -> None:
            raise Disabled

    with engine_with(Late) as store_class:
        request = store_class(sign_in(store_class()).session_key)
        assert request[SESSION_KEY] == "7"
        key = request.session_key
        request.flush()
        assert stored(store_class, key) is None


def test_len_counts_no_hidden_pairs_once_the_list_is_disabled_at_run_time() -> None:
    class Late(ByKeys):
        off = False

        def sessions_of(self, user_id: str) -> list[str]:
            if self.off:
                raise Disabled
            return super().sessions_of(user_id)

    with engine_with(Late) as store_class:
        key = sign_in(store_class()).session_key
        Late.off = True
        with pytest.raises(NotImplementedError):
            sessions_of("7")
        assert len(store_class(key)._session) == len(list(store_class(key).keys()))


# A user's id that is no text.


def test_a_session_whose_user_id_is_a_number_stays_listed() -> None:
    with engine_with(Whole) as store_class:
        store = store_class()
        store[SESSION_KEY] = 7
        store.save()
        assert ids_of() == {store.session_id}
        request = store_class(store.session_key)
        request.set_expiry(10 * 365 * 24 * 3600)  # so that it is listed for longer
        request.save()
        assert ids_of() == {store.session_id}


# Sessions that are moved.


def test_a_session_that_is_moved_on_first_touch_is_listed(tmp_path: Path) -> None:
    with engine_with(Whole, {"FALLBACK_ENGINE": FILE}, SESSION_FILE_PATH=tmp_path) as store_class:
        key = sign_in(FileStore()).session_key
        assert store_class(key)[SESSION_KEY] == "7"  # a visit moves it
        assert ids_of() == {store_class(key).session_id}


def test_a_session_that_is_moved_from_an_indexed_engine_is_listed_by_its_next_save() -> None:
    class Old(Whole):
        pass

    with engine_with(Old) as old_class, engine_with(Whole) as store_class:
        key = sign_in(old_class()).session_key
        store = store_class(key)
        source = OurSource("old", old_class)
        ref = source.ref_of(str(key))
        engine = engine_of(store_class)
        engine.run(steps.move(engine, source, {ref: (str(store.session_id), source.read([ref])[ref])}, store))  # type: ignore[dict-item]
        request = store_class(key)
        assert request[SESSION_KEY] == "7"
        request["cart"] = 1
        request.save()
        assert ids_of() == {request.session_id}


def test_ended_sessions_include_those_that_are_still_at_the_fallback(tmp_path: Path) -> None:
    with engine_with(Whole, {"FALLBACK_ENGINE": FILE}, SESSION_FILE_PATH=tmp_path) as store_class:
        key = sign_in(FileStore()).session_key
        end_sessions("7")
        assert store_class(key).get(SESSION_KEY) is None


def test_a_session_that_was_ended_does_not_come_back_from_the_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine_with(Whole, {"FALLBACK_ENGINE": FILE}, SESSION_FILE_PATH=tmp_path) as store_class:
        key = sign_in(FileStore()).session_key
        storage: Any = store_class.get_storage()
        with monkeypatch.context() as patched:

            def fails(refs: Any) -> None:
                raise StorageUnavailable("the fallback is away")

            patched.setattr(OurSource, "remove", lambda self, refs: fails(refs))
            with pytest.raises(StorageUnavailable):
                store_class(key).get(SESSION_KEY)  # its move stops after the copy is certain
        storage.add_to_user("7", store_class(key).session_id, 600)  # what a move should do
        assert end_sessions("7") == 1
        assert store_class(key).get(SESSION_KEY) is None


def test_a_copy_that_was_only_touched_is_no_other_session() -> None:
    with engine_with(Whole) as store_class:
        empty(MemoryStore)
        source_store = MemoryStore()  # signed in before sessions were listed
        source_store["_auth_user_id"] = "7"
        source_store.save()
        storage: Any = MemoryStore.get_storage()
        for name in (SINCE, LISTED):
            storage._entries.live(source_store.session_id).values.pop(name, None)
        source, engine, store = OurSource(MEMORY, MemoryStore), engine_of(store_class), store_class()
        ref = source.ref_of(str(source_store.session_key))
        target_id = str(store_class(source_store.session_key).session_id)

        def batch() -> Any:
            return {ref: (target_id, source.read([ref])[ref])}

        engine.run(steps.copy(engine, source, batch(), store))
        visitor = store_class(source_store.session_key)
        assert visitor[SESSION_KEY] == "7"
        visitor.modified = True  # or SESSION_SAVE_EVERY_REQUEST
        visitor.save()
        assert engine.run(steps.move(engine, source, batch(), store)) == {ref: steps.Outcome.MOVED}


# end_sessions() and requests under way.


def test_a_session_that_gets_new_keys_while_all_end_is_ended() -> None:
    class Busy(Whole):
        then: list[Callable[[], None]] = []

        def sessions_of(self, user_id: str) -> list[str]:
            ids = super().sessions_of(user_id)
            if self.then:
                self.then.pop(0)()
            return ids

    with engine_with(Busy) as store_class:
        visitor = store_class(sign_in(store_class()).session_key)
        assert visitor[SESSION_KEY] == "7"
        Busy.then = [visitor.cycle_key, visitor.cycle_key]
        end_sessions("7")
        assert stored(store_class, visitor.session_key) is None


def test_ending_sessions_comes_to_an_end_where_reads_are_of_a_snapshot() -> None:
    """As in a transaction under REPEATABLE READ, or from a replica."""

    class Snapshot(Whole):
        taken: dict[str, Any] | None = None
        removed = 0

        def sessions_of(self, user_id: str) -> list[str]:
            return super().sessions_of(user_id) if self.taken is None else list(self.taken)

        def get_session(self, session_id: str, ttl: int, data: Any = None) -> Any:
            if self.taken is None:
                return super().get_session(session_id, ttl, data)
            return SessionMap(dict(self.taken[session_id]), None, 600.0)

        def remove_from_user(self, user_id: str, session_id: str, ended: bool) -> None:
            self.removed += 1
            assert self.removed < 100, "it goes on for ever"
            super().remove_from_user(user_id, session_id, ended)

    with engine_with(Snapshot) as store_class:
        store = sign_in(store_class())
        storage: Any = store_class.get_storage()
        storage.taken = {str(store.session_id): {SESSION_KEY: "7"}}
        assert end_sessions("7") == 1


def test_what_is_kept_is_a_session_or_refused() -> None:
    with engine_with(Whole) as store_class:
        store = sign_in(store_class())
        (mine,) = sessions_of("7", store)
        end_sessions("7", keep=mine)
        assert ids_of() == {store.session_id}
