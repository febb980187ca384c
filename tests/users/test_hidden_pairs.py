"""What is known of a user's session is stored with it, and is not among the pairs that the application sees."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.template import Context, Engine
from django.test import override_settings

from gsession_django import SessionStore
from gsession_django.core.reserved import is_hidden
from gsession_django.users import clients, sessions_of
from tests.support.sign_ins import request_of, sign_in

SERIALIZERS = {
    "JSON": "django.contrib.sessions.serializers.JSONSerializer",
    "typed": "gsession_django.typed.TypedSerializer",
    "pickle": "tests.core.test_serializers.PickleSerializer",
}
VISIBLE = {
    SESSION_KEY: "7",
    BACKEND_SESSION_KEY: "tests.support.sites.Backend",
    HASH_SESSION_KEY: "hash",
    "cart": {"apple": [1, None]},
}


@pytest.fixture(params=["hashed ids", "session keys as ids"])
def key(request: pytest.FixtureRequest, store_class: type[SessionStore]) -> Iterator[str]:
    """Yield the session key of a user of whom everything is recorded that can be."""
    options = settings.GSESSION["ENGINES"]
    hash_ids = request.param == "hashed ids"
    given = {name: {**each, "hash_ids": hash_ids} for name, each in options.items()}
    with override_settings(GSESSION={**settings.GSESSION, "ENGINES": given, "RECORD_CLIENT": True}):
        yield a_visit(store_class)


def a_visit(store_class: type[SessionStore]) -> str:
    store = sign_in(store_class())
    store["cart"] = {"apple": [1, None]}
    clients.record(request_of(store))
    store.save()
    return str(store.session_key)


def hidden(store: SessionStore) -> set[str]:
    """Return the hidden keys that the session has in the storage."""
    assert list(store.items())  # loads it
    return {name for name in store._session.as_dict() if is_hidden(name)}


def seen(store: SessionStore) -> list[dict[str, Any]]:
    """Return the pairs as each way to look at all of them shows them."""
    session = store._session
    return [
        dict(store.items()),
        dict(zip(store.keys(), store.values(), strict=True)),
        dict(session),
        {name: store[name] for name in session},
        {name: store[name] for name in reversed(list(store.keys()))},
        store.decode(store.encode(session)),
    ]


@pytest.mark.parametrize("serializer", SERIALIZERS.values(), ids=SERIALIZERS)
def test_the_application_sees_what_it_has_put_there(store_class: type[SessionStore], serializer: str) -> None:
    with override_settings(SESSION_SERIALIZER=serializer, GSESSION={**settings.GSESSION, "RECORD_CLIENT": True}):
        key = a_visit(store_class)
        assert len(hidden(store_class(key))) >= 2, "since when, and from where"
        assert seen(store_class(key)) == [VISIBLE] * 6
        (listed,) = sessions_of("7")
        assert listed.created is not None
        assert listed.last_seen_from is not None


def test_the_number_of_pairs_is_that_of_the_visible_ones(store_class: type[SessionStore], key: str) -> None:
    for count in (len, lambda pairs: len(list(pairs))):
        assert count(store_class(key).keys()) == len(VISIBLE)
        assert count(store_class(key).items()) == len(VISIBLE)
        assert count(store_class(key).values()) == len(VISIBLE)
    assert len(store_class(key)._session) == len(VISIBLE)


def test_so_it_is_for_an_async_view(store_class: type[SessionStore], key: str) -> None:
    async def look() -> None:
        assert dict(await store_class(key).aitems()) == VISIBLE
        assert set(await store_class(key).akeys()) == set(VISIBLE)
        assert len(list(await store_class(key).avalues())) == len(VISIBLE)

    asyncio.run(look())


def test_so_it_is_while_the_session_is_saved_and_after(store_class: type[SessionStore], key: str) -> None:
    store, other = store_class(key), store_class(key)
    store["page"] = 1
    other["theme"] = "dark"
    other.save()
    store.save()
    assert dict(store.items()) == {**VISIBLE, "page": 1}
    store.cycle_key()
    store.save()
    assert dict(store_class(store.session_key).items()) == {**VISIBLE, "page": 1, "theme": "dark"}


def test_a_template_shows_none(store_class: type[SessionStore], key: str) -> None:
    template = Engine().from_string("{{ session.items }}")
    page = template.render(Context({"session": store_class(key)}))
    assert "cart" in page
    assert not any(name in page for name in hidden(store_class(key)))


@pytest.mark.usefixtures("key")
def test_a_session_that_goes_on_without_its_user_has_none(store_class: type[SessionStore]) -> None:
    leaves: list[Callable[[SessionStore], Any]] = [SessionStore.clear, lambda store: store.pop(SESSION_KEY)]
    for leave in leaves:
        store = store_class(a_visit(store_class))
        leave(store)
        store["page"] = 1
        store.save()
        assert hidden(store_class(store.session_key)) == set()


def test_a_session_without_a_user_has_none(store_class: type[SessionStore]) -> None:
    store = store_class()
    store["cart"] = 1
    store.save()
    assert hidden(store_class(store.session_key)) == set()
