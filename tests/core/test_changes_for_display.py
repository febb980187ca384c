"""A change in place that cannot be stored was made for display: it is neither saved nor an error."""

import logging
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path
from pytest_django import Settings

from gsession_django import SessionMap, SessionStore
from gsession_django.core import saving
from tests.support.engines import EACH_ENGINE, engine, new_session, stored
from tests.support.sites import DJANGOS, OURS, either_client, get

CART = {"7": {"price": "9.90", "quantity": 2}, "8": {"price": "5.00", "quantity": 1}}


class Product:
    """Stands for a model's object, which JSON does not take."""


def show(request: HttpRequest) -> HttpResponse:
    """Compute in the session's own dicts, as shops do for a template."""
    for line in request.session["cart"].values():
        line["price"] = Decimal(line["price"])
        line["total"] = line["price"] * line["quantity"]
        line["product"] = Product()
    return HttpResponse("shown")


def show_and_change(request: HttpRequest) -> HttpResponse:
    request.session["cart"]["7"]["quantity"] = 5
    request.session["cart"]["9"] = {"price": "1.00", "quantity": 1}
    del request.session["cart"]["8"]
    return show(request)


def show_and_set(request: HttpRequest) -> HttpResponse:
    show(request)
    request.session["seen"] = True
    return HttpResponse()


def show_and_pop(request: HttpRequest) -> HttpResponse:
    show_and_change(request)
    request.session.pop("message", None)
    return HttpResponse("shown")


urlpatterns = [path(view.__name__, view) for view in (show, show_and_change, show_and_set, show_and_pop)]


@pytest.fixture(autouse=True)
def _nothing_was_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_reported", set())


@pytest.fixture(params=[DJANGOS, OURS], ids=["Django's middleware", "ours"])
def middleware(request: pytest.FixtureRequest) -> Iterator[None]:
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[request.param], ALLOWED_HOSTS=["*"]):
        yield


@pytest.fixture(params=EACH_ENGINE)
def store_class(request: pytest.FixtureRequest, tmp_path: Path, middleware: None) -> Iterator[type[SessionStore]]:
    with engine(request.param, tmp_path) as found:
        yield found


def visit(store_class: type[SessionStore], client_class: type[Any], url: str) -> tuple[Any, dict[str, Any]]:
    """Return the answer to a visitor with a cart, and the session that is stored then."""
    key = new_session(store_class, {"cart": CART})
    client = client_class()
    client.cookies["sessionid"] = key
    response = get(client, url)
    return response, stored(store_class, key) or {}


@either_client
@pytest.mark.parametrize("every", [False, True], ids=["", "save every request"])
def test_a_page_that_computes_in_the_session_is_shown_and_changes_nothing(
    store_class: type[SessionStore], client_class: type[Any], every: bool
) -> None:
    with override_settings(SESSION_SAVE_EVERY_REQUEST=every):
        response, found = visit(store_class, client_class, "/show")
    assert response.content == b"shown"
    assert bool(response.cookies) == every
    assert found == {"cart": CART}


@either_client
@pytest.mark.parametrize("url", ["/show_and_change", "/show_and_pop"])
def test_values_that_can_be_stored_are_saved(
    store_class: type[SessionStore], client_class: type[Any], url: str
) -> None:
    """A key that the page pops, and that is not there, asks for no save."""
    response, found = visit(store_class, client_class, url)
    assert response.content == b"shown"
    # The price of a new line has no stored text to fall back on.
    assert found == {"cart": {"7": {"price": "9.90", "quantity": 5}, "9": {"quantity": 1}}}


def test_the_log_names_the_key_once_and_the_remedy(
    store_class: type[SessionStore], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        visit(store_class, Client, "/show")
    (record,) = [record for record in caplog.records if record.name == "gsession_django"]
    assert record.levelno == logging.WARNING
    assert "The session value 'cart' was changed in place to one that cannot be stored" in record.getMessage()
    assert "copy.deepcopy(request.session['cart'])" in record.getMessage()


def test_a_request_that_also_sets_a_key_is_a_type_error_as_on_django(store_class: type[SessionStore]) -> None:
    with pytest.raises(TypeError, match=r"session value 'cart' cannot be stored by SESSION_SERIALIZER = .*JSONSerial"):
        visit(store_class, Client, "/show_and_set")


def test_a_save_that_the_view_asks_for_is_a_type_error_as_on_django(store_class: type[SessionStore]) -> None:
    store = store_class(new_session(store_class, {"cart": CART}))
    store["cart"]["7"]["price"] = Decimal("9.90")
    with pytest.raises(TypeError, match="session value 'cart' cannot be stored"):
        store.save()


def test_a_value_that_was_set_behind_the_sessions_back_is_not_saved_as_on_django(
    store_class: type[SessionStore],
) -> None:
    store = store_class(new_session(store_class, {"cart": CART}))
    store._session["thing"] = Product()
    with store.closed():
        assert not store.modified


@pytest.mark.parametrize("value", [Decimal("1.5"), {"a": [Decimal("1.5")]}, b"bytes", {("a", 1): 2}])
def test_setting_a_value_that_cannot_be_stored_is_a_type_error_that_names_the_key(
    store_class: type[SessionStore], value: Any
) -> None:
    for store in (store_class(), store_class(new_session(store_class, {"price": 1}))):
        store["price"] = value
        with pytest.raises(TypeError, match="session value 'price' cannot be stored"):
            store.save()


def test_a_key_that_cannot_be_stored_is_named(store_class: type[SessionStore]) -> None:
    store: Any = store_class(new_session(store_class, {"price": 1}))
    store["price", 7] = 2
    with pytest.raises(TypeError, match=r"session key \('price', 7\) cannot be stored"):
        store.save()


class TestSessionMap:
    def test_a_dict_that_contains_itself_keeps_its_stored_value_there(self) -> None:
        session = SessionMap({"menu": {"title": "Home", "child": {"title": "Shop"}}})
        menu = session["menu"]
        menu["child"]["parent"] = menu
        assert not session.altered()
        menu["title"] = "Start"
        save = session.saving(explicit=False)
        assert save.value_of("menu") == {"title": "Start", "child": {"title": "Shop"}}

    def test_a_list_that_cannot_be_stored_stays_as_it_was(self) -> None:
        session = SessionMap({"lines": [{"price": "1.00"}, {"price": "2.00"}]})
        session["lines"].reverse()
        session["lines"][0]["price"] = Decimal("2.00")
        assert not session.altered()
        assert not session.saving(explicit=False).has_changes()

    def test_after_a_save_the_stored_value_counts(self) -> None:
        session = SessionMap({"cart": {"7": {"price": "1.00"}}})
        session["cart"]["7"].update(price=Decimal("1.00"), quantity=2)
        assert session.altered()
        with session.saving(explicit=False) as save:
            assert session.as_dict() == {"cart": {"7": {"price": "1.00", "quantity": 2}}}
            assert session.changed == {"cart": {"7": {"price": "1.00", "quantity": 2}}}
            session.saved(save)
        assert not session.altered()
        session["cart"]["7"]["quantity"] = 3
        assert session.altered()

    def test_reading_a_value_that_cannot_be_encoded_again_changes_nothing(self, settings: Settings) -> None:
        settings.SESSION_SERIALIZER = f"{__name__}.OneWay"
        session = SessionMap({"thing": {"a": Decimal(1)}, "cart": {"apple": 1}})
        assert session["thing"]["a"] == 1
        session["cart"]["pear"] = 1
        save = session.saving(explicit=False)
        assert (session.altered(), list(save.changed)) == (True, ["cart"])


class OneWay:
    """Reads values that it cannot write."""

    def dumps(self, obj: Any) -> bytes:
        if "Decimal" in repr(obj):
            raise TypeError("Decimal")
        return repr(obj).encode()

    def loads(self, data: bytes) -> Any:
        return eval(data)
