"""The pages and the admin in real browsers: Chromium, headless, driven through chromedriver."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.demo.browser import Browser, opened
from tests.demo.support import Server, Visitor

pytestmark = pytest.mark.once

PAGES = "/your-sessions/"
ADMIN = "/admin/gsession_django/session/"

WITH = "with JavaScript"
Open = Callable[[str], Browser]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("demo"), "gsession_django.backends.memory")
    server.manage("demo_setup")
    server.start()
    yield server
    server.stop()
    printed = "".join(server.output)
    assert not re.search("Internal Server Error|Traceback", printed), printed


@pytest.fixture(params=[WITH, "without JavaScript"])
def open_browser(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Iterator[Open]:
    """Opens a browser by a name, signed in as demo."""
    with ExitStack() as stack:

        def open_one(name: str) -> Browser:
            (folder := tmp_path / name).mkdir()
            browser = stack.enter_context(opened(server.url, folder, javascript=request.param == WITH))
            browser.driver.get("data:text/html,<title>off</title><script>document.title = 'on'</script>")
            assert browser.driver.title == ("on" if request.param == WITH else "off")
            browser.sign_in("demo")
            browser.one("#user")
            return browser

        yield open_one
    # Whoever is left over would be among the sessions of the next test.
    visitor = Visitor(server.url)
    visitor.sign_in()
    assert visitor.post(f"{PAGES}end-others/").status == visitor.post("/sign-out/").status == 200


def signed_in(browser: Browser) -> bool:
    browser.open("/")
    return browser.one("#visitor").text == "signed in as demo"


def test_one_browser_ends_the_other_which_is_signed_out_on_its_next_click(open_browser: Open) -> None:
    mine, other = open_browser("mine"), open_browser("other")
    other.open("/cart/")
    mine.open(PAGES)
    assert mine.one("h1").text == "Your sessions"
    assert re.match(
        r"(Chrome|Chromium|Chrome Headless|HeadlessChrome) \d+ on Linux", mine.one("[data-current] .name").text
    )
    (theirs,) = mine.all("section[aria-labelledby=other-devices] li")
    theirs.find_element(By.CSS_SELECTOR, "a.button").click()
    assert mine.one("h1").text == "End this session?"
    mine.one("#confirm").click()
    assert "The session has ended" in mine.one("[role=status]").text
    assert mine.all("#no-others")
    other.one("a[href='/session/']").click()
    other.one("a[href='/sign-in/']")
    assert not other.all("#user")
    assert signed_in(mine)


def test_one_browser_ends_all_others(open_browser: Open) -> None:
    mine, *others = (open_browser(name) for name in ("mine", "one", "two"))
    mine.open(PAGES)
    mine.one("#end-others").click()
    mine.one("#confirm").click()
    assert mine.one("[role=status]").text == "2 other sessions have ended."
    assert [signed_in(browser) for browser in (mine, *others)] == [True, False, False]


def test_a_browser_ends_its_own_session(open_browser: Open) -> None:
    mine = open_browser("mine")
    mine.open(PAGES)
    mine.one("[data-current] a.button").click()
    assert mine.one("h1").text == "Sign out on this device?"
    mine.one("#confirm").click()
    mine.wait_for_path("/")
    assert not signed_in(mine)
    mine.open(PAGES)
    mine.wait_for_path(f"/sign-in/?next={PAGES}")


def test_the_keyboard_is_enough_and_shows_where_it_is(open_browser: Open) -> None:
    mine, other = open_browser("mine"), open_browser("other")
    mine.open(f"{PAGES}end-others/")
    button = mine.one("#confirm")
    for _ in range(10):
        focused = mine.driver.switch_to.active_element
        if focused == button:
            break
        focused.send_keys(Keys.TAB)
    assert mine.driver.switch_to.active_element == button
    assert button.value_of_css_property("outline-style") == "solid"
    assert button.value_of_css_property("outline-width") == "3px"
    button.send_keys(Keys.ENTER)
    assert mine.one("[role=status]").text == "1 other session has ended."
    assert not signed_in(other)


def test_an_administrator_finds_a_user_and_ends_a_session(open_browser: Open) -> None:
    mine, other = open_browser("mine"), open_browser("other")
    mine.open("/admin/")
    mine.one(f"#content-main a[href='{ADMIN}']").click()
    mine.one("#user-search").send_keys("dem" + Keys.ENTER)
    assert mine.one("#sessions-of").text == "Sessions of demo"
    rows = mine.all("tbody tr[data-handle]")
    assert ["(this session)" in row.text for row in rows] == [True, False]
    rows[1].find_element(By.CSS_SELECTOR, "input[type=checkbox]").click()
    mine.one("[name=chosen]").click()
    mine.one("[name=confirmed]").click()
    assert mine.one(".messagelist").text == "Ended 1 session."
    assert len(mine.all("tbody tr[data-handle]")) == 1
    assert not signed_in(other)
    mine.open(f"{ADMIN}count/")
    assert "gsession_django.backends.memory" in mine.one("#content tbody").text
    mine.open(f"{ADMIN}?q=demo")
    mine.one("a[href*='data/']").click()
    assert "_auth_user_id" in mine.one("#content table").text
