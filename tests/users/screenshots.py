"""Takes the pictures of docs/users.md, docs/images/users-*.png: ``python -m tests.users.screenshots``."""

import tempfile
from pathlib import Path

from tests.demo.browser import opened
from tests.demo.support import ROOT, Server, Visitor
from tests.users.site import FIREFOX, SAFARI

IMAGES = ROOT / "docs" / "images"
CHROME = "Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
LANGUAGES = {"en": "en", "zh": "zh-CN"}
PICTURES = {
    "list": ("/your-sessions/", 720, 900),
    "admin": ("/admin/gsession_django/session/?q=demo", 1180, 600),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(folder, "gsession_django.backends.memory")
        server.manage("demo_setup")
        server.start()
        try:
            for user_agent in (FIREFOX, SAFARI):
                Visitor(server.url, user_agent).sign_in()
            for suffix, language in LANGUAGES.items():
                with opened(server.url, folder / suffix, language=language) as browser:
                    browser.driver.execute_cdp_cmd("Network.setUserAgentOverride", {"userAgent": CHROME})
                    browser.sign_in("demo")
                    browser.one("#user")
                    for picture, (path, width, height) in PICTURES.items():
                        browser.driver.set_window_size(width, height)
                        browser.open(path)
                        browser.one("h1")
                        browser.driver.save_screenshot(str(IMAGES / f"users-{picture}-{suffix}.png"))
                    browser.open("/")
                    browser.one("#sign-out").click()
                    browser.one("a[href='/sign-in/']")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
