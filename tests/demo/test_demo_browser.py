"""The test site in a real browser: Chromium, headless, driven through chromedriver."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.demo.browser import Browser, opened
from tests.demo.support import Serve, Server

pytestmark = pytest.mark.once


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve("gsession_django.backends.file")


@pytest.fixture
def browser(server: Server, tmp_path: Path) -> Iterator[Browser]:
    with opened(server.url, tmp_path) as browser:
        yield browser


def test_right_password_signs_in_and_the_button_signs_out(browser: Browser) -> None:
    browser.sign_in("demo")
    assert browser.one("#user").text == "demo"
    browser.one("#sign-out").click()
    browser.one("a[href='/sign-in/']")
    assert browser.one("#visitor").text == "not signed in"


def test_wrong_password_is_reported(browser: Browser) -> None:
    browser.sign_in("wrong")
    assert "do not match" in browser.one("#sign-in-error").text
    assert browser.one("#id_username").get_attribute("value") == "demo"
    assert not browser.all("#user")


def test_cart_is_filled_changed_and_emptied(browser: Browser) -> None:
    browser.open("/cart/")
    browser.one("#add-assam").click()
    browser.one("[data-sku=assam][data-quantity='1']")
    browser.one("#add-assam").click()
    browser.one("[data-sku=assam][data-quantity='2']")
    browser.one("#add-sencha").click()
    browser.one("[data-sku=sencha][data-quantity='1']")
    assert browser.one("#total").text == "€ 22.80"

    quantity = browser.one("#quantity-assam")
    quantity.clear()
    quantity.send_keys("5")
    browser.one("[data-sku=assam] [name=change]").click()
    browser.one("[data-sku=assam][data-quantity='5']")
    assert browser.one("#cart-count").text.startswith("6")

    browser.one("[data-sku=sencha] [name=remove]").click()
    browser.wait_until_gone("[data-sku=sencha]")
    assert [line.get_attribute("data-sku") for line in browser.all(".lines li")] == ["assam"]

    browser.one("#empty").click()
    browser.one(".nothing")
    assert not browser.all(".lines li")


def test_cart_survives_signing_in(browser: Browser) -> None:
    browser.open("/cart/")
    browser.one("#add-oolong").click()
    browser.one("[data-sku=oolong]")
    browser.sign_in("demo")
    browser.wait_for_path("/")
    browser.open("/session/")
    keys = {row.get_attribute("data-key") for row in browser.all("[data-key]")}
    assert {"cart", "_auth_user_id"} <= keys
    assert browser.one("#session-id").get_attribute("data-id")
    browser.open("/cart/")
    assert browser.all("[data-sku=oolong][data-quantity='1']")


def test_parallel_page_shows_what_survived(browser: Browser) -> None:
    browser.open("/parallel/")
    browser.one("#send").click()
    browser.one("#run[data-state=done]")
    for kind in ("keys", "dict"):
        ours = f".result[data-side=site][data-kind={kind}]"
        assert browser.one(f"{ours} .verdict").text == "8 of 8 survived"
        assert len(browser.all(f"{ours} .lamp[data-survived=true]")) == 8
        theirs = f".result[data-side=django][data-kind={kind}]"
        survived = int(browser.one(theirs).get_attribute("data-survived") or 0)
        assert 1 <= survived < 8
        assert len(browser.all(f"{theirs} .lamp[data-survived=true]")) == survived
        assert len(browser.all(f"{theirs} .lamp[data-survived=false]")) == 8 - survived


def test_parallel_page_can_be_run_again(browser: Browser) -> None:
    browser.open("/parallel/")
    for _ in range(2):
        browser.one("#send").click()
        browser.one("#run[data-state=running]")
        browser.one("#run[data-state=done]")
    assert [verdict.text for verdict in browser.all(".site .verdict")] == ["8 of 8 survived"] * 2


def test_every_page_loads_without_an_error(browser: Browser) -> None:
    browser.sign_in("demo")
    browser.one("#user")
    for path in ("/", "/cart/", "/session/", "/parallel/", "/admin/"):
        browser.open(path)
        browser.one("h1")
        assert browser.errors() == []
