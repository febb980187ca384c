"""Which methods the adapter calls, with which arguments and in which order, for each kind of storage."""

import asyncio
import threading
from typing import Any

import pytest
from django.contrib.sessions.backends.base import CreateError, UpdateError
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from pytest_django import Settings

from gsession_django import Disabled, SessionStore, Storage
from gsession_django.core.reserved import RESERVED_KEY
from tests.support.storages import (
    AsyncPerKeyStorage,
    AsyncStorage,
    CompleteStorage,
    IncapableStorage,
    Medium,
    OwnIdsStorage,
    PairsOnlyStorage,
    PerKeyStorage,
    SometimesDisabledStorage,
    WholeMapStorage,
    engine,
)

AGE = 1000
READ = ("get_session", AGE, None)
EXPIRY = "_session_expiry"


@pytest.fixture(autouse=True)
def _age(settings: Settings) -> None:
    settings.SESSION_COOKIE_AGE = AGE


class Site:
    """An engine, and the calls of its storage."""

    def __init__(self, storage_class: type[Storage]) -> None:
        self.store_class = engine(storage_class)
        storage: Any = self.store_class.get_storage()
        self.medium: Medium = storage.medium

    def visitor(self, **data: Any) -> str:
        """Return the session key of a visitor with a session, without recording its calls."""
        store = self.store_class()
        store.update(data)
        store.save()
        self.calls()
        assert store.session_key is not None
        return store.session_key

    def request(self, key: str | None = None) -> SessionStore:
        return self.store_class(key)

    def calls(self) -> list[tuple[Any, ...]]:
        """Return the calls since this was last asked."""
        calls, self.medium.calls = self.medium.calls, []
        return calls


class TestWholeMapStorage:
    """(a) get_session, set_session, remove_all."""

    @pytest.fixture
    def site(self) -> Site:
        return Site(WholeMapStorage)

    def test_without_a_cookie_nothing_is_called(self, site: Site) -> None:
        request = site.request()
        assert request.get("key") is None
        assert not request.modified
        assert site.calls() == []

    def test_the_reserved_key_of_per_key_storages_is_an_ordinary_key_here(self, site: Site) -> None:
        assert site.request(site.visitor(**{RESERVED_KEY: 1}))[RESERVED_KEY] == 1

    def test_a_session_that_is_not_touched_is_not_read(self, site: Site) -> None:
        request = site.request(site.visitor(key=1))
        assert not request.modified
        assert not request.is_empty()
        assert site.calls() == []

    def test_a_session_is_read_once(self, site: Site) -> None:
        request = site.request(site.visitor(key=1))
        assert request["key"] == 1
        assert list(request.keys()) == ["key"]
        assert site.calls() == [READ]

    def test_a_new_session_is_stored_in_one_call(self, site: Site) -> None:
        request = site.request()
        request["key"] = 1
        assert site.calls() == []
        request.save()
        assert site.calls() == [("set_session", {"key": 1}, AGE)]

    def test_a_changed_session_is_read_again_and_merged(self, site: Site) -> None:
        key = site.visitor(cart={"apple": 1})
        request, other = site.request(key), site.request(key)
        request["cart"]["pear"] = 2
        other["cart"]["plum"] = 3
        other.save()
        site.calls()
        request.save()
        assert site.calls() == [READ, ("set_session", {"cart": {"apple": 1, "plum": 3, "pear": 2}}, AGE)]

    def test_an_unchanged_session_is_touched_with_what_is_stored_then(self, site: Site) -> None:
        key = site.visitor(key=1)
        request, other = site.request(key), site.request(key)
        assert request["key"] == 1
        other["key"] = 2
        other.save()
        site.calls()
        request.save()
        assert site.calls() == [READ, ("set_session", {"key": 2}, AGE)]

    def test_clear_calls_nothing_until_the_session_is_saved(self, site: Site) -> None:
        request = site.request(site.visitor(key=1))
        request.clear()
        request["new"] = 2
        assert site.calls() == []
        request.save()
        assert site.calls() == [READ, ("set_session", {"new": 2}, AGE)]

    def test_cycle_key_is_composed_of_create_copy_and_delete(self, site: Site) -> None:
        request = site.request(site.visitor(key=1))
        request.cycle_key()
        assert site.calls() == [READ, READ, ("set_session", {"key": 1}, AGE), READ, ("remove_all",)]

    def test_flush_removes_the_session(self, site: Site) -> None:
        request = site.request(site.visitor(key=1))
        request.flush()
        assert site.calls() == [("remove_all",)]

    def test_exists_reads_the_session(self, site: Site) -> None:
        assert site.request().exists(site.visitor(key=1))
        assert site.calls() == [READ]

    def test_creating_at_a_key_that_is_taken_stores_nothing(self, site: Site) -> None:
        request = site.request(site.visitor(key=1))
        with pytest.raises(CreateError):
            request.save(must_create=True)
        assert site.calls() == [READ]

    def test_a_session_that_is_gone_is_not_stored(self, site: Site) -> None:
        key = site.visitor(key=1)
        request = site.request(key)
        request["key"] = 2
        site.request(key).flush()
        site.calls()
        with pytest.raises(UpdateError):
            request.save()
        assert site.calls() == [READ]

    def test_the_expiry_that_another_request_set_is_kept(self, site: Site) -> None:
        key = site.visitor(key=1)
        request, other = site.request(key), site.request(key)
        request["key"] = 2
        other.set_expiry(77)
        other.save()
        site.calls()
        request.save()
        assert site.calls() == [READ, ("set_session", {"key": 2, EXPIRY: 77}, 77)]


class TestPerKeyStorage:
    """(b) The per-key methods, and a get_session that returns an empty map."""

    @pytest.fixture
    def site(self) -> Site:
        return Site(PerKeyStorage)

    def test_a_value_is_fetched_when_it_is_first_asked_for_and_once(self, site: Site) -> None:
        request = site.request(site.visitor(one=1, two=2))
        assert request["one"] == 1
        assert request["one"] == 1
        assert request.get("one") == 1
        assert site.calls() == [READ, ("get", "one")]

    def test_a_key_that_is_not_there_is_settled_by_one_get_map(self, site: Site) -> None:
        request = site.request(site.visitor(one=1, nothing=None))
        assert request.get("other") is None
        assert "another" not in request
        assert "nothing" in request
        assert request["one"] == 1
        assert site.calls() == [READ, ("get", "other"), ("get_map",)]

    def test_an_expiry_that_was_never_set_is_no_reason_to_fetch_the_rest(self, site: Site) -> None:
        request = site.request(site.visitor(one=1))
        assert not request.get_expire_at_browser_close()
        request["one"] = 2
        request.save()
        assert request.get_expiry_age() == AGE
        data = {"one": 2}
        expiry, stored = ("get", EXPIRY), [("set_map", data, AGE), ("set_session", data, AGE)]
        assert site.calls() == [READ, expiry, READ, expiry, *stored]

    def test_keys_are_listed_without_being_counted_first(self, site: Site) -> None:
        request = site.request(site.visitor(one=1, two=2))
        assert list(request.keys()) == ["one", "two"]
        assert site.calls() == [READ, ("get_map",)]

    def test_items_are_fetched_at_once(self, site: Site) -> None:
        request = site.request(site.visitor(one=1, two=2))
        assert dict(request.items()) == {"one": 1, "two": 2}
        assert list(request.values()) == [1, 2]
        assert site.calls() == [READ, ("get_map",)]

    def test_the_number_of_keys_is_asked_for_without_the_values(self, site: Site) -> None:
        request = site.request(site.visitor(one=1, two=2))
        assert len(request.keys()) == 2
        assert site.calls() == [READ, ("get_size",), ("get", RESERVED_KEY)]

    def test_the_reserved_key_is_not_counted(self, site: Site) -> None:
        request = site.request(site.visitor())
        assert len(request.keys()) == 0
        assert list(request.keys()) == []

    def test_a_new_session_is_stored_pair_by_pair(self, site: Site) -> None:
        request = site.request()
        request["key"] = 1
        request.save()
        assert site.calls() == [("set_map", {"key": 1}, AGE), ("set_session", {"key": 1}, AGE)]

    def test_a_new_session_without_pairs_keeps_a_reserved_one(self, site: Site) -> None:
        request = site.request()
        request.create()
        assert site.calls() == [("set_map", {RESERVED_KEY: True}, AGE), ("set_session", {}, AGE)]
        again = site.request(request.session_key)
        assert dict(again.items()) == {}
        assert again.session_key == request.session_key

    def test_only_what_changed_is_stored_and_a_dict_is_merged(self, site: Site) -> None:
        key = site.visitor(cart={"apple": 1}, number=1, gone=1, same=1)
        request, other = site.request(key), site.request(key)
        request["cart"]["pear"] = 1
        request["number"] = 2
        request["same"] = 1
        del request["gone"]
        other["cart"]["plum"] = 1
        other.save()
        site.calls()
        request.save()
        assert site.calls() == [
            ("get", EXPIRY),
            READ,
            ("get", "cart"),
            ("get", EXPIRY),
            ("set_map", {"cart": {"apple": 1, "plum": 1, "pear": 1}, "number": 2, "same": 1}, AGE),
            ("remove", "gone"),
            ("set_session", {"cart": {"apple": 1, "plum": 1, "pear": 1}, "number": 2, "same": 1}, AGE),
        ]

    def test_removing_the_last_pair_keeps_the_session(self, site: Site) -> None:
        key = site.visitor(only=1)
        request = site.request(key)
        del request["only"]
        request.save()
        assert [name for name, *_ in site.calls()][-3:] == ["set_map", "remove", "set_session"]
        assert site.request().exists(key)

    def test_an_unchanged_session_only_has_its_ttl_renewed(self, site: Site) -> None:
        request = site.request(site.visitor(key=1, _session_expiry=50))
        assert request["key"] == 1
        request.save()
        assert site.calls() == [READ, ("get", "key"), ("get", EXPIRY), ("update_ttl", 50)]

    def test_clear_needs_no_value_and_removes_each_pair_that_is_stored(self, site: Site) -> None:
        request = site.request(site.visitor(one=1, two=2))
        request.clear()
        request["two"] = 3
        assert site.calls() == []
        request.save()
        calls = site.calls()
        assert calls == [
            READ,
            ("get_map",),
            ("set_map", {"two": 3}, AGE),
            ("remove", "one"),
            ("set_session", {"two": 3}, AGE),
        ]

    def test_a_value_set_without_being_read_is_not_merged(self, site: Site) -> None:
        key = site.visitor(cart={"apple": 1})
        request = site.request(key)
        request["cart"] = {"pear": 1}
        request.save()
        assert site.request(key)["cart"] == {"pear": 1}

    def test_the_expiry_that_another_request_set_is_kept(self, site: Site) -> None:
        key = site.visitor(key=1)
        request, other = site.request(key), site.request(key)
        request["key"] = 2
        assert request.get_expiry_age() == AGE
        other.set_expiry(77)
        other.save()
        site.calls()
        request.save()
        assert site.calls()[-1] == ("set_session", {"key": 2}, 77)

    def test_cycle_key_copies_the_pairs(self, site: Site) -> None:
        request = site.request(site.visitor(key=1, _session_expiry=50))
        request.cycle_key()
        data = {"key": 1, EXPIRY: 50}
        assert site.calls() == [
            *(READ, ("get", EXPIRY), READ, ("get_map",)),
            *(("set_map", data, 50), ("set_session", data, 50), READ, ("get_map",), ("remove_all",)),
        ]


class NoRemoveStorage(PerKeyStorage):
    remove = Storage.remove


class RemoveDisabledStorage(PerKeyStorage):
    def remove(self, session_id: str, key: str) -> None:
        self.record("remove", key)
        raise Disabled


class TestPerKeyStorageThatCannotRemove:
    def test_a_pair_is_removed_by_storing_the_others_anew(self) -> None:
        site = Site(NoRemoveStorage)
        key = site.visitor(user=1, token=2)
        request = site.request(key)
        del request["token"]
        request.save()
        names = [name for name, *_ in site.calls()]
        assert names == ["get_session", "get", "get", "get_session", "get_map", "remove_all", "set_map", "set_session"]
        assert dict(site.request(key).items()) == {"user": 1}

    def test_the_same_holds_if_remove_raises_disabled_when_called(self) -> None:
        site = Site(RemoveDisabledStorage)
        key = site.visitor(user=1, token=2, cart={"apple": 1})
        request = site.request(key)
        del request["token"]
        request["cart"]["pear"] = 2
        request.save()
        assert dict(site.request(key).items()) == {"user": 1, "cart": {"apple": 1, "pear": 2}}


class TouchlessStorage(CompleteStorage):
    update_ttl = Storage.update_ttl  # type: ignore[assignment]


class TestCompleteStorage:
    """(c) Everything."""

    @pytest.fixture
    def site(self) -> Site:
        return Site(CompleteStorage)

    def test_load_modify_save_is_two_calls(self, site: Site) -> None:
        request = site.request(site.visitor(key=1, cart={}))
        request["cart"]["apple"] = 1
        request.save()
        assert site.calls() == [READ, ("apply", {"cart": {"apple": 1}}, [], False, AGE)]

    def test_a_new_session_is_created_at_once(self, site: Site) -> None:
        request = site.request()
        request["key"] = 1
        request.save()
        assert site.calls() == [("new", AGE), ("create", {"key": 1}, AGE)]
        assert request.session_key is not None
        assert request.session_key.startswith("made-here-")

    def test_an_id_that_is_taken_is_not_tried_again(self, site: Site) -> None:
        site.visitor()
        CompleteStorage.made -= 1
        request = site.request()
        request.save()
        assert site.calls() == [*[("new", AGE), ("create", {}, AGE)] * 2]

    def test_a_session_set_to_its_old_values_is_touched(self, site: Site) -> None:
        request = site.request(site.visitor(key=1))
        request["key"] = 1
        request.save()
        assert site.calls() == [READ, ("update_ttl", AGE)]

    def test_clear_is_one_call_and_no_load(self, site: Site) -> None:
        request = site.request(site.visitor(key=1))
        request.clear()
        request.save()
        assert site.calls() == [("apply", {}, [], True, AGE)]

    def test_login_is_three_calls(self, site: Site) -> None:
        request = site.request(site.visitor(key=1))
        assert request["key"] == 1
        request.cycle_key()
        request["user"] = 2
        request.save()
        assert site.calls() == [READ, ("new", AGE), ("move", AGE), ("apply", {"user": 2}, [], False, AGE)]

    def test_without_update_ttl_a_touch_is_an_apply_that_loses_nothing_of_others(self) -> None:
        site = Site(TouchlessStorage)
        key = site.visitor(a=1)
        request, other = site.request(key), site.request(key)
        assert request["a"] == 1
        other["b"] = 2
        other.save()
        site.calls()
        request.save()
        assert site.calls() == [("apply", {}, [], False, AGE)]
        request["c"] = 3
        request.save()
        assert dict(site.request(key).items()) == {"a": 1, "b": 2, "c": 3}

    def test_a_taken_key_is_not_mistaken_for_a_session_that_is_gone(self, site: Site) -> None:
        other = site.visitor(other=1)
        key = site.visitor(key=1)
        CompleteStorage.made -= 2
        request = site.request(key)
        request.cycle_key()
        request.save()
        assert site.calls()[:6] == [READ, ("new", AGE), ("move", AGE), ("exists",), ("new", AGE), ("move", AGE)]
        assert request.session_key not in (key, other)
        assert dict(site.request(request.session_key).items()) == {"key": 1}
        assert dict(site.request(other).items()) == {"other": 1}

    def test_flush_is_one_call(self, site: Site) -> None:
        site.request(site.visitor(key=1)).flush()
        assert site.calls() == [("remove_all",)]

    def test_exists_is_one_call(self, site: Site) -> None:
        assert site.request().exists(site.visitor())
        assert site.calls() == [("exists",)]

    def test_cycle_key_of_a_session_that_is_gone_stores_nothing_of_who_was_signed_in(self, site: Site) -> None:
        key = site.visitor(key=1, _auth_user_id="1")
        request = site.request(key)
        assert request["key"] == 1
        site.request(key).flush()
        site.calls()
        request.cycle_key()
        assert request["key"] == 1
        assert request.session_key != key
        with pytest.raises(UpdateError):
            request.save()
        assert site.calls() == [("new", AGE), ("move", AGE), ("exists",)]
        assert site.medium.rows == {}
        request.flush()
        request["key"] = 2
        request.save()
        assert len(site.medium.rows) == 1

    def test_cycle_key_of_a_session_that_is_gone_stores_an_anonymous_one_anew(self, site: Site) -> None:
        key = site.visitor(key=1)
        request = site.request(key)
        assert request["key"] == 1
        site.request(key).flush()
        site.calls()
        request.cycle_key()
        assert site.calls() == [("new", AGE), ("move", AGE), ("exists",), ("new", AGE), ("create", {"key": 1}, AGE)]
        assert dict(site.request(request.session_key).items()) == {"key": 1}

    def test_a_touch_without_a_request_for_it_waits_until_it_is_due(self, site: Site, settings: Settings) -> None:
        settings.SESSION_SAVE_EVERY_REQUEST = True
        site = Site(CompleteStorage)
        key = site.visitor(key=1)
        row = next(iter(site.medium.rows.values()))
        for age, due in ((0, False), (9, False), (11, True), (0, False), (-2, True)):
            row.expires += AGE - site.request(key).ttl_left - age  # type: ignore[operator]
            site.calls()
            request = site.request(key)
            assert request["key"] == 1
            request.save()
            assert site.calls() == ([READ, ("update_ttl", AGE)] if due else [READ]), age

    def test_a_touch_waits_no_longer_than_a_tenth_of_the_ttl(self, site: Site, settings: Settings) -> None:
        settings.SESSION_SAVE_EVERY_REQUEST = True
        settings.SESSION_COOKIE_AGE = 20
        site = Site(CompleteStorage)
        key = site.visitor(key=1)
        next(iter(site.medium.rows.values())).expires -= 3
        request = site.request(key)
        assert request["key"] == 1
        request.save()
        assert site.calls() == [("get_session", 20, None), ("update_ttl", 20)]

    def test_a_touch_that_was_asked_for_does_not_wait(self, site: Site, settings: Settings) -> None:
        settings.SESSION_SAVE_EVERY_REQUEST = True
        site = Site(CompleteStorage)
        request = site.request(site.visitor(key=1))
        assert request["key"] == 1
        request.modified = True
        request.save()
        assert site.calls() == [READ, ("update_ttl", AGE)]

    def test_touch_interval_is_a_setting(self, settings: Settings) -> None:
        settings.SESSION_SAVE_EVERY_REQUEST = True
        settings.GSESSION = {"TOUCH_INTERVAL": 0}
        site = Site(CompleteStorage)
        request = site.request(site.visitor(key=1))
        assert request["key"] == 1
        request.save()
        assert site.calls() == [READ, ("update_ttl", AGE)]


class TestSometimesDisabledStorage:
    """(d) Methods that raise Disabled at run time."""

    def test_a_disabled_method_is_tried_once(self) -> None:
        site = Site(SometimesDisabledStorage)
        for turn in range(2):
            request = site.request()
            request["key"] = turn
            request.save()
            calls = [call[0] for call in site.calls()]
            assert calls == (
                ["new", "create", "set_map", "set", "set_session"] if turn == 0 else ["set", "set_session"]
            )
        for turn in range(2):
            request = site.request(site.visitor(key=1, other=2))
            request["key"] = 2
            request.save()
            calls = [call[0] for call in site.calls()]
            composed = ["get_session", "set", "set_session"]
            assert calls == (["get_session", "apply", *composed] if turn == 0 else ["get_session", *composed])

    def test_cycle_key_touch_and_exists_are_composed_then(self) -> None:
        site = Site(SometimesDisabledStorage)
        key = site.visitor(key=1)
        assert site.request().exists(key)
        assert [call[0] for call in site.calls()] == ["exists", "get_session"]
        request = site.request(key)
        request.cycle_key()
        assert [call[0] for call in site.calls()] == [
            "get_session",
            "move",
            "get_session",
            "set",
            "set_session",
            "get_session",
            "remove_all",
        ]
        request.save()
        assert [call[0] for call in site.calls()] == ["update_ttl", "apply", "get_session", "set_session"]

    def test_a_storage_that_turns_out_to_hold_nothing_says_so(self) -> None:
        class Hopeless(WholeMapStorage):
            set_session = Storage.set_map

            def set_map(self, *args: Any) -> None:
                super().set_map(*args)

        request = Site(Hopeless).request()
        with pytest.raises(
            ImproperlyConfigured, match=r"Hopeless of the engine .* without set_map\(\), which is missing or disabled"
        ):
            request.save()


class TestTurns:
    """Composed operations take turns on one session, in this process."""

    def test_an_operation_that_may_not_wait_does_not_hold_the_session_for_ever(self) -> None:
        site = Site(WholeMapStorage)
        key = site.visitor(key=1)
        request, late = site.request(key), site.request(key)
        request["key"] = late["key"] = 2
        locks = request._engine.locks

        async def visit() -> None:
            locks.acquire(str(request.session_id))
            with pytest.raises(SynchronousOnlyOperation):
                request.save()
            locks.release(str(request.session_id))

        asyncio.run(visit())
        late.save()
        assert locks._waiting == {}

    def test_a_coroutine_that_is_cancelled_while_it_waits_is_passed_over(self) -> None:
        site = Site(AsyncPerKeyStorage)
        key = site.visitor(key=1)

        async def visit() -> None:
            request, late = site.request(key), site.request(key)
            await request.aset("key", 2)
            await late.aset("late", 3)
            locks = request._engine.locks
            locks.acquire(str(request.session_id))
            saving = asyncio.ensure_future(request.asave())
            for _ in range(100):  # until the save waits
                await asyncio.sleep(0)
            assert locks._waiting[str(request.session_id)]
            saving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await saving
            locks.release(str(request.session_id))
            await asyncio.wait_for(late.asave(), 30)
            assert locks._waiting == {}

        asyncio.run(visit())


class TestOwnIdsStorage:
    """(e) A storage that makes its own ids."""

    def test_it_is_given_the_session_key_as_it_made_it(self) -> None:
        site = Site(OwnIdsStorage)
        key = site.visitor(key=1)
        assert list(site.medium.rows) == [key]
        assert site.request(key).session_id == key
        assert site.request(key)["key"] == 1

    def test_it_need_not_look_up_foreign_keys(self) -> None:
        site = Site(OwnIdsStorage)
        request = site.request("00000000001.5")
        assert request.get("key") is None
        assert request.session_key is None
        assert site.calls() == []

    def test_it_is_asked_for_a_key_and_then_stores_the_session(self) -> None:
        site = Site(OwnIdsStorage)
        request = site.request()
        request.save()
        assert site.calls() == [("new", AGE), ("set_session", {}, AGE)]

    @pytest.mark.parametrize("key", ["short", "", None, 12345678, "no spaces", "käse-käse", 'quo"ted-"', "semi;colon"])
    def test_a_key_that_is_not_cookie_safe_is_refused(self, key: Any) -> None:
        class Careless(OwnIdsStorage):
            def new(self, ttl: int) -> str:
                return key  # type: ignore[no-any-return]

        with pytest.raises(ValueError, match=r"Careless of .* returned .* from new\(\).*at least 8 characters"):
            Site(Careless).request().save()

    def test_a_storage_whose_every_key_is_taken_is_not_asked_for_ever(self) -> None:
        class Stubborn(CompleteStorage):
            def new(self, ttl: int) -> str:
                return "always-the-same"

        site = Site(Stubborn)
        site.request().save()
        with pytest.raises(CreateError, match="said of 100 new session keys in a row that they are taken"):
            site.request().save()


class TestIncapableStorage:
    """(f) A storage that cannot hold a session."""

    def test_its_engine_cannot_be_used(self) -> None:
        with pytest.raises(
            ImproperlyConfigured, match=r"cannot hold a session. Give it get_session, remove_all, set_session"
        ):
            engine(IncapableStorage)().save()


class TestAsyncStorage:
    """(g) A storage with native twins."""

    def test_a_request_awaits_the_twins_in_the_order_of_the_methods(self) -> None:
        site = Site(AsyncStorage)
        threads: set[int] = set()
        record = site.store_class.get_storage().record  # type: ignore[attr-defined]

        def recording(*args: Any) -> None:
            threads.add(threading.get_ident())
            record(*args)

        site.store_class.get_storage().record = recording  # type: ignore[attr-defined]

        async def visit() -> None:
            request = site.request()
            await request.aset("cart", {})
            await request.asave()
            assert site.calls() == [("anew", AGE), ("acreate", {"cart": {}}, AGE)]
            request = site.request(request.session_key)
            (await request.aget("cart"))["apple"] = 1
            await request.acycle_key()
            await request.asave()
            apply: Any = ("aapply", {"cart": {"apple": 1}}, [], False, AGE)
            assert site.calls() == [("aget_session", AGE, None), ("anew", AGE), ("amove", AGE), apply]
            await request.asave()
            assert await request.aexists(request.session_key)
            await request.aflush()
            assert site.calls() == [("aupdate_ttl", AGE), ("aexists",), ("aremove_all",)]

        asyncio.run(visit())
        assert threads == {threading.get_ident()}

    def test_values_are_fetched_by_awaiting(self) -> None:
        site = Site(AsyncPerKeyStorage)
        key = site.visitor(one=1, two={"nested": 2}, testcookie="worked")

        async def visit() -> None:
            request = site.request(key)
            assert await request.aget("one") == 1
            assert site.calls() == [("aget_session", AGE, None), ("aget", "one")]
            assert await request.ahas_key("two")
            assert await request.asetdefault("two", None) == {"nested": 2}
            assert await request.apop("two") == {"nested": 2}
            await request.adelete_test_cookie()
            assert site.calls() == [("aget", "two"), ("aget", "testcookie")]
            assert list(await request.akeys()) == ["one"]
            assert site.calls() == [("aget_map",)]
            await request.asave()
            names = [call[0] for call in site.calls()]
            assert names == ["aget_session", "aget", "aset_map", "aremove", "aremove", "aset_session"]
            request = site.request(key)
            assert dict(await request.aitems()) == {"one": 1}
            assert list(await request.avalues()) == [1]
            assert site.calls() == [("aget_session", AGE, None), ("aget_map",)]

        asyncio.run(visit())

    def test_an_unfetched_value_is_never_fetched_by_blocking_the_loop(self) -> None:
        site = Site(AsyncPerKeyStorage)
        key = site.visitor(one=1)

        async def visit() -> None:
            request = site.request(key)
            await request._aget_session()
            with pytest.raises(SynchronousOnlyOperation, match="Use the async methods"):
                request["one"]

        asyncio.run(visit())

    def test_a_storage_without_twins_is_used_in_one_thread_hop_an_operation(self) -> None:
        site = Site(WholeMapStorage)
        key = site.visitor(key=1)
        threads: list[int] = []
        storage = site.store_class.get_storage()
        read = storage.get_session

        def recording(*args: Any) -> Any:
            threads.append(threading.get_ident())
            return read(*args)

        storage.get_session = recording  # type: ignore[assignment,method-assign]

        async def visit() -> None:
            request = site.request(key)
            await request.aset("key", 2)
            await request.asave()

        asyncio.run(visit())
        assert len(threads) == 2
        assert threading.get_ident() not in threads


class TestPairsOnlyStorage:
    """The least that keeps pairs."""

    def test_a_pair_is_removed_by_storing_the_others_anew(self) -> None:
        site = Site(PairsOnlyStorage)
        request = site.request(site.visitor(one=1, two=2))
        del request["one"]
        request.save()
        assert site.calls() == [READ, READ, ("remove_all",), ("set_map", {"two": 2}, AGE)]

    def test_the_last_pair_is_removed_too(self) -> None:
        site = Site(PairsOnlyStorage)
        key = site.visitor(one=1)
        request = site.request(key)
        del request["one"]
        request.save()
        assert site.request().exists(key)
        assert dict(site.request(key).items()) == {}

    def test_a_touch_stores_the_pairs_again(self) -> None:
        site = Site(PairsOnlyStorage)
        request = site.request(site.visitor(one=1))
        assert request["one"] == 1
        request.save()
        assert site.calls() == [READ, READ, ("set_map", {"one": 1}, AGE)]
