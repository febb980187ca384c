"""The test site as a real process, and a visitor who speaks HTTP to it."""

import http.client
import http.cookiejar
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 30

Serve = Callable[[str], "Server"]


class Server:
    """The test site on a free port, with its files in `folder`."""

    command: Sequence[str] = ("manage.py", "runserver", "--noreload", "127.0.0.1:0")

    def __init__(self, folder: Path, engine: str) -> None:
        (folder / "sessions").mkdir(mode=0o700)
        self.engine = engine
        self.output: list[str] = []
        self.env = os.environ | {
            "DJANGO_SETTINGS_MODULE": "testproject.settings",
            "GSESSION_DEMO_DB": str(folder / "demo.sqlite3"),
            "GSESSION_DEMO_DEBUG": "1",
            "GSESSION_DEMO_ENGINE": engine,
            "GSESSION_DEMO_FILE_PATH": str(folder / "sessions"),
            "PYTHONUNBUFFERED": "1",
        }
        self.url = ""
        self._announced = threading.Event()

    def manage(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *self.command],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if not self._announced.wait(TIMEOUT) or not self.url:
            self.stop()
            pytest.fail("the server did not start:\n" + "".join(self.output))

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.output.append(line)
            # The server prints this line once it takes connections.
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                self.url = found[0]
                self._announced.set()
        self._announced.set()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        assert self._process.stdout
        self._process.stdout.close()


@dataclass(frozen=True)
class Page:
    status: int
    url: str
    body: str


class Visitor:
    """A minimal browser: it keeps cookies and follows redirects."""

    def __init__(self, url: str, user_agent: str = "") -> None:
        self.url = url
        self.jar = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self.jar)
        )
        if user_agent:
            self._opener.addheaders = [("User-Agent", user_agent)]

    @property
    def cookies(self) -> dict[str, str]:
        return {cookie.name: cookie.value or "" for cookie in self.jar}

    def get(self, path: str) -> Page:
        return self._open(urllib.request.Request(self.url + path))

    def post(self, path: str, **fields: object) -> Page:
        if "csrftoken" not in self.cookies:
            self.get("/sign-in/")
        request = urllib.request.Request(
            self.url + path,
            data=urlencode(fields).encode(),
            headers={"X-CSRFToken": self.cookies["csrftoken"]},
        )
        return self._open(request)

    def sign_in(self, password: str = "demo") -> Page:
        return self.post("/sign-in/", username="demo", password=password)

    def _open(self, request: urllib.request.Request) -> Page:
        try:
            response: http.client.HTTPResponse = self._opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            with error:
                return Page(error.code, error.url, error.read().decode())
        with response:
            return Page(response.status, response.url, response.read().decode())
