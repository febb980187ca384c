"""The pages "Your sessions": a user sees and ends their own sessions, and nobody else's."""

import re
import sys
from ast import literal_eval
from gettext import GNUTranslations
from html import unescape
from pathlib import Path

import pytest
from django.conf import settings
from django.test import override_settings
from django.utils import translation

import gsession_django
from gsession_django import StorageUnavailable
from gsession_django.backends import memory
from tests.support.engines import EACH_ENGINE, engine
from tests.users.site import FIREFOX, SAFARI, SETTINGS, Device

pytestmark = pytest.mark.usefixtures("no_sessions")

LIST, OTHERS = "/sessions/", "/sessions/end-others/"
PACKAGE = Path(gsession_django.__file__).parent


def end_url(handle: str) -> str:
    return f"/sessions/end/{handle}/"


def sessions_on(page: str) -> list[str]:
    """Return the handles that a page shows, in order."""
    return re.findall(r'data-handle="(\w+)"', page)


def text_of(page: str) -> str:
    return " ".join(unescape(re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)).split())


class TestList:
    def test_this_device_comes_first(self) -> None:
        devices = [Device().signed_in() for _ in range(3)]
        for device in devices:
            shown = sessions_on(device.page(LIST))
            assert shown[0] == device.session.handle
            assert set(shown) == {each.session.handle for each in devices}

    def test_others_users_sessions_are_not_there(self) -> None:
        ada, bob = Device().signed_in("ada"), Device().signed_in("bob")
        assert sessions_on(ada.page(LIST)) == [ada.session.handle]
        assert sessions_on(bob.page(LIST)) == [bob.session.handle]

    def test_each_says_what_it_is_and_when_it_was_used(self) -> None:
        Device(SAFARI, "2001:db8::7").signed_in()
        text = text_of(Device(FIREFOX, "192.0.2.1").signed_in().page(LIST))
        here, there = text.split("Other devices")
        assert "Firefox 146 on Linux Signed in just now from 192.0.2.1 Last seen just now from 192.0.2.1" in here
        assert "Mobile Safari 18 on iOS Signed in just now from 2001:db8::7 Last seen" in there

    def test_it_shows_no_key_and_no_id(self) -> None:
        one, two = Device().signed_in(), Device().signed_in()
        page = one.page(LIST)
        for device in (one, two):
            assert device.key not in page
            assert device.session.session_id not in page

    def test_no_cache_keeps_it(self) -> None:
        for url in (LIST, OTHERS, end_url("0" * 32)):
            assert "no-store" in Device().signed_in().client.get(url).headers["Cache-Control"]

    def test_a_hostile_user_agent_is_text(self) -> None:
        hostile = "<script>alert(1)</script>\"' onload=x {{ request }}"
        Device(hostile).signed_in()
        page = Device().signed_in().page(LIST)
        assert "<script" not in page
        assert hostile in text_of(page)

    def test_without_the_parser_a_user_agent_is_shown_as_it_is_and_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ua_parser", None)
        text = text_of(Device(SAFARI).signed_in().page(LIST))
        assert SAFARI[:79] + "\N{HORIZONTAL ELLIPSIS} Signed in" in text

    def test_without_recorded_clients_it_still_lists_them(self) -> None:
        with override_settings(GSESSION={}):
            Device().signed_in()
            text = text_of(Device().signed_in().page(LIST))
        assert text.count("Unknown browser Signed in just now") == 2
        assert "192.0.2.1" not in text

    def test_whoever_is_alone_is_told_so(self) -> None:
        page = Device().signed_in().page(LIST)
        assert "You are not signed in anywhere else." in page
        assert OTHERS not in page


class TestEnding:
    def test_one_session_is_ended(self) -> None:
        mine, other, third = (Device().signed_in() for _ in range(3))
        url = end_url(other.session.handle)
        assert "End this session?" in mine.page(url)
        assert other.user == "ada"
        page = mine.post(url)
        assert '<ul class="messages" role="status">' in page
        assert "The session has ended. Whoever used it is signed out." in page
        assert (mine.user, other.user, third.user) == ("ada", "nobody", "ada")

    def test_all_others_are_ended(self) -> None:
        mine, *others = (Device().signed_in() for _ in range(4))
        bob = Device().signed_in("bob")
        assert "End all other sessions?" in mine.page(OTHERS)
        assert [other.user for other in others] == ["ada"] * 3
        assert "3 other sessions have ended." in mine.post(OTHERS)
        assert [other.user for other in others] == ["nobody"] * 3
        assert (mine.user, bob.user) == ("ada", "bob")

    def test_this_session_is_signed_out(self) -> None:
        mine, other = Device().signed_in(), Device().signed_in()
        url = end_url(mine.session.handle)
        assert "Sign out on this device?" in mine.page(url)
        response = mine.client.post(url)
        assert (response.status_code, response.headers["Location"]) == (302, "/sign-in/")
        assert (mine.user, other.user) == ("nobody", "ada")
        with override_settings(LOGOUT_REDIRECT_URL="/"):
            assert other.client.post(end_url(other.session.handle)).headers["Location"] == "/"

    @pytest.mark.parametrize("url", [OTHERS, "one"])
    def test_a_form_of_another_site_ends_nothing(self, url: str) -> None:
        mine, other = Device(csrf=True).signed_in(), Device().signed_in()
        url = end_url(other.session.handle) if url == "one" else url
        assert mine.client.post(url).status_code == 403
        token = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', mine.page(url))
        assert len(token) == 1
        assert other.user == "ada"
        mine.post(url, csrfmiddlewaretoken=token[0])
        assert other.user == "nobody"

    def test_neither_does_it_on_a_site_without_the_middleware_for_that(self) -> None:
        without = [name for name in SETTINGS["MIDDLEWARE"] if "Csrf" not in name]
        with override_settings(MIDDLEWARE=without):
            mine, other = Device(csrf=True).signed_in(), Device().signed_in()
            for url in (OTHERS, end_url(other.session.handle)):
                assert mine.client.post(url).status_code == 403
        assert other.user == "ada"

    @pytest.mark.parametrize("method", ["put", "delete", "patch", "options"])
    def test_other_methods_are_refused(self, method: str) -> None:
        mine, other = Device().signed_in(), Device().signed_in()
        for url in (LIST, OTHERS, end_url(other.session.handle)):
            assert getattr(mine.client, method)(url).status_code == 405
        assert mine.client.post(LIST).status_code == 405
        assert other.user == "ada"

    def test_a_session_that_was_ended_meanwhile_is_no_error(self) -> None:
        mine, other = Device().signed_in(), Device().signed_in()
        url = end_url(other.session.handle)
        other.client.get("/sign-out/")
        assert "That session has already ended." in mine.post(url)
        assert mine.client.get(url).headers["Location"] == LIST


@pytest.mark.parametrize("name", EACH_ENGINE)
def test_each_engine_lists_and_ends_them(name: str, tmp_path: Path) -> None:
    with engine(name, tmp_path), override_settings(GSESSION={**settings.GSESSION, "RECORD_CLIENT": True}):
        mine, other, bob = Device().signed_in(), Device(SAFARI, "2001:db8::7").signed_in(), Device().signed_in("bob")
        page = mine.page(LIST)
        assert sessions_on(page) == [mine.session.handle, other.session.handle]
        assert "Mobile Safari 18 on iOS Signed in just now from 2001:db8::7" in text_of(page)
        mine.post(end_url(other.session.handle))
        assert (mine.user, other.user, bob.user) == ("ada", "nobody", "bob")


class TestForeignSessions:
    def test_a_handle_of_another_user_ends_nothing(self) -> None:
        ada, bob = Device().signed_in("ada"), Device().signed_in("bob")
        url = end_url(bob.session.handle)
        assert ada.client.get(url).headers["Location"] == LIST
        assert "That session has already ended." in ada.post(url)
        assert (ada.user, bob.user) == ("ada", "bob")

    @pytest.mark.parametrize(
        "guess", ["key", "id", "0" * 32, "-1", "x" * 5000, "%00", "%F0%9F%92%A5", "..%2f", "'; --", "%ff", "%0d%0aX: y"]
    )
    def test_guesses_end_nothing(self, guess: str) -> None:
        ada, bob = Device().signed_in("ada"), Device().signed_in("bob")
        names = {"key": bob.key, "id": bob.session.session_id}
        url = end_url(names.get(guess, guess))
        # A slash makes it another URL, where there is nothing.
        assert ada.client.get(url).status_code == ada.client.post(url).status_code == (404 if "2f" in guess else 302)
        assert (ada.user, bob.user) == ("ada", "bob")

    @pytest.mark.parametrize("method", ["get", "post"])
    def test_a_stranger_is_sent_to_the_sign_in(self, method: str) -> None:
        ada, stranger = Device().signed_in(), Device()
        for url in (LIST, OTHERS, end_url(ada.session.handle)):
            response = getattr(stranger.client, method)(url)
            assert response.status_code == 302
            assert response.headers["Location"] == f"/sign-in/?next={url}"
        assert ada.user == "ada"


class TestOutages:
    def test_the_middleware_answers_if_the_sessions_cannot_be_listed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(user_id: str) -> list[str]:
            raise StorageUnavailable("the index is away")

        mine, other = Device().signed_in(), Device().signed_in()
        urls = (LIST, OTHERS, end_url(other.session.handle))
        monkeypatch.setattr(memory.SessionStore.get_storage(), "sessions_of", fail)
        for url in urls:
            response = mine.client.post(url) if url == OTHERS else mine.client.get(url)
            assert response.status_code == 503
            assert not response.cookies
        monkeypatch.undo()
        assert (mine.user, other.user) == ("ada", "ada")

    def test_without_messages_the_pages_work(self) -> None:
        without = [name for name in SETTINGS["MIDDLEWARE"] if "Message" not in name]
        with override_settings(MIDDLEWARE=without):
            mine, other = Device().signed_in(), Device().signed_in()
            assert sessions_on(mine.post(end_url(other.session.handle))) == [mine.session.handle]


class TestLanguages:
    def test_the_pages_are_in_chinese_for_whoever_asks(self) -> None:
        Device().signed_in()
        mine = Device().signed_in()
        response = mine.client.get(LIST, headers={"accept-language": "zh-CN,zh;q=0.9"})
        page = response.content.decode()
        assert '<html lang="zh-hans" dir="ltr">' in page
        assert "<h1>您的会话</h1>" in page
        assert re.search(r"Firefox 146.Linux 登录 刚刚 来自 192\.0\.2\.1", text_of(page))
        assert not re.search(r"\b(session|sign|device|seen|from)\b", text_of(page), re.IGNORECASE)
        told = mine.client.post(OTHERS, follow=True, headers={"accept-language": "zh-CN"}).content.decode()
        assert "已结束 1 个其他会话。" in told

    def test_what_is_compiled_is_what_is_written(self) -> None:
        folder = PACKAGE / "locale/zh_Hans/LC_MESSAGES"
        with (folder / "django.mo").open("rb") as file:
            compiled = GNUTranslations(file)
        entries = (folder / "django.po").read_text("utf-8").split("\n\n")[1:]
        assert len(entries) > 50
        for entry in entries:
            fields = {
                name: "".join(map(literal_eval, text.splitlines()))
                for name, text in re.findall(r'^(msg\w+)(?:\[0\])? ((?:".*"\n?)+)', entry, re.MULTILINE)
            }
            context, text = fields.get("msgctxt"), fields["msgid"]
            if "msgid_plural" in fields:
                found = compiled.ngettext(text, "", 2)
            else:
                found = compiled.pgettext(context, text) if context else compiled.gettext(text)
            assert found == fields["msgstr"] != ""

    def test_everything_is_translated(self) -> None:
        templates = "".join(file.read_text("utf-8") for file in (PACKAGE / "templates").rglob("*/*/*.html"))
        code = "".join(file.read_text("utf-8") for file in [*PACKAGE.glob("users/*.py"), PACKAGE / "admin.py"])
        found = re.findall(r"""translate (["'])(.*?)\1 *(?:context "(.*?)")?""", templates)
        texts = {(text, context) for _, text, context in found}
        texts |= {(text, "") for text in re.findall(r'\b_\("(.*?)"\)', templates + code)}
        assert len(texts) > 50
        with translation.override("zh-hans"):
            translated = {
                text: translation.pgettext(context, text) if context else translation.gettext(text)
                for text, context in texts
            }
        assert [text for text, other in translated.items() if text == other] == []


class TestEverybodyCanUseThem:
    """What does not need a browser to be seen."""

    def test_one_heading_a_language_and_no_script(self) -> None:
        mine, other = Device().signed_in(), Device().signed_in()
        for url in (LIST, OTHERS, end_url(other.session.handle), end_url(mine.session.handle)):
            page = mine.page(url)
            assert page.count("<h1>") == 1
            assert '<html lang="en"' in page
            assert re.search(r"<title>[^<]+</title>", page)
            assert "<script" not in page
            assert not re.search(r"\son\w+=", page)

    def test_each_link_that_ends_a_session_says_which(self) -> None:
        devices = [Device().signed_in(), Device(SAFARI).signed_in()]
        page = devices[0].page(LIST)
        for handle in sessions_on(page):
            assert f'aria-describedby="name-{handle}"' in page
            assert page.count(f'id="name-{handle}"') == 1

    def test_the_contrast_of_text_is_enough(self) -> None:
        source = (PACKAGE / "templates/gsession_django/users/base.html").read_text("utf-8")
        schemes = [dict(re.findall(r"--(\w+): (#\w+)", colors)) for colors in re.findall(r":root \{(.*?)\}", source)]
        assert len(schemes) == 2
        for colors in schemes:
            for text in ("ink", "soft", "accent", "danger"):
                assert contrast(colors[text], colors["paper"]) >= 4.5, text
            assert contrast(colors["ink"], colors["said"]) >= 4.5


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colors (WCAG 2.2, "contrast ratio")."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    digits = color[1:] if len(color) == 7 else "".join(digit * 2 for digit in color[1:])
    parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
