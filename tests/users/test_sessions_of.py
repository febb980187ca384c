"""The sessions of a user: listed, ended, and kept in step with the sessions themselves."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.base import UpdateError

from gsession_django import SessionStore
from gsession_django.signals import Ended, session_created, session_ended, session_moved
from gsession_django.users import end_session, end_sessions, sessions_of
from tests.support.engines import stored
from tests.support.sign_ins import ids_of, sign_in


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

    def test_what_is_known_of_a_session_is_not_among_its_own_keys(self, store_class: type[SessionStore]) -> None:
        key = sign_in(store_class()).session_key
        wanted = {SESSION_KEY, BACKEND_SESSION_KEY, HASH_SESSION_KEY}
        assert stored(store_class, key) is not None
        session = store_class(key)
        assert set(session.keys()) == {key for key, _ in session.items()} == set(session._session) == wanted
        assert len(session.keys()) == len(session.values()) == 3
        (listed,) = sessions_of("7")
        assert listed.created is not None

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


class TestSignals:
    @pytest.fixture
    def told(self) -> Iterator[list[tuple[str, dict[str, Any]]]]:
        told: list[tuple[str, dict[str, Any]]] = []

        def receive(name: str) -> Any:
            def receiver(signal: Any, **arguments: Any) -> None:
                told.append((name, {key: value for key, value in arguments.items() if key != "sender"}))

            return receiver

        signals = {"created": session_created, "moved": session_moved, "ended": session_ended}
        receivers = {name: receive(name) for name in signals}
        for name, signal in signals.items():
            signal.connect(receivers[name])
        yield told
        for name, signal in signals.items():
            signal.disconnect(receivers[name])

    def test_creation_move_and_end_are_told(
        self, store_class: type[SessionStore], told: list[tuple[str, dict[str, Any]]]
    ) -> None:
        store = store_class()
        store["cart"] = 1
        store.save()
        first_id = store.session_id
        sign_in(store)
        second_id = store.session_id
        end_sessions("7")
        assert told == [
            ("created", {"session_id": first_id, "user_id": None}),
            ("moved", {"session_id": first_id, "user_id": None, "new_id": second_id}),
            ("ended", {"session_id": second_id, "user_id": "7", "reason": Ended.BY_ANOTHER}),
        ]

    def test_a_sign_out_names_the_user(
        self, store_class: type[SessionStore], told: list[tuple[str, dict[str, Any]]]
    ) -> None:
        store = sign_in(store_class())
        session_id = store.session_id
        told.clear()
        store.flush()
        assert told == [("ended", {"session_id": session_id, "user_id": "7", "reason": Ended.SIGNED_OUT})]
