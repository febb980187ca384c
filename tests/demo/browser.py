"""A real browser: Chromium, headless, driven through chromedriver."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import presence_of_element_located, url_to_be
from selenium.webdriver.support.wait import WebDriverWait

from tests.demo.support import TIMEOUT
from tests.support import programs

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browser:
    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(self, path: str) -> None:
        self.driver.get(self.url + path)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str) -> WebElement:
        """Wait for an element that matches, and return the first."""
        return WebDriverWait(self.driver, TIMEOUT).until(presence_of_element_located((By.CSS_SELECTOR, css)))

    def wait_until_gone(self, css: str) -> None:
        WebDriverWait(self.driver, TIMEOUT).until_not(lambda _: self.all(css))

    def wait_for_path(self, path: str) -> None:
        WebDriverWait(self.driver, TIMEOUT).until(url_to_be(self.url + path))

    def sign_in(self, password: str) -> None:
        self.open("/sign-in/")
        self.one("#id_username").send_keys("demo")
        self.one("#id_password").send_keys(password)
        self.one("#sign-in").click()

    def errors(self) -> list[str]:
        """Return the errors that the pages wrote to the console since the last call."""
        log: list[dict[str, str]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in log if entry["level"] in ("SEVERE", "WARNING")]


@contextmanager
def opened(url: str, folder: Path, *, javascript: bool = True, language: str = "en") -> Iterator[Browser]:
    """Yield a browser for the site at `url`, with a profile in `folder`. No page may write an error."""
    chromium, chromedriver = programs.chromium()
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    preferences: dict[str, object] = {"intl.accept_languages": language}
    if not javascript:
        preferences["profile.managed_default_content_settings.javascript"] = 2
    options.add_experimental_option("prefs", preferences)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(chromedriver))
    try:
        browser = Browser(driver, url)
        yield browser
        assert browser.errors() == []
    finally:
        driver.quit()
