"""The sessions of a user: listed, ended, and kept in step with the sessions themselves."""

import asyncio
import dataclasses
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.base import UpdateError
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from gsession_django import SessionStore
from gsession_django.users import (
    aend_session,
    aend_sessions,
    asessions_of,
    end_session,
    end_sessions,
    sessions_of,
)
from tests.support.engines import stored
from tests.support.sign_ins import asign_in, ids_of, sign_in
from tests.support.sites import InMemoryUser


class TestListing:
    def test_a_user_has_the_sessions_in_which_they_signed_in(self, store_class: type[SessionStore]) -> None:
        one, two, other = sign_in(store_class()), sign_in(store_class()), sign_in(store_class(), "8")
        assert ids_of() == {one.session_id, two.session_id}
        assert ids_of("8") == {other.session_id}
        assert ids_of("9") == set()

    def test_nobody_is_listed_before_the_sign_in(self, store_class: type[SessionStore]) -> None:
        store = store_class()
        store["cart"] = 1
        store.save()
        assert ids_of() == set()
        sign_in(store)
        assert ids_of() == {store.session_id}

    def test_a_session_that_gets_a_new_key_is_listed_by_that(self, store_class: type[SessionStore]) -> None:
        store = sign_in(store_class())
        old_id = store.session_id
        request = store_class(store.session_key)
        request.cycle_key()
        assert request.session_id != old_id
        assert ids_of() == {request.session_id}

    def test_a_sign_out_ends_the_listing(self, store_class: type[SessionStore]) -> None:
        request = store_class(sign_in(store_class()).session_key)
        assert request[SESSION_KEY] == "7"
        request.flush()
        assert ids_of() == set()

    def test_a_session_that_goes_on_without_its_user_is_not_listed(self, store_class: type[SessionStore]) -> None:
        request = store_class(sign_in(store_class()).session_key)
        del request[SESSION_KEY]
        request.save()
        assert ids_of() == set()
        request = store_class(request.session_key)
        request[SESSION_KEY] = "8"
        request.save()
        assert ids_of() == set()
        assert ids_of("8") == {request.session_id}

    def test_a_session_whose_user_changes_is_listed_once(self, store_class: type[SessionStore]) -> None:
        request = store_class(sign_in(store_class()).session_key)
        request[SESSION_KEY] = "8"
        request.save()
        assert ids_of() == set()
        assert ids_of("8") == {request.session_id}

    def test_a_session_that_expired_is_not_listed(self, store_class: type[SessionStore]) -> None:
        store = sign_in(store_class())
        store.set_expiry(-1)
        store.save()
        assert ids_of() == set()

    def test_what_is_known_of_a_session_outlives_saves_and_merges(self, store_class: type[SessionStore]) -> None:
        key = sign_in(store_class()).session_key
        (before,) = sessions_of("7")
        requests = [store_class(key) for _ in range(3)]
        for number, request in enumerate(requests):
            request[f"key {number}"] = number
        for request in requests:
            request.save()
        (after,) = sessions_of("7")
        assert after.created == before.created
        assert stored(store_class, key) is not None

    def test_the_current_session_comes_first(self, store_class: type[SessionStore]) -> None:
        first, second = sign_in(store_class()), sign_in(store_class())
        assert [each.is_current for each in sessions_of("7", first)] == [True, False]
        assert sessions_of("7", first)[0].session_id == first.session_id
        assert sessions_of("7", second)[0].session_id == second.session_id

    def test_a_user_is_an_object_or_the_text_that_is_in_the_session(self, store_class: type[SessionStore]) -> None:
        store = sign_in(store_class())
        ada = InMemoryUser(pk=7, username="ada")
        (listed,) = sessions_of(ada)
        assert (listed.session_id, listed.user_id) == (store.session_id, "7")
        assert end_sessions(ada) == 1
        assert ids_of() == set()

    def test_a_listed_session_cannot_be_changed_and_shows_no_key(self, store_class: type[SessionStore]) -> None:
        options = {name: {**given, "hash_ids": False} for name, given in settings.GSESSION["ENGINES"].items()}
        with override_settings(GSESSION={**settings.GSESSION, "ENGINES": options}):
            key = str(sign_in(store_class()).session_key)
            (listed,) = sessions_of("7")
        assert listed.session_id == key, "ids are session keys here"
        assert key not in repr(listed)
        assert key not in listed.handle
        with pytest.raises(dataclasses.FrozenInstanceError):
            listed.handle = "another"  # type: ignore[misc]

    def test_the_handle_of_a_session_stays_and_no_other_has_it(self, store_class: type[SessionStore]) -> None:
        one, two = sign_in(store_class()), sign_in(store_class())
        handles = {session.session_id: session.handle for session in sessions_of("7")}
        assert handles == {session.session_id: session.handle for session in sessions_of("7", one)}
        assert handles[str(one.session_id)] != handles[str(two.session_id)]


class TestWhatCannotBeListed:
    def test_on_an_engine_of_django_it_is_an_error_of_the_settings(self) -> None:
        with (
            override_settings(SESSION_ENGINE="django.contrib.sessions.backends.file"),
            pytest.raises(ImproperlyConfigured, match=r"SESSION_ENGINE = .*is not an engine of gsession_django"),
        ):
            sessions_of("7")

    def test_an_engine_without_an_index_is_named(self) -> None:
        name = "tests.support.engine_that_keeps_pairs"
        with override_settings(SESSION_ENGINE=name), pytest.raises(NotImplementedError, match=f"{name}.*sessions_of"):
            end_sessions("7")

    @pytest.mark.parametrize("session", ["a key", 7, {}])
    def test_a_session_is_no_key_and_no_mapping(self, store_class: type[SessionStore], session: Any) -> None:
        store = sign_in(store_class())
        for ask in (sessions_of, end_sessions):
            with pytest.raises(TypeError, match="is not a session"):
                ask("7", session)
        assert ids_of() == {store.session_id}


class TestEnding:
    def test_a_session_that_was_ended_opens_nothing(self, store_class: type[SessionStore]) -> None:
        mine, theirs = sign_in(store_class()), sign_in(store_class())
        in_flight = store_class(theirs.session_key)
        in_flight["key"] = 1
        (other,) = (each for each in sessions_of("7", mine) if not each.is_current)
        end_session(other)
        assert stored(store_class, theirs.session_key) is None
        with pytest.raises(UpdateError):
            in_flight.save()
        assert ids_of() == {mine.session_id}

    def test_all_others_are_ended_at_once(self, store_class: type[SessionStore]) -> None:
        mine, *others = (sign_in(store_class()) for _ in range(5))
        foreign = sign_in(store_class(), "8")
        assert end_sessions("7", keep=mine) == 4
        assert ids_of() == {mine.session_id}
        assert all(stored(store_class, other.session_key) is None for other in others)
        assert ids_of("8") == {foreign.session_id}
        assert end_sessions("7") == 1
        assert ids_of() == set()

    def test_a_listed_session_can_be_kept(self, store_class: type[SessionStore]) -> None:
        kept, _ = sign_in(store_class()), sign_in(store_class())
        mine, _ = sessions_of("7", kept)
        assert end_sessions("7", keep=mine) == 1
        assert ids_of() == {kept.session_id}

    def test_a_session_that_has_ended_meanwhile_is_no_error(self, store_class: type[SessionStore]) -> None:
        store = sign_in(store_class())
        (listed,) = sessions_of("7")
        store.flush()
        end_session(listed)
        assert ids_of() == set()

    def test_async_code_lists_and_ends(self, store_class: type[SessionStore]) -> None:
        async def visit() -> None:
            mine, *others = [await asign_in(store_class()) for _ in range(4)]
            (current, other, _, _) = await asessions_of("7", mine)
            assert (current.session_id, current.is_current, other.is_current) == (mine.session_id, True, False)
            await aend_session(other)
            assert await aend_sessions("7", keep=mine) == 2
            assert [each.session_id for each in await asessions_of("7")] == [mine.session_id]
            for each in others:
                assert await store_class(each.session_key).aget(SESSION_KEY) is None

        asyncio.run(visit())
