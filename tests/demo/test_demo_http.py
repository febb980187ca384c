"""The test site over HTTP: a real server, a real visitor, no browser."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.demo.support import Page, Serve, Server, Visitor

pytestmark = pytest.mark.once

REQUESTS = 8
TWO_WEEKS = 14 * 24 * 60 * 60


def cart_of(visitor: Visitor) -> dict[str, int]:
    lines = re.findall(r'data-sku="(\w+)" data-quantity="(\d+)"', visitor.get("/cart/").body)
    return {sku: int(quantity) for sku, quantity in lines}


def keys_of(visitor: Visitor) -> set[str]:
    return set(re.findall(r'data-key="(\w+)"', visitor.get("/session/").body))


def start_run(visitor: Visitor, side: str, kind: str) -> str:
    page = visitor.post(f"/parallel/{side}/{kind}/")
    assert page.status == 201
    run: str = json.loads(page.body)["run"]
    return run


def send_all(visitor: Visitor, side: str, kind: str, run: str) -> list[Page]:
    paths = [f"/parallel/{side}/{kind}/{run}/{slot}/" for slot in range(REQUESTS)]
    with ThreadPoolExecutor(REQUESTS) as threads:
        return list(threads.map(visitor.post, paths))


def survivors(visitor: Visitor, side: str, kind: str) -> list[int]:
    result: dict[str, Any] = json.loads(visitor.get(f"/parallel/{side}/{kind}/").body)
    assert result["requests"] == REQUESTS
    survived: list[int] = result["survived"]
    return survived


# Signing in and out


def test_right_password_signs_in(visitor: Visitor) -> None:
    page = visitor.sign_in()
    assert page.url == f"{visitor.url}/"
    assert "signed in as demo" in page.body
    assert "Welcome, demo." in page.body


def test_wrong_password_does_not(visitor: Visitor) -> None:
    page = visitor.sign_in("wrong")
    assert "do not match" in page.body
    assert "sessionid" not in visitor.cookies
    assert "not signed in" in visitor.get("/").body


def test_signing_in_changes_the_session_key_and_keeps_the_cart(visitor: Visitor) -> None:
    visitor.post("/cart/add/", sku="assam")
    before = visitor.cookies["sessionid"]
    visitor.sign_in()
    assert visitor.cookies["sessionid"] != before
    assert cart_of(visitor) == {"assam": 1}


def test_the_session_key_from_before_signing_in_opens_nothing(visitor: Visitor) -> None:
    visitor.post("/cart/add/", sku="assam")
    before = visitor.cookies["sessionid"]
    visitor.sign_in()
    for cookie in visitor.jar:
        if cookie.name == "sessionid":
            cookie.value = before
    assert keys_of(visitor) == set()


def test_signing_out_ends_the_session(visitor: Visitor) -> None:
    visitor.sign_in()
    visitor.post("/cart/add/", sku="assam")
    page = visitor.post("/sign-out/")
    assert "not signed in" in page.body
    assert "sessionid" not in visitor.cookies
    assert cart_of(visitor) == {}


def test_signing_out_needs_a_post(visitor: Visitor) -> None:
    visitor.sign_in()
    assert visitor.get("/sign-out/").status == 405
    assert "signed in as demo" in visitor.get("/").body


def test_demo_user_reaches_the_admin(visitor: Visitor) -> None:
    assert "/admin/login/" in visitor.get("/admin/").url
    visitor.sign_in()
    page = visitor.get("/admin/auth/user/")
    assert page.status == 200
    assert page.url.endswith("/admin/auth/user/")


def test_setting_up_again_changes_nothing(server: Server, visitor: Visitor) -> None:
    visitor.sign_in()
    assert server.manage("demo_setup") == ("Sign in with the user name 'demo' and the password 'demo'.\n")
    assert "signed in as demo" in visitor.get("/").body


# The cart


def test_cart_changed_in_place_is_saved(visitor: Visitor) -> None:
    visitor.post("/cart/add/", sku="assam")
    visitor.post("/cart/add/", sku="assam")
    page = visitor.post("/cart/add/", sku="sencha")
    assert "Sencha is in the cart." in page.body
    assert cart_of(visitor) == {"assam": 2, "sencha": 1}


def test_quantity_changes_and_zero_removes(visitor: Visitor) -> None:
    visitor.post("/cart/add/", sku="assam")
    visitor.post("/cart/add/", sku="sencha")
    visitor.post("/cart/change/", sku="assam", quantity=7)
    assert cart_of(visitor) == {"assam": 7, "sencha": 1}
    visitor.post("/cart/change/", sku="assam", quantity=0)
    assert cart_of(visitor) == {"sencha": 1}


def test_removing_an_item_leaves_the_others(visitor: Visitor) -> None:
    visitor.post("/cart/add/", sku="assam")
    visitor.post("/cart/add/", sku="sencha")
    visitor.post("/cart/remove/", sku="assam")
    assert cart_of(visitor) == {"sencha": 1}


def test_emptied_cart_is_empty(visitor: Visitor) -> None:
    visitor.post("/cart/add/", sku="assam")
    page = visitor.post("/cart/empty/")
    assert "The cart is empty." in page.body
    assert cart_of(visitor) == {}


def test_a_message_is_shown_once(visitor: Visitor) -> None:
    assert "Assam is in the cart." in visitor.post("/cart/add/", sku="assam").body
    assert "Assam is in the cart." not in visitor.get("/cart/").body


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("add", {}, 400),
        ("add", {"sku": ""}, 404),
        ("add", {"sku": "coffee"}, 404),
        ("add", {"sku": "\0"}, 404),
        ("remove", {"sku": "coffee"}, 404),
        ("change", {"sku": "assam"}, 400),
        ("change", {"sku": "assam", "quantity": "many"}, 400),
        ("change", {"sku": "assam", "quantity": "1.5"}, 400),
        ("change", {"sku": "assam", "quantity": -1}, 400),
        ("change", {"sku": "assam", "quantity": 100}, 400),
        ("change", {"sku": "assam", "quantity": "9" * 5000}, 400),
        ("change", {"sku": "sencha", "quantity": 1}, 404),
    ],
)
def test_cart_refuses_bad_input(visitor: Visitor, path: str, fields: dict[str, object], status: int) -> None:
    visitor.post("/cart/add/", sku="assam")
    assert visitor.post(f"/cart/{path}/", **fields).status == status
    assert cart_of(visitor) == {"assam": 1}


# The session page


def test_a_visitor_who_only_looks_gets_no_session(visitor: Visitor) -> None:
    for path in ("/", "/cart/", "/session/", "/sign-in/", "/parallel/"):
        assert visitor.get(path).status == 200
    assert "sessionid" not in visitor.cookies
    assert "none: no session is stored" in visitor.get("/session/").body


def test_session_page_lists_the_keys(visitor: Visitor) -> None:
    visitor.post("/cart/add/", sku="assam")
    assert keys_of(visitor) == {"cart"}
    visitor.sign_in()
    assert keys_of(visitor) == {
        "cart",
        "_auth_user_id",
        "_auth_user_backend",
        "_auth_user_hash",
    }


def test_session_page_shows_the_storage_id_and_not_the_session_key(visitor: Visitor) -> None:
    visitor.post("/cart/add/", sku="assam")
    body = visitor.get("/session/").body
    found = re.search(r'data-id="([^"]+)"', body)
    assert found
    assert found[1] != visitor.cookies["sessionid"]
    assert visitor.cookies["sessionid"] not in body


def test_session_page_names_the_engine(server: Server, visitor: Visitor) -> None:
    assert server.engine in visitor.get("/session/").body


def test_file_engine_tells_how_long_the_session_lives(serve: Serve) -> None:
    visitor = Visitor(serve("gsession_django.backends.file").url)
    visitor.post("/cart/add/", sku="assam")
    found = re.search(r'data-seconds="([\d.]+)"', visitor.get("/session/").body)
    assert found
    assert TWO_WEEKS - 600 < float(found[1]) <= TWO_WEEKS


def test_a_storage_may_not_tell_how_long_the_session_lives(serve: Serve) -> None:
    visitor = Visitor(serve("testproject.sessions").url)
    visitor.post("/cart/add/", sku="assam")
    assert "the storage does not tell" in visitor.get("/session/").body


@pytest.mark.parametrize("key", ["", "unknownunknownunknownunknown1234", "../../etc/passwd", "x" * 10_000])
def test_an_invented_session_key_opens_no_session(visitor: Visitor, key: str) -> None:
    visitor.post("/cart/add/", sku="assam")
    for cookie in visitor.jar:
        if cookie.name == "sessionid":
            cookie.value = key
    assert keys_of(visitor) == set()
    assert visitor.post("/cart/add/", sku="sencha").status == 200
    assert visitor.cookies["sessionid"] != key
    assert cart_of(visitor) == {"sencha": 1}


# Parallel requests


@pytest.mark.parametrize("kind", ["keys", "dict"])
def test_eight_parallel_requests_all_survive(visitor: Visitor, kind: str) -> None:
    run = start_run(visitor, "site", kind)
    assert survivors(visitor, "site", kind) == []
    assert [page.status for page in send_all(visitor, "site", kind, run)] == [200] * REQUESTS
    assert survivors(visitor, "site", kind) == list(range(REQUESTS))


@pytest.mark.parametrize("kind", ["keys", "dict"])
def test_django_file_engine_loses_most_of_them(visitor: Visitor, kind: str) -> None:
    run = start_run(visitor, "django", kind)
    assert [page.status for page in send_all(visitor, "django", kind, run)] == [200] * REQUESTS
    assert 1 <= len(survivors(visitor, "django", kind)) < REQUESTS


def test_parallel_requests_leave_the_rest_of_the_session_alone(visitor: Visitor) -> None:
    visitor.sign_in()
    visitor.post("/cart/add/", sku="assam")
    send_all(visitor, "site", "dict", start_run(visitor, "site", "dict"))
    assert cart_of(visitor) == {"assam": 1}
    assert "signed in as demo" in visitor.get("/").body


def test_a_new_run_starts_from_nothing(visitor: Visitor) -> None:
    for side in ("site", "django"):
        send_all(visitor, side, "keys", start_run(visitor, side, "keys"))
        start_run(visitor, side, "keys")
        assert survivors(visitor, side, "keys") == []


def test_a_finished_run_is_forgotten(visitor: Visitor) -> None:
    run = start_run(visitor, "site", "keys")
    send_all(visitor, "site", "keys", run)
    assert {page.status for page in send_all(visitor, "site", "keys", run)} == {404}


def test_a_request_of_a_run_is_made_once(visitor: Visitor) -> None:
    run = start_run(visitor, "site", "keys")
    assert visitor.post(f"/parallel/site/keys/{run}/0/").status == 200
    assert visitor.post(f"/parallel/site/keys/{run}/0/").status == 404


def test_a_run_belongs_to_the_session_that_started_it(server: Server, visitor: Visitor) -> None:
    run = start_run(visitor, "site", "keys")
    stranger = Visitor(server.url)
    assert stranger.post(f"/parallel/site/keys/{run}/0/").status == 404
    start_run(stranger, "site", "keys")
    assert stranger.post(f"/parallel/site/keys/{run}/0/").status == 404


@pytest.mark.parametrize(
    "path",
    [
        "site/keys/unknown/0",
        "site/keys/{run}/8",
        "site/keys/{run}/-1",
        "site/keys/{run}/first",
        "site/keys/{run}/" + "9" * 100,
        "site/keys/{run}",
        "site/dict/{run}/0",
        "django/keys/{run}/0",
        "nowhere/keys/{run}/0",
        "nowhere/keys",
        "site/nothing",
    ],
)
def test_parallel_pages_refuse_bad_input(visitor: Visitor, path: str) -> None:
    run = start_run(visitor, "site", "keys")
    assert visitor.post(f"/parallel/{path.format(run=run)}/").status == 404
    assert survivors(visitor, "site", "keys") == []


def test_a_request_of_a_run_needs_a_post(visitor: Visitor) -> None:
    run = start_run(visitor, "site", "keys")
    assert visitor.get(f"/parallel/site/keys/{run}/0/").status == 405


# The site on Django's own engines


@pytest.fixture(params=["django.contrib.sessions.backends.file", "django.contrib.sessions.backends.db"])
def server_of_django(request: pytest.FixtureRequest, serve: Serve) -> Server:
    return serve(request.param)


def test_site_runs_on_djangos_engines(server_of_django: Server) -> None:
    visitor = Visitor(server_of_django.url)
    assert "signed in as demo" in visitor.sign_in().body
    visitor.post("/cart/add/", sku="assam")
    assert cart_of(visitor) == {"assam": 1}
    page = visitor.get("/session/")
    assert "this engine has no storage id" in page.body
    assert "the storage does not tell" in page.body
    assert "not-in-place" in visitor.get("/cart/").body


def test_djangos_engines_lose_parallel_changes(server_of_django: Server) -> None:
    visitor = Visitor(server_of_django.url)
    send_all(visitor, "site", "keys", start_run(visitor, "site", "keys"))
    assert 1 <= len(survivors(visitor, "site", "keys")) < REQUESTS
