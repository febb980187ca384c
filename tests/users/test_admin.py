"""The sessions in the admin: who may see and end them, and what is never shown."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db.models import QuerySet
from django.test import override_settings

from gsession_django import StorageUnavailable
from gsession_django.backends import memory
from gsession_django.users import sessions_of
from tests.users.site import ENGINE, FIREFOX, SAFARI, SECRET, Device
from tests.users.test_pages import sessions_on, text_of

pytestmark = pytest.mark.usefixtures("no_sessions")

LIST, END, DATA, COUNT = (f"/admin/gsession_django/session/{page}" for page in ("", "end/", "data/", "count/"))
ALL_PERMISSIONS = ("view_session", "delete_session", "view_session_data")


def staff(*permissions: str, name: str = "eve") -> Device:
    """Return the browser of somebody of the staff who has these permissions."""
    user, _ = User.objects.get_or_create(username=name, is_staff=True)
    user.user_permissions.set(permissions_named(*permissions))
    return Device().signed_in(name)


def permissions_named(*names: str) -> QuerySet[Permission]:
    return Permission.objects.filter(content_type__app_label="gsession_django", codename__in=names)


def entries() -> "QuerySet[Any]":
    """Return the log of the admin, whose model can be imported only once the admin is installed."""
    log: QuerySet[Any] = apps.get_model("admin", "LogEntry")._default_manager.all()
    return log


def id_of(name: str) -> str:
    return str(User.objects.get(username=name).pk)


def statuses(device: Device, user: str, handle: str) -> dict[str, int]:
    get, post = device.client.get, device.client.post
    return {
        "list": get(LIST, {"user": user}).status_code,
        "end": post(END, {"user": user, "session": handle, "confirmed": "yes"}).status_code,
        "data": get(DATA, {"user": user, "session": handle}).status_code,
        "count": get(COUNT).status_code,
    }


class TestPermissions:
    @pytest.mark.parametrize(
        ("permissions", "allowed"),
        [
            ((), set()),
            (("view_session",), {"list", "count"}),
            (("delete_session",), set()),
            (("view_session_data",), set()),
            (("delete_session", "view_session_data"), set()),
            (("view_session", "delete_session"), {"list", "count", "end"}),
            (("view_session", "view_session_data"), {"list", "count", "data"}),
            (("add_session", "change_session"), set()),
        ],
    )
    def test_each_page_needs_its_permission(self, permissions: tuple[str, ...], allowed: set[str]) -> None:
        ada, eve = Device().signed_in("ada"), staff(*permissions)
        found = statuses(eve, id_of("ada"), ada.session.handle)
        assert {page for page, status in found.items() if status != 403} == allowed
        assert (ada.user == "nobody") == ("end" in allowed)
        for url in ("/admin/", "/admin/gsession_django/"):
            page = eve.client.get(url).content.decode()
            assert (f'href="{LIST}"' in page) == ("list" in allowed)
            assert ("Session engines" in page) == ("list" in allowed)

    @pytest.mark.parametrize("name", ["ada", ""])
    def test_whoever_is_not_staff_is_sent_to_the_sign_in(self, name: str) -> None:
        bob, visitor = Device().signed_in("bob"), Device()
        if name:
            User.objects.get(username=name).user_permissions.set(permissions_named(*ALL_PERMISSIONS))
            visitor.signed_in(name)
        assert set(statuses(visitor, id_of("bob"), bob.session.handle).values()) == {302}
        assert bob.user == "bob"

    def test_buttons_and_links_are_only_for_those_who_may(self) -> None:
        Device().signed_in("ada")
        page = staff("view_session").page(LIST, q="ada")
        assert not re.search(r'type="checkbox"|name="all"|name="chosen"|data/\?', page)
        page = staff(*ALL_PERMISSIONS).page(LIST, q="ada")
        assert re.search(r'type="checkbox".*data/\?.*name="chosen".*name="all"', page, re.DOTALL)

    def test_the_pages_of_the_model_are_not_there(self) -> None:
        eve = staff(*ALL_PERMISSIONS, "add_session", "change_session")
        for url in (f"{LIST}add/", f"{LIST}x/change/", f"{LIST}x/delete/", f"{LIST}x/history/"):
            assert eve.client.get(url).status_code == 404


class TestSearch:
    def test_a_user_is_found_by_name_part_of_it_and_id(self) -> None:
        Device(SAFARI).signed_in("ada")
        eve = staff("view_session")
        for query in ("ada", "ADA", " ad ", id_of("ada")):
            text = text_of(eve.page(LIST, q=query))
            assert "Sessions of ada" in text
            assert "Mobile Safari 18 on iOS just now from 192.0.2.1" in text

    def test_several_users_are_offered(self) -> None:
        page = staff("view_session").page(LIST, q="b")
        assert sessions_on(page) == []
        User.objects.get_or_create(username="bobby")
        page = staff("view_session").page(LIST, q="bob")
        assert f'<a href="?user={id_of("bob")}">bob</a>' in page
        assert f'<a href="?user={id_of("bobby")}">bobby</a>' in page
        User.objects.filter(username="bobby").delete()

    def test_the_sessions_of_a_user_who_was_deleted_are_found_by_id(self) -> None:
        User.objects.create_user("gone")
        device, user_id = Device().signed_in("gone"), id_of("gone")
        handle = device.session.handle
        User.objects.filter(username="gone").delete()
        eve = staff("view_session", "delete_session")
        page = eve.page(LIST, q=user_id)
        assert sessions_on(page) == [handle]
        assert f"Sessions of user {user_id}, who does not exist" in page
        assert "Ended 1 session." in eve.post(END, user=user_id, session=handle, confirmed="yes")
        assert sessions_of(user_id) == []

    @pytest.mark.parametrize(
        "query", ["nobody's", "9" * 40, "-1", "\x00", "é" * 3000, "%", "<script>alert(1)</script>"]
    )
    def test_what_nobody_is_called_finds_nobody(self, query: str) -> None:
        eve = staff(*ALL_PERMISSIONS)
        page = eve.page(LIST, q=query)
        assert "<script>alert" not in page
        assert sessions_on(page) == sessions_on(eve.page(LIST, user=query)) == []
        eve.post(END, user=query, session=query, confirmed="yes")
        assert eve.client.get(DATA, {"user": query, "session": query}).status_code == 302

    def test_an_engine_that_cannot_list_sessions_says_so(self) -> None:
        eve = staff(*ALL_PERMISSIONS)
        with override_settings(SESSION_ENGINE="tests.support.engine_by_keys"):
            eve.signed_in("eve")
            page = eve.page(LIST, user=id_of("ada"))
            assert "cannot list the sessions of a user: it has no sessions_of()" in text_of(page)
            assert "No session was chosen" in eve.post(END, user=id_of("ada"), all="yes")


class TestWhatIsNotShown:
    def test_no_page_has_a_key_an_id_or_content(self) -> None:
        ada, bob = Device().signed_in("ada"), Device().signed_in("bob")
        eve = staff("view_session", "delete_session")
        chosen = {"user": id_of("ada"), "session": ada.session.handle}
        pages = [
            *(eve.page("/admin/"), eve.page(LIST), eve.page(LIST, q="ada"), eve.page(COUNT)),
            *(eve.post(END, **chosen), eve.post(END, user=id_of("ada"), all="yes")),
            *(eve.post(END, **chosen, confirmed="yes"), eve.page("/admin/")),
        ]
        for page in pages:
            for device in (bob, eve):
                assert device.key not in page
                assert device.session.session_id not in page
            assert SECRET not in page
            assert ada.key not in page

    def test_content_is_for_those_who_may_see_it_without_what_is_secret(self) -> None:
        ada, eve = Device().signed_in("ada"), staff("view_session", "view_session_data")
        page = eve.page(DATA, user=id_of("ada"), session=ada.session.handle)
        rows = dict(re.findall(r'<th scope="row">(.*?)</th><td><code>(.*?)</code></td>', page))
        assert rows["cart"] == f"&#x27;{SECRET}&#x27;"
        assert SECRET not in rows["api_token"]
        assert not any(key.startswith("_gsession") for key in rows)
        assert ada.client.session["_auth_user_hash"] not in page
        assert ada.key not in page
        assert ada.session.session_id not in page

    def test_what_is_shown_of_content_is_text_and_not_touched(self) -> None:
        ada, eve = Device().signed_in("ada"), staff("view_session", "view_session_data")
        session = ada.client.session
        session["<b>"] = "<script>alert(1)</script>" + "x" * 5000
        session.set_expiry(500)
        session.save()
        before = ada.session.expires
        page = eve.page(DATA, user=id_of("ada"), session=ada.session.handle)
        assert "<script>alert" not in page
        assert "<b>" not in page
        assert "x" * 501 not in page
        after = ada.session.expires
        assert before is not None
        assert after is not None
        assert abs((after - before).total_seconds()) < 1

    def test_a_hostile_user_agent_is_text(self) -> None:
        Device("<img src=x onerror=alert(1)>").signed_in("ada")
        assert "<img src=x" not in staff("view_session").page(LIST, q="ada")


class TestEnding:
    @pytest.fixture(autouse=True)
    def _nothing_logged(self) -> Iterator[None]:
        entries().delete()
        yield
        entries().delete()

    def test_one_is_ended_once_that_is_confirmed(self) -> None:
        one, two = Device().signed_in("ada"), Device(SAFARI).signed_in("ada")
        eve = staff("view_session", "delete_session")
        chosen = {"user": id_of("ada"), "session": two.session.handle}
        page = eve.post(END, **chosen)
        assert "These sessions of ada will end: Mobile Safari 18 on iOS" in text_of(page)
        assert (one.user, two.user) == ("ada", "ada")
        assert "Ended 1 session." in eve.post(END, **chosen, confirmed="yes")
        assert (one.user, two.user) == ("ada", "nobody")

    def test_several_are_ended(self) -> None:
        devices = [Device().signed_in("ada") for _ in range(3)]
        handles = [device.session.handle for device in devices[:2]]
        eve = staff("view_session", "delete_session")
        assert "Ended 2 sessions." in eve.post(END, user=id_of("ada"), session=handles, confirmed="yes")
        assert [device.user for device in devices] == ["nobody", "nobody", "ada"]

    def test_all_of_a_user_are_ended(self) -> None:
        devices, bob = [Device(FIREFOX).signed_in("ada") for _ in range(3)], Device().signed_in("bob")
        eve = staff("view_session", "delete_session")
        assert "All sessions of ada will end" in eve.post(END, user=id_of("ada"), all="yes")
        assert [device.user for device in devices] == ["ada"] * 3
        assert "Ended 3 sessions." in eve.post(END, user=id_of("ada"), all="yes", confirmed="yes")
        assert [device.user for device in devices] == ["nobody"] * 3
        assert (bob.user, eve.user) == ("bob", "eve")

    def test_it_is_in_the_history_of_the_user(self) -> None:
        Device().signed_in("ada")
        eve = staff("view_session", "delete_session")
        eve.post(END, user=id_of("ada"), all="yes")
        assert not entries().exists()
        eve.post(END, user=id_of("ada"), all="yes", confirmed="yes")
        entry = entries().get()
        assert (entry.user.username, entry.object_id, entry.object_repr) == ("eve", id_of("ada"), "ada")
        assert (entry.is_change(), entry.change_message) == (True, "Ended 1 session.")
        assert entry.content_type is not None
        assert entry.content_type.model_class() is User

    def test_a_handle_of_another_user_ends_nothing(self) -> None:
        Device().signed_in("ada")
        bob, eve = Device().signed_in("bob"), staff("view_session", "delete_session")
        page = eve.post(END, user=id_of("ada"), session=bob.session.handle, confirmed="yes")
        assert "No session was chosen" in page
        assert bob.user == "bob"
        assert not entries().exists()

    @override_settings(SESSION_SAVE_EVERY_REQUEST=True, GSESSION={"TOUCH_INTERVAL": 0})  # it cannot be saved any more
    def test_an_administrator_who_ends_their_own_session_is_signed_out(self) -> None:
        for fields in ({"all": "yes"}, {}):
            eve = staff("view_session", "delete_session")
            other = Device().signed_in("eve")
            response = eve.client.post(
                END, {"user": id_of("eve"), "session": eve.session.handle, "confirmed": "yes", **fields}
            )
            assert response.status_code == 302
            assert eve.user == "nobody"
            assert (other.user == "nobody") == bool(fields)

    def test_a_link_ends_nothing_and_neither_does_a_form_of_another_site(self) -> None:
        ada = Device().signed_in("ada")
        eve = staff("view_session", "delete_session")
        fields = {"user": id_of("ada"), "all": "yes", "confirmed": "yes"}
        assert eve.client.get(END, fields).status_code == 405
        eve.client.handler.enforce_csrf_checks = True
        assert eve.client.post(END, fields).status_code == 403
        assert ada.user == "ada"


class TestCounts:
    def test_live_sessions_are_counted_by_engine(self) -> None:
        Device().signed_in("ada")
        eve = staff("view_session")
        engines: dict[str, Any] = {"gsession_django.backends.file": {}, "testproject.sessions": {}}
        fallback = "django.contrib.sessions.backends.file"
        with override_settings(GSESSION={"ENGINES": engines, "FALLBACK_ENGINE": fallback}):
            page = eve.page(COUNT)
        rows = dict(re.findall(r'<th scope="row"><code>(.*?)</code></th><td>(.*?)</td>', page))
        assert rows == {
            ENGINE: "2",
            "gsession_django.backends.file": "0",
            "testproject.sessions": "This engine cannot list its sessions, and so cannot count them.",
            fallback: ("This engine is not part of gsession_django. Its sessions cannot be counted here."),
        }

    def test_an_engine_that_does_not_answer_is_said_not_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail() -> Iterator[str]:
            raise StorageUnavailable("away")

        eve = staff("view_session")
        monkeypatch.setattr(memory.SessionStore.get_storage(), "ids", fail)
        assert "The storage does not answer." in eve.page(COUNT)


def test_the_middleware_answers_if_the_sessions_cannot_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(user_id: str) -> list[str]:
        raise StorageUnavailable("the index is away")

    ada, eve = Device().signed_in("ada"), staff(*ALL_PERMISSIONS)
    monkeypatch.setattr(memory.SessionStore.get_storage(), "sessions_of", fail)
    assert eve.client.get(LIST, {"user": id_of("ada")}).status_code == 503
    assert eve.client.post(END, {"user": id_of("ada"), "all": "yes", "confirmed": "yes"}).status_code == 503
    assert eve.client.get(DATA, {"user": id_of("ada"), "session": "x"}).status_code == 503
    assert ada.user == "ada"


def test_the_admin_is_in_chinese_for_whoever_asks() -> None:
    Device().signed_in("ada")
    eve = staff(*ALL_PERMISSIONS)
    response = eve.client.get(LIST, {"q": "ada"}, headers={"accept-language": "zh-CN"})
    page = response.content.decode()
    assert "ada 的会话" in text_of(page)
    assert 'value="结束此用户的所有会话"' in page


def test_the_migrations_are_those_of_the_models() -> None:
    call_command("makemigrations", "gsession_django", check_changes=True, dry_run=True, verbosity=0)
    assert {each.content_type.model for each in permissions_named(*ALL_PERMISSIONS)} == {"session"}
