"""The sessions of users on storages with an index beside them: by keys, composed, async, and without it at run time."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import SESSION_KEY

from gsession_django import Disabled, SessionMap
from gsession_django.core.reserved import is_hidden
from gsession_django.core.values import UNFETCHED
from gsession_django.users import end_sessions, sessions_of
from gsession_django.users.about import LISTED
from tests.support.engines import stored
from tests.support.indexes import AsyncIndexed, ByKeys, Composed, engine_on
from tests.support.sign_ins import ids_of, sign_in
from tests.support.storages import IndexedStorage


class TestByKeys:
    def test_a_new_key_is_listed_though_nobody_has_asked_for_the_user(self) -> None:
        with engine_on(ByKeys) as store_class:
            request = store_class(sign_in(store_class()).session_key)
            request.cycle_key()
            request.save()
            assert stored(store_class, request.session_key) is not None
            assert ids_of() == {request.session_id}

    def test_a_save_keeps_the_time_of_the_sign_in(self) -> None:
        with engine_on(ByKeys) as store_class:
            key = sign_in(store_class()).session_key
            (before,) = sessions_of("7")
            request = store_class(key)
            assert request[SESSION_KEY] == "7"
            request["cart"] = 1
            request.save()
            (after,) = sessions_of("7")
            assert after.created == before.created

    def test_a_touch_stores_no_pair(self) -> None:
        with engine_on(ByKeys) as store_class:
            request = store_class(sign_in(store_class()).session_key)
            assert request[SESSION_KEY] == "7"
            medium = store_class.get_storage().medium  # type: ignore[attr-defined]
            medium.calls.clear()
            request.modified = True
            request.save()
            assert "update_ttl" in medium.names()
            assert not {"apply", "set", "set_map", "set_session"} & set(medium.names())

    def test_a_session_is_listed_anew_before_its_time_is_over_though_nobody_has_asked_for_the_user(self) -> None:
        with engine_on(ByKeys) as store_class:
            store = sign_in(store_class())
            storage: Any = store_class.get_storage()
            storage.medium.rows[store.session_id].pairs[LISTED] = storage.encode(int(time.time()) + 60)
            storage.medium.calls.clear()
            request = store_class(store.session_key)
            request["cart"] = 1
            request.save()
            assert "add_to_user" in storage.medium.names()


class TestComposed:
    def test_a_session_is_listed_under_each_of_its_keys_until_its_user_signs_out(self) -> None:
        with engine_on(Composed) as store_class:
            request = store_class(sign_in(store_class()).session_key)
            assert ids_of() == {request.session_id}
            request.cycle_key()
            request.save()
            assert ids_of() == {request.session_id}
            request.flush()
            assert ids_of() == set()

    def test_a_cleared_session_keeps_nothing_that_was_known_of_its_user(self) -> None:
        with engine_on(Composed) as store_class:
            store = store_class(sign_in(store_class()).session_key)
            store.clear()
            store["cart"] = 1
            store.save()
            held = store_class.get_storage().get_map(str(store.session_id))
            assert "cart" in held
            assert not any(map(is_hidden, held))


class TestAsync:
    def test_a_request_of_a_user_calls_only_native_twins(self) -> None:
        async def visit(store: Any) -> None:
            await store.aset(SESSION_KEY, "7")
            await store.asave()
            await store.acycle_key()
            await store.asave()
            await store.aflush()

        with engine_on(AsyncIndexed) as store_class:
            medium = store_class.get_storage().medium  # type: ignore[attr-defined]
            asyncio.run(visit(store_class()))
            assert {"aadd_to_user", "aremove_from_user"} <= set(medium.names())
            assert [name for name in medium.names() if not name.startswith("a")] == []

    def test_a_user_id_that_is_not_fetched_yet_is_fetched_for_the_save(self) -> None:
        class Later(AsyncIndexed):
            """Leaves the values in the medium, as a hash does with large ones."""

            async def aget_session(self, session_id: str, ttl: int, data: Any = None) -> Any:
                found = await super().aget_session(session_id, ttl, data)
                return found and SessionMap(dict.fromkeys(found.held_pairs, UNFETCHED), None, found.ttl_left)

        async def visit(store: Any) -> None:
            await store.aset("cart", 1)
            await store.asave()

        with engine_on(Later) as store_class:
            key = sign_in(store_class()).session_key
            asyncio.run(visit(store_class(key)))
            assert ids_of() == {store_class(key).session_id}


class TestDisabledAtRunTime:
    def test_a_sign_out_ends_the_session(self) -> None:
        class Late(IndexedStorage):
            def remove_from_user(self, user_id: str, session_id: str, ended: bool) -> None:
                raise Disabled

        with engine_on(Late) as store_class:
            request = store_class(sign_in(store_class()).session_key)
            assert request[SESSION_KEY] == "7"
            key = request.session_key
            request.flush()
            assert stored(store_class, key) is None

    def test_hidden_pairs_are_not_counted(self) -> None:
        class Late(ByKeys):
            off = False

            def sessions_of(self, user_id: str) -> list[str]:
                if self.off:
                    raise Disabled
                return super().sessions_of(user_id)

        with engine_on(Late) as store_class:
            key = sign_in(store_class()).session_key
            Late.off = True
            with pytest.raises(NotImplementedError, match="cannot list the sessions of a user"):
                sessions_of("7")
            assert len(store_class(key)._session) == len(list(store_class(key).keys()))


class TestUserIds:
    def test_a_session_whose_user_id_is_a_number_stays_listed(self) -> None:
        with engine_on(IndexedStorage) as store_class:
            store = store_class()
            store[SESSION_KEY] = 7
            store.save()
            assert ids_of() == {store.session_id}
            request = store_class(store.session_key)
            request.set_expiry(10 * 365 * 24 * 3600)  # it is listed anew, for longer
            request.save()
            assert ids_of() == {store.session_id}


class TestEnding:
    def test_a_session_that_gets_new_keys_between_the_looks_is_ended(self) -> None:
        class Busy(IndexedStorage):
            then: list[Callable[[], None]] = []

            def sessions_of(self, user_id: str) -> list[str]:
                ids = super().sessions_of(user_id)
                if self.then:
                    self.then.pop(0)()
                return ids

        with engine_on(Busy) as store_class:
            visitor = store_class(sign_in(store_class()).session_key)
            assert visitor[SESSION_KEY] == "7"
            Busy.then = [visitor.cycle_key, visitor.cycle_key]
            end_sessions("7")
            assert stored(store_class, visitor.session_key) is None

    def test_it_comes_to_an_end_where_reads_are_of_a_snapshot(self) -> None:
        """As in a transaction under REPEATABLE READ, or from a replica."""

        class Snapshot(IndexedStorage):
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

        with engine_on(Snapshot) as store_class:
            store = sign_in(store_class())
            storage: Any = store_class.get_storage()
            storage.taken = {str(store.session_id): {SESSION_KEY: "7"}}
            assert end_sessions("7") == 1
