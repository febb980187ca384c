"""The comparison over HTTP: sites that differ only in their session engine serve pages in turns."""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from django.test.utils import override_settings

from benchmarks.generator import WrongReply, ask_for
from benchmarks.measure import Subject, WrongResult
from benchmarks.operations import SESSION, USER, expect, new_session, read_back
from benchmarks.redis_engines import DJANGO_REDIS_CACHE, OUR_REDIS, OUR_REDIS_HASH
from benchmarks.report import PageResult, compare_pages

_CHECKOUT = Path(__file__).resolve().parent.parent
_SESSIONS = 2000
_CLIENTS = 4
_TIMEOUT = 60.0
_BODY = USER["_auth_user_id"].encode()
_OURS = (OUR_REDIS, OUR_REDIS_HASH)
_PEER = DJANGO_REDIS_CACHE


@dataclass(frozen=True)
class Plan:
    """How much to measure: the number of turns of each site, and of requests in a turn."""

    rounds: int
    requests: int


NORMAL = Plan(rounds=30, requests=300)
QUICK = Plan(rounds=8, requests=200)


@dataclass(frozen=True)
class Server:
    """The program that serves the sites.

    Attributes:
        module: the module that Python runs, with arguments.
        listen: the option that names the socket to listen on.
        pages: the paths to request, by their names in the table.
        settings, our_settings: changes to the test site's settings, for the peer and for our engines.
    """

    name: str
    module: Sequence[str]
    listen: str
    pages: Mapping[str, str]
    settings: Mapping[str, Any]
    our_settings: Mapping[str, Any]


SERVERS = (
    Server(
        "gunicorn, 2 workers",
        # All sites would share one file for the control socket.
        (*("gunicorn", "--workers=2", "--no-control-socket", "--log-level=warning"), "benchmarks.pages:wsgi()"),
        "--bind=fd://{}",
        {"read": "/read", "write": "/write"},
        {},
        {},
    ),
    Server(
        "uvicorn, async view",
        ("uvicorn", "--no-access-log", "--log-level=warning", "--lifespan=off", "--factory", "benchmarks.pages:asgi"),
        "--fd={}",
        {"read": "/aread", "write": "/awrite"},
        # No other middleware: with most of Django's, each request enters threads.
        {"MIDDLEWARE": ["django.contrib.sessions.middleware.SessionMiddleware"]},
        {"MIDDLEWARE": ["gsession_django.middleware.SessionMiddleware"]},
    ),
)


@dataclass(frozen=True)
class Site:
    """A running site, and its engine in this process, which made the sessions."""

    subject: Subject
    port: int


def measure_pages(plan: Plan) -> Iterator[PageResult]:
    for server in SERVERS:
        print(f"Measuring http, {server.name} ...", file=sys.stderr)
        with _served(server) as sites, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            for page, path in server.pages.items():
                times: dict[str, list[float]] = {site.subject.name: [] for site in sites}
                for number in range(-1, plan.rounds):
                    for name, elapsed in _round(plan, sites, path, number, runner).items():
                        if number >= 0:
                            times[name].append(elapsed / plan.requests)
                for ours in _OURS:
                    yield compare_pages(page, server.name, ours.name, times[ours.name], _PEER.name, times[_PEER.name])


def _round(plan: Plan, sites: Sequence[Site], path: str, number: int, runner: asyncio.Runner) -> dict[str, int]:
    chosen = random.Random(number).choices(range(_SESSIONS), k=plan.requests)
    turns = {}
    for site in sites if number % 2 == 0 else sites[::-1]:
        keys = [site.subject.keys[index] for index in chosen]
        turns[site.subject.name] = runner.run(_turn(site, path, keys))
        if number < 0:
            _check(site.subject, path, keys[0])
    return turns


async def _turn(site: Site, path: str, keys: Sequence[str]) -> int:
    requests = [f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: sessionid={key}\r\n\r\n".encode() for key in keys]
    try:
        async with asyncio.timeout(_TIMEOUT):
            return await ask_for(site.port, requests, _BODY, _CLIENTS)
    except* (OSError, WrongReply) as errors:
        raise WrongResult(f"{site.subject.name}: {errors.exceptions[0]}") from None


def _check(subject: Subject, path: str, key: str) -> None:
    """Raise WrongResult unless a page that writes has written its value, and nothing else has changed."""
    with subject.turn():
        stored = read_back(subject, key)
    if "write" in path and stored.get("language") == SESSION["language"]:
        raise WrongResult(f"{subject.name}: {path} has written nothing")
    expect(subject, {**stored, "language": SESSION["language"]}, SESSION, "the session")


@contextmanager
def _served(server: Server) -> Iterator[list[Site]]:
    engines = (*_OURS, _PEER)
    with ExitStack() as stack:
        setups = [stack.enter_context(engine.setup()) for engine in engines]
        caches = {alias: entry for setup in setups for alias, entry in setup.caches.items()}
        stack.enter_context(override_settings(CACHES=caches))
        sites = []
        for engine, setup in zip(engines, setups, strict=True):
            subject = Subject(engine, setup)
            with subject.turn():
                subject.keys = [new_session(subject, SESSION) for _ in range(_SESSIONS)]
            settings = {
                **(server.settings if engine is _PEER else server.our_settings),
                **setup.settings,
                "SESSION_ENGINE": engine.module,
                "CACHES": caches,
            }
            sites.append(Site(subject, stack.enter_context(_process(server, settings))))
        yield sites


@contextmanager
def _process(server: Server, settings: Mapping[str, Any]) -> Iterator[int]:
    """Serve a site and yield its port. The socket listens already, so early clients wait for the server."""
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "benchmarks.site",
        "BENCHMARK_SETTINGS": json.dumps(settings),
    }
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        # Both servers do this with sockets that they open. Accepted connections inherit it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        port: int = listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", *server.module, server.listen.format(listener.fileno())],
            cwd=_CHECKOUT,
            env=environment,
            pass_fds=[listener.fileno()],
            process_group=0,  # one group with its workers, to end all at once
        )
    try:
        yield port
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
