"""How often a request has one of its values encoded."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path

from gsession_django import SessionStore, serializers
from tests.support.engines import EACH_ENGINE, engine, new_session, stored
from tests.support.sites import DJANGOS, OURS

CART = {str(number): {"price": "9.90", "quantity": number} for number in range(100)}


def read(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.session["cart"]["7"]["price"])


def change(request: HttpRequest) -> HttpResponse:
    request.session["cart"]["7"]["quantity"] += 1
    return HttpResponse()


def replace(request: HttpRequest) -> HttpResponse:
    request.session["cart"] = CART | {"new": 1}
    return HttpResponse()


urlpatterns = [path(view.__name__, view) for view in (read, change, replace)]


@pytest.fixture(params=EACH_ENGINE)
def store_class(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[SessionStore]]:
    with engine(request.param, tmp_path) as found:
        yield found


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Collect the encodings of everything that has the cart in it."""
    made: list[bytes] = []
    (serializer,) = [serializers._serializer or serializers._load()]
    dumps = serializer.dumps

    def recording(value: Any) -> bytes:
        data = dumps(value)
        if b'"7":{"price"' in data:
            made.append(data)
        return data

    monkeypatch.setattr(serializer, "dumps", recording)
    return made


def encodings(encoded: list[bytes], use: Callable[[], Any]) -> int:
    before = len(encoded)
    use()
    return len(encoded) - before


def visit(key: str, url: str, middleware: str) -> None:
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[middleware], ALLOWED_HOSTS=["*"]):
        client = Client()
        client.cookies["sessionid"] = key
        assert client.get(url).status_code == 200


# Another program may have written the large value, so the copy that was read is encoded too.


def test_a_dict_that_is_changed_in_place_is_encoded_to_hand_it_out_and_to_store_it(
    store_class: type[SessionStore], encoded: list[bytes]
) -> None:
    key = new_session(store_class, {"cart": CART, "other": 1})
    expected = 1 if store_class.__module__.endswith("memory") else 2
    assert encodings(encoded, lambda: visit(key, "/change", OURS)) == expected
    # Django's middleware may still use the session after it reads `modified`.
    assert encodings(encoded, lambda: visit(key, "/change", DJANGOS)) == expected + 1
    found = stored(store_class, key)
    assert found is not None
    assert found["cart"]["7"]["quantity"] == 9


@pytest.mark.parametrize("middleware", [DJANGOS, OURS])
def test_a_large_dict_that_is_only_read_is_encoded_once(
    store_class: type[SessionStore], encoded: list[bytes], middleware: str
) -> None:
    key = new_session(store_class, {"cart": CART, "other": 1})
    assert encodings(encoded, lambda: visit(key, "/read", middleware)) == 1


@pytest.mark.parametrize("middleware", [DJANGOS, OURS])
def test_a_dict_that_is_assigned_and_the_one_before_are_each_encoded_once(
    store_class: type[SessionStore], encoded: list[bytes], middleware: str
) -> None:
    key = new_session(store_class, {"cart": CART, "other": 1})
    assert encodings(encoded, lambda: visit(key, "/replace", middleware)) <= 2
    assert (stored(store_class, key) or {})["cart"] == CART | {"new": 1}
