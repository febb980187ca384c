"""The panel for django-debug-toolbar, in the real toolbar: under WSGI and ASGI, on sync and async pages."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.demo.browser import opened
from tests.demo.support import TIMEOUT, Server, Visitor

pytestmark = pytest.mark.once

SERVERS = {
    "wsgi": ("manage.py", "runserver", "--noreload", "127.0.0.1:0"),
    "asgi": ("-m", "uvicorn", "tests.demo.toolbar_asgi:application", "--port", "0"),
}
CELL = re.compile(r"<td>(.*?)</td>")
PANEL = "#SessionStoragePanel"
UNKNOWN = "\N{EN DASH}"
each_view = pytest.mark.parametrize("view", ["sync", "async"])


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("toolbar"), "gsession_django.backends.file")
    found.env["DJANGO_SETTINGS_MODULE"] = "tests.demo.toolbar_site"
    found.command = SERVERS[request.param]
    found.start()
    yield found
    found.stop()
    printed = "".join(found.output)
    assert not re.search("Internal Server Error|Exception|Traceback", printed), printed


def rows(visitor: Visitor, path: str) -> list[list[str]]:
    """Open a page and return the rows of its panel."""
    page = visitor.get(path)
    assert page.status == 200, page.body
    (request_id,) = re.findall('data-request-id="(.*?)"', page.body)
    query = urlencode({"request_id": request_id, "panel_id": "SessionStoragePanel"})
    content: str = json.loads(visitor.get(f"/__debug__/render_panel/?{query}").body)["content"]
    return [CELL.findall(row) for row in content.split("<tr>")[2:]]


@each_view
def test_a_browser_shows_the_calls_of_the_page(server: Server, view: str, tmp_path: Path) -> None:
    with opened(server.url, tmp_path) as browser:
        browser.open(f"/{view}/visit/")
        browser.open(f"/{view}/visit/")
        toolbar = browser.one("#djDebugRoot").shadow_root
        wait = WebDriverWait(browser.driver, TIMEOUT)
        button = toolbar.find_element(By.CSS_SELECTOR, "a.SessionStoragePanel")
        wait.until(lambda _: button.is_displayed())
        assert re.fullmatch(r"Session storage\s+2 calls in \d+\.\d\d ms", button.text)
        button.click()
        wait.until(lambda _: toolbar.find_elements(By.CSS_SELECTOR, f"{PANEL} tbody tr"))
        cells = [cell.text for cell in toolbar.find_elements(By.CSS_SELECTOR, f"{PANEL} td")]
    load, save = cells[:8], cells[8:]
    assert all(re.fullmatch(r"\d+\.\d{3} ms", time) for time in (load.pop(2), save.pop(2)))
    read = len('{"cart":{"milk":1}}')
    assert load == ["get_session", "file", f"{read}", UNKNOWN, "no", "0", ""]
    read, written = len('{"cart":{"milk":1,"tea":"for another"}}'), len('{"cart":{"milk":2,"tea":"for another"}}')
    assert save == ["apply", "file", f"{read}", f"{written}", "yes", "0", ""]


@each_view
def test_requests_at_the_same_time_each_have_their_own_calls(server: Server, view: str) -> None:
    known, new = Visitor(server.url), Visitor(server.url)
    rows(known, f"/{view}/visit/")
    with ThreadPoolExecutor(2) as threads:
        panels = [threads.submit(rows, visitor, f"/{view}/meet/") for visitor in (known, new)]
    calls = [[row[0] for row in panel.result(TIMEOUT)] for panel in panels]
    assert calls == [["get_session", "apply"], ["create"]]


def test_a_page_without_a_session_has_no_calls(server: Server) -> None:
    assert rows(Visitor(server.url), "/sync/idle/") == []
