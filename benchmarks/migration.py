"""``python -m benchmarks.migration``: a rollout under live traffic.

It moves sessions from Django's ``db`` to ``redis_hash``, with the fallback on, and counts the wrong replies that
visitors get meanwhile.
"""

import argparse
import io
import logging
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import django

THREADS = 4
_STEP = 1000  # sessions to create or check in one go
_LIFETIME = 86400  # seconds that a session has left at the source


@dataclass
class Browser:
    """A visitor who signed in under the old release.

    Attributes:
        key: the session key in the cookie.
        things: the number of things in the cart.
        may_sign_out: whether the visitor may sign out. After that the visitor comes back with the old cookie.
        ended: the session keys that must be unknown: of ended sessions, and of sessions with a new key.
        signed_out: whether the visitor has signed out.
    """

    key: str
    things: int
    may_sign_out: bool
    ended: list[str] = field(default_factory=list)
    signed_out: bool = False

    def visit(self, wish: float) -> str | None:
        """Send one request. `wish`, from 0 to 1, chooses its kind. Return the fault of the reply, if there is one."""
        from tests.support.sites import Visitor

        if self.signed_out or (self.ended and wish < 0.2):
            return _differs(Visitor(None, random.choice(self.ended)).does("peek"), "nobody 0 0")
        visitor = Visitor(None, self.key)
        if wish < 0.4:
            return _differs(visitor.does("read"), f"ada {self.things} {self.things}")
        if wish < 0.9:
            self.things += 1
            return _differs(visitor.does("modify"), f"ada {self.things} {self.things}")
        if wish < 0.95 or not self.may_sign_out:
            self.things += 1
            wrong = _differs(visitor.does("cycle"), f"ada {self.things} {self.things}")
            self.ended.append(self.key)
            self.key = visitor.key
            return wrong
        self.signed_out = True
        self.ended.append(self.key)
        return _differs(visitor.does("sign_out"), "nobody 0 0")


def _differs(response: Any, expected: str) -> str | None:
    text = response.content.decode()
    if response.status_code == 200 and text == expected:
        return None
    return f"{response.status_code} {text[:100]!r} instead of {expected!r}"


@dataclass
class Traffic:
    """The visitors of the site during the move. Each thread sends the requests of some of them.

    Attributes:
        browsers: the visitors.
        seed: the seed of their wishes.
        come: the part of them, from 0 to 1, that has come so far.
        times: the seconds of each request.
        wrong: the faults of the replies.
    """

    browsers: list[Browser]
    seed: int
    come: float = 0
    times: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @contextmanager
    def flows(self) -> Iterator[None]:
        """Let the visitors send requests until the end of the block, and each one more after it."""
        ends = threading.Event()
        threads = [threading.Thread(target=self._run, args=(number, ends)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ends.set()
            for thread in threads:
                thread.join()

    def _run(self, number: int, ends: threading.Event) -> None:
        chance, mine = random.Random(self.seed + number), self.browsers[number::THREADS]
        try:
            while not ends.is_set():
                self._send(chance.choice(mine[: 1 + int(len(mine) * self.come)]), chance.random())
            for browser in mine:
                self._send(browser, 0.3)
        except BaseException as error:
            self.wrong.append(repr(error))
            raise

    def _send(self, browser: Browser, wish: float) -> None:
        start = time.perf_counter()
        wrong = browser.visit(wish)
        self.times.append(time.perf_counter() - start)
        if wrong is not None:
            self.wrong.append(wrong)


@dataclass
class Result:
    """The result of a migration.

    Attributes:
        seconds: the time that the command took.
        summary: the command's last line.
        times: the seconds of each request, during the command and after it.
        signed_out: the number of visitors who signed out.
        wrong: all faults, in words.
    """

    seconds: float
    summary: str
    times: list[float]
    signed_out: int
    wrong: list[str]


def migrate(sessions: int, visitors: int, kind: str, seed: int, folder: Path) -> Result:
    """Move so many sessions from a database to Redis. `visitors` of them belong to visitors who come meanwhile."""
    from tests.support import processes
    from tests.support.redis_servers import RedisServer
    from tests.support.rollouts import SOURCES, TARGETS, here, rollout

    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        site = rollout(folder, SOURCES["db"], TARGETS["redis_hash"], kind=kind, url=server.url())
        stack.enter_context(site)
        made = _made(visitors, sessions, seed)
        browsers = [Browser(key, number % 5, number % 3 == 0) for number, key in enumerate(made)]
        traffic = Traffic(browsers, seed)
        client = stack.enter_context(server.client())
        with processes.Worker(folder, _command, here()) as worker:
            worker.hear()
            worker.say()
            with traffic.flows():
                while (said := _heard(worker)) is None:
                    traffic.come = min(1, client.dbsize() / sessions)
            seconds, summary = said
            worker.wait()
        wrong = traffic.wrong + _left_behind() + _lost(visitors, sessions, seed)
        return Result(seconds, summary, traffic.times, sum(browser.signed_out for browser in browsers), wrong)


def _heard(worker: Any) -> tuple[float, str] | None:
    try:
        said: tuple[float, str] = worker.hear(0.05)
    except TimeoutError:
        return None
    return said


def _command(parent: Any, where: Any) -> None:
    """Run ``migrate_sessions`` in its own process."""
    from django.core.management import call_command

    from tests.support.rollouts import SOURCES, there

    said = io.StringIO()
    with there(*where):
        parent.meet()
        start = time.perf_counter()
        call_command("migrate_sessions", "--from", SOURCES["db"], stdout=said)
        parent.say((time.perf_counter() - start, said.getvalue().strip()))


def _keys(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return [f"{chance.getrandbits(160):032x}"[:32] for _ in range(count)]


def _made(visitors: int, sessions: int, seed: int) -> list[str]:
    """Create the sessions of the old release, and return the keys of visitors who will come."""
    from django.conf import settings
    from django.contrib.sessions.models import Session
    from django.utils import timezone

    from tests.support.old_sites import store_of
    from tests.support.rollouts import old_release, signed_in

    key = signed_in(0)
    with old_release():
        store: Any = store_of(settings.SESSION_ENGINE, key)
        user = dict(store.items())
        store.delete()
        keys, expires = _keys(sessions, seed), timezone.now() + timedelta(seconds=_LIFETIME)
        for start in range(0, sessions, _STEP):
            rows = []
            for number, each in enumerate(keys[start : start + _STEP], start):
                data = {**user, **_cart(number % 5)} if number < visitors else {"number": number}
                rows.append(Session(session_key=each, session_data=store.encode(data), expire_date=expires))
            Session.objects.bulk_create(rows)
    return keys[:visitors]


def _cart(things: int) -> dict[str, Any]:
    if not things:
        return {}
    return {"count": things, "cart": {f"thing {number + 1}": 1 for number in range(things)}}


def _left_behind() -> list[str]:
    from django.contrib.sessions.models import Session

    left = Session.objects.count()
    return [f"{left} sessions are still at the source"] if left else []


def _lost(visitors: int, sessions: int, seed: int) -> list[str]:
    """Return the faults of the sessions whose visitors did not come."""
    from gsession_django.backends.redis_hash import SessionStore
    from gsession_django.core.engine import engine_of

    engine, wrong = engine_of(SessionStore), []
    for number, key in enumerate(_keys(sessions, seed)):
        if number >= visitors:
            found: Any = engine.storage.get_session(engine.id_of(key), 1)
            if found is None or found.as_dict() != {"number": number}:
                wrong.append(f"session {number} is {found}")
            elif not _LIFETIME - 7200 < found.ttl_left <= _LIFETIME:
                wrong.append(f"session {number} has {found.ttl_left} seconds to live")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.migration", description=__doc__)
    parser.add_argument("--sessions", type=int, default=100_000, help="how many to move (default: %(default)s)")
    parser.add_argument(
        "--visitors", type=int, default=1000, help="how many of their visitors come meanwhile (default: %(default)s)"
    )
    parser.add_argument("--database", default="postgresql", help="postgresql, mariadb or sqlite (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(2**32), help="the seed of the visitors' wishes, to repeat a run"
    )
    options = parser.parse_args(arguments)
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    django.setup()
    logging.disable(logging.ERROR)
    print(f"Seed {options.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        result = migrate(options.sessions, options.visitors, options.database, options.seed, Path(folder))
    times = sorted(result.times)
    slow = statistics.quantiles(times, n=1000)[998] if len(times) > 1 else times[0]
    print(result.summary)
    print(
        f"{result.seconds:.1f} s; {len(times)} requests; median {statistics.median(times) * 1000:.1f} ms, 999 of 1000 "
        f"within {slow * 1000:.1f} ms, slowest {times[-1] * 1000:.1f} ms; signed out {result.signed_out}; "
        f"wrong: {len(result.wrong)}"
    )
    for wrong in result.wrong[:20]:
        print(wrong)
    return 1 if result.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
