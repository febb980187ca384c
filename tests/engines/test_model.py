"""Each engine does what the model says, whatever requests do to sessions, in whatever order.

A step is an operation of one of several requests that overlap on a few sessions: sync or async, on the engine and on
``tests/support/model.py``. Or time passes, or a session is deleted elsewhere. Environment variable GSESSION_MODEL:
the number of steps on all engines together.
"""

import asyncio
import os
import sys
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest
from django.conf import settings as site_settings
from django.contrib.sessions.backends.base import CreateError, UpdateError
from django.test import override_settings
from django.utils import timezone
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from gsession_django import SessionStore
from tests.support import engines, storages
from tests.support.clock import Clock, moved_clock
from tests.support.model import AGE, USER, Request, Site, form
from tests.support.redis_servers import shared

pytestmark = pytest.mark.once

STEPS: Final = int(os.environ.get("GSESSION_MODEL", "10000"))
A_ROUND: Final = 10_000
"""Steps in a round, in which each engine has its turn."""
EXAMPLES, AT_ONCE = 36, 50
"""Of an engine in a round, and steps in each at most: in all a few more than that."""


class WholeMap(storages.WholeMapStorage):
    """One for which the adapter composes everything. It keeps no record of a million calls."""

    def record(self, name: str, *args: Any) -> None:
        pass


class PerKey(storages.AsyncPerKeyStorage):
    """The same, by keys, and async."""

    def record(self, name: str, *args: Any) -> None:
        pass

    def twin(self, result: storages.T) -> storages.T:
        return result


COMPOSED: Final[dict[str, type[storages.Recorded]]] = {"whole map": WholeMap, "per key": PerKey}
NAMES: Final = [*engines.EACH_ENGINE, *COMPOSED]
BY_KEYS: Final = {"redis_hash", "per key"}
"""Engines where a request reads some values when it first uses them."""

# One script, to let the time of all sessions pass at once.
_PASS: Final = """
for _, key in ipairs(redis.call('KEYS', '*' .. ARGV[1] .. '*')) do
    local left = redis.call('PTTL', key)
    if left >= 0 then redis.call('PEXPIRE', key, left - ARGV[2]) end
end
"""


@dataclass
class World:
    """An engine, and its clock.

    Attributes:
        name: the engine's name.
        store_class: the engine.
        clock: the clock of the engines in this process.
        start: the time when the clock's offset is 0.
        runner: what runs the async operations.
        steps: how many steps were carried out.
    """

    name: str
    store_class: type[SessionStore]
    clock: Clock
    start: datetime
    runner: asyncio.Runner
    steps: int = 0

    def now(self) -> datetime:
        return self.start + timedelta(seconds=self.clock.offset)

    def let_pass(self, seconds: int) -> None:
        self.clock.offset += seconds
        if self.name.startswith("redis"):
            with shared().client() as client:
                client.eval(_PASS, 0, _prefix(), 1000 * seconds)

    def left(self, store: SessionStore) -> float:
        """Return the seconds that a session has left to live."""
        if self.name in COMPOSED:
            storage: Any = store.get_storage()
            return float(storage.medium.rows[store.session_id].expires - self.clock.time())
        assert store.ttl_left is not None
        return store.ttl_left

    def live_ids(self) -> set[str]:
        storage: Any = self.store_class.get_storage()
        if self.name in COMPOSED:
            return {session_id for session_id in storage.medium.rows if storage.medium.live(session_id)}
        return set(storage.ids())


def _prefix() -> str:
    """Return what the keys of the current Redis engine contain."""
    (options,) = site_settings.GSESSION["ENGINES"].values()
    return str(options["prefix"])


@contextmanager
def world(name: str, folder: Path) -> Iterator[World]:
    with moved_clock() as clock, asyncio.Runner() as runner, override_settings(SESSION_COOKIE_AGE=AGE):
        start = timezone.now().replace(microsecond=0)

        def opened(store_class: type[SessionStore]) -> World:
            return World(name, store_class, clock, start, runner)

        with mock.patch.object(timezone, "now", lambda: start + timedelta(seconds=clock.offset)):  # noqa: PT008 - it moves
            if name in COMPOSED:
                yield opened(storages.engine(COMPOSED[name]))
            else:
                with engines.engine(name, folder) as store_class:
                    yield opened(store_class)


# Values. A kind of each, few different keys, and texts that some engines keep in another way if they are long.

LONG: Final = {"3 kB": "x" * 3_000, "20 kB": "y" * 20_000}
SIMPLE = st.sampled_from([1, True, 1.0, None, "a", "é\ud83d", *LONG])
KEYS = st.sampled_from(["cart", "a", "cart", "é"])
PARTS = st.sampled_from("ab")
VALUES = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(PARTS, inner),
        st.tuples(inner),
    ),
    max_leaves=6,
)
DICTS = st.dictionaries(PARTS, VALUES)
PAIRS = st.dictionaries(KEYS, VALUES | DICTS)
# Time passes in thousands of seconds, so that a second more or less makes no difference.
EXPIRIES = st.sampled_from([None, 0, 1500, 7500, timedelta(seconds=2500), 5500, -500, timedelta(seconds=-500)])
PATHS = st.lists(st.integers(0, 2), max_size=2)
CHANGES = st.sampled_from(["set", "remove", "clear"])

READS = st.one_of(
    st.tuples(st.sampled_from(["get", "has_key"]), KEYS),
    st.tuples(st.just("get"), KEYS, st.just("default")),
    st.tuples(
        st.sampled_from(
            [
                *("keys", "values", "items", "is_empty", "test_cookie_worked"),
                *("get_expiry_age", "get_expiry_date", "get_expire_at_browser_close"),
            ]
        )
    ),
)
WRITES = st.one_of(
    st.tuples(st.sampled_from(["set", "setdefault"]), KEYS, VALUES | DICTS),
    st.tuples(st.sampled_from(["delete_key", "pop"]), KEYS),
    st.tuples(st.just("pop"), KEYS, VALUES),
    st.tuples(st.just("set"), KEYS, st.sampled_from([1, True, 1.0])),  # equal, and not the same
    st.tuples(st.just("update"), PAIRS),
    st.tuples(st.sampled_from(["set_test_cookie", "delete_test_cookie"])),
)
# What the methods of the model are called in a SessionStore, where that differs; ``None``: there is no such method.
SYNC: Final = {"set": "__setitem__", "delete_key": "__delitem__"}
ASYNC: Final = {"delete_key": None, "is_empty": None, "clear": None}
STORING: Final = {"save", "create", "cycle_key", "flush", "delete"}
NOT_LOADING: Final = {"clear", "flush", "delete", "create", "exists", "is_empty"}


def meant(value: Any) -> Any:
    """Return a value with the long texts themselves, not their names, as a new object."""
    if isinstance(value, dict):
        return {key: meant(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(meant, value))
    return LONG.get(value, value) if isinstance(value, str) else value


def plain(value: Any) -> Any:
    """Return a result in a form that can be compared. The order of a session's pairs is not promised."""
    if isinstance(value, KeysView | ValuesView | ItemsView):
        return sorted(map(form, value))
    return value if isinstance(value, datetime) else form(value)


def outcome(operation: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "returned", plain(operation())
    except (KeyError, CreateError, UpdateError) as error:
        return "raised", type(error).__name__


def change_in_place(value: Any, path: list[int], change: str, key: str, new: Any) -> None:
    """Change a list or dict, or one that is somewhere inside."""
    for step in path:
        within = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        parts = [part for part in within if isinstance(part, dict | list)]
        value = parts[step % len(parts)] if parts else value
    if change == "clear" and isinstance(value, dict | list):
        value.clear()
    elif isinstance(value, dict):
        value.pop(key, None)
        if change == "set":
            value[key] = new
    elif isinstance(value, list):
        if change == "set":
            value.append(new)
        elif value:
            value.pop(0)


class Visit:
    """A request: on the engine, and on the model."""

    def __init__(self, store: SessionStore, model: Request) -> None:
        self.store, self.model = store, model

    def __repr__(self) -> str:
        return f"the request with {self.model.session_key!r}"


class Sessions(RuleBasedStateMachine):
    world: World
    visits = Bundle("visits")

    def __init__(self) -> None:
        super().__init__()
        self.site = Site(self.world.now(), self.world.name in COMPOSED)
        self.keys: list[str] = []

    # Requests.

    @initialize(target=visits, pairs=PAIRS, cart=DICTS, signed_in=st.booleans())
    def begin(self, pairs: dict[str, Any], cart: dict[str, Any], signed_in: bool) -> Any:
        """A visitor has a session, and sends some requests at once."""
        first = self.visit(None)
        self.do(first, "update", {**pairs, "cart": cart, **({USER: "1"} if signed_in else {})})
        self.do(first, "save")
        return multiple(first, *(self.visit(first.model.session_key) for _ in range(3)))

    @rule(target=visits, number=st.integers(0, 5))
    def come(self, number: int) -> Visit:
        """A request comes, with the cookie of a session, of one that has ended, with an unknown one or none."""
        known = [None, "unknown-key", *self.keys]
        return self.visit(known[-1 - number % len(known)])

    @rule(target=visits, visit=visits)
    def come_from_another_tab(self, visit: Visit) -> Visit:
        """A request comes while another of the same session is under way, and reads the session."""
        other = self.visit(visit.model.session_key)
        self.do(other, "get", "cart")
        return other

    def visit(self, key: str | None) -> Visit:
        return Visit(self.world.store_class(key), Request(self.site, key))

    @rule(visit=visits, call=READS, by_await=st.booleans())
    def read(self, visit: Visit, call: Any, by_await: bool) -> None:
        self.do(visit, *call, by_await=by_await)

    @rule(visit=visits)
    def look_at_it(self, visit: Visit) -> None:
        """What takes no call of a method that has a twin."""
        assert visit.store.modified is visit.model.modified
        self.use(visit)
        assert len(visit.store.keys()) == len(visit.model.keys())
        assert visit.store.session_key == visit.model.session_key

    @rule(visit=visits, number=st.integers(0, 9), by_await=st.booleans())
    def ask_for_a_session(self, visit: Visit, number: int, by_await: bool) -> None:
        keys = ["unknown-key", *self.keys]
        self.do(visit, "exists", keys[number % len(keys)], by_await=by_await)

    # Many of these save at once: otherwise few would save before the session ends.

    @rule(visit=visits, call=WRITES, by_await=st.booleans(), saves=st.booleans())
    def write(self, visit: Visit, call: Any, by_await: bool, saves: bool) -> None:
        self.do(visit, *call, by_await=by_await)
        if saves:
            self.do(visit, "save", by_await=by_await)

    @rule(visit=visits, expiry=EXPIRIES, by_await=st.booleans(), saves=st.booleans())
    def set_expiry(self, visit: Visit, expiry: Any, by_await: bool, saves: bool) -> None:
        self.write(visit, ("set_expiry", expiry), by_await, saves)

    @rule(visit=visits, key=KEYS, path=PATHS, change=CHANGES, part=PARTS, new=VALUES, saves=st.booleans())
    def write_in_place(
        self, visit: Visit, key: str, path: list[int], change: str, part: str, new: Any, saves: bool
    ) -> None:
        self.use(visit)
        change_in_place(visit.store.get(key), path, change, part, meant(new))
        change_in_place(visit.model.get(key), path, change, part, meant(new))
        self.write(visit, ("get", key), False, saves)

    @rule(visit=visits, key=KEYS, other=KEYS)
    def store_one_object_twice(self, visit: Visit, key: str, other: str) -> None:
        self.use(visit)
        visit.store[other] = visit.store.get(key)
        visit.model.set(other, visit.model.get(key))

    @rule(visit=visits, modified=st.booleans())
    def set_modified(self, visit: Visit, modified: bool) -> None:
        visit.store.modified = visit.model.modified = modified
        assert visit.store.modified is visit.model.modified

    @rule(visit=visits)
    def clear(self, visit: Visit) -> None:
        self.do(visit, "clear")

    # Saving.

    @rule(visit=visits, by_await=st.booleans())
    def save(self, visit: Visit, by_await: bool) -> None:
        self.do(visit, "save", by_await=by_await)

    @rule(visit=consumes(visits), by_await=st.booleans())
    def close(self, visit: Visit, by_await: bool) -> None:
        """Do what the middleware does at the end of the request."""
        with visit.store.closed():
            modified = visit.store.modified
            assert modified is visit.model.modified
            if modified:
                self.do(visit, "save", by_await=by_await)

    @rule(visit=visits, by_await=st.booleans())
    def save_as_new(self, visit: Visit, by_await: bool) -> None:
        self.do(visit, "save", True, by_await=by_await)

    @rule(visit=visits, how=st.sampled_from(["create", "cycle_key", "flush", "delete"]), by_await=st.booleans())
    def end_or_move(self, visit: Visit, how: str, by_await: bool) -> None:
        self.do(visit, how, by_await=by_await)

    @rule(visit=visits, user=st.sampled_from("12"), by_await=st.booleans())
    def sign_in(self, visit: Visit, user: str, by_await: bool) -> None:
        """Do what ``login()`` does."""
        self.use(visit)
        flushes = USER in visit.model.load() and visit.model.load()[USER] != user
        self.do(visit, "flush" if flushes else "cycle_key", by_await=by_await)
        self.do(visit, "set", USER, user, by_await=by_await)

    @rule(visit=visits, by_await=st.booleans())
    def forget_the_user(self, visit: Visit, by_await: bool) -> None:
        self.do(visit, "pop", USER, None, by_await=by_await)

    # Elsewhere.

    @rule(thousands=st.sampled_from([1, 1, 1, 2, 4]))
    def wait(self, thousands: int) -> None:
        self.world.let_pass(1000 * thousands)
        self.site.now += 1000 * thousands
        for key in self.keys:
            self.compare(key)

    @rule(number=st.integers(0, 9))
    def end_elsewhere(self, number: int) -> None:
        if self.keys:
            key = self.keys[-1 - number % len(self.keys)]
            self.world.store_class().delete(key)
            self.site.sessions.pop(key, None)
            self.compare(key)

    # One step.

    def do(self, visit: Visit, name: str, *args: Any, by_await: bool = False) -> None:
        """Carry out an operation on both, and compare what they return and what is stored then."""
        store, model, before = visit.store, visit.model, visit.model.session_key
        if name not in NOT_LOADING and not (name == "save" and (args or model.ended)):
            self.use(visit)
        twin = ASYNC.get(name, f"a{name.strip('_')}") if by_await else None
        method = getattr(store, twin or SYNC.get(name, name))
        theirs, ours = meant(args), meant(args)
        found = outcome(lambda: self.world.runner.run(method(*theirs)) if twin else method(*theirs))
        model.new_key = store.session_key or ""
        expected = outcome(lambda: getattr(model, name)(*ours))
        assert found == expected, f"{name}{args!r}"
        assert store.session_key == model.session_key
        assert store.modified is model.modified
        if name in STORING:
            assert model.session_key in (None, before) or model.session_key not in self.keys, "a new key is new"
            self.keys += [key for key in self.site.sessions if key not in self.keys]
            for key in {before, model.session_key} - {None}:
                self.compare(str(key))

    def use(self, visit: Visit) -> None:
        """Let the request read all values at once, so that the model need not know which an engine reads later."""
        if self.world.name in BY_KEYS and visit.model.data is None:
            for key in list(visit.model.load()):
                visit.store.get(key)
            list(visit.store.items())

    def compare(self, key: str) -> None:
        """Compare what is stored under a key."""
        store = self.world.store_class(key)
        found = {name: form(value) for name, value in store.items()}
        stored = self.site.live(key)
        if stored is None:
            assert (store.session_key, found) == (None, {})
            return
        assert store.session_key == key, "the session is there"
        assert found == {name: form(value) for name, value in stored.data.items()}
        assert abs(self.world.left(store) - (stored.until - self.site.now)) < 400

    @invariant()
    def count(self) -> None:
        self.world.steps += 1

    def teardown(self) -> None:
        """Compare all sessions, and look for others, which nobody should have stored."""
        if sys.exception() is None:
            for key in self.keys:
                self.compare(key)
            live = {self.world.store_class(key).session_id for key in self.keys if self.site.live(key)}
            assert self.world.live_ids() == live
        storage = self.world.store_class.get_storage()
        for session_id in self.world.live_ids():
            storage.remove_all(session_id)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", range(max(1, STEPS // A_ROUND)))
def test_an_engine_does_what_the_model_says(
    name: str, number: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with world(name, tmp_path) as one:

        @seed(len(NAMES) * number + NAMES.index(name))
        class Machine(Sessions):
            world = one

        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=AT_ONCE,
                deadline=None,
                database=None,
                report_multiple_bugs=False,
                suppress_health_check=[HealthCheck.too_slow],  # on a busy machine, an engine's calls take long
                phases=[Phase.generate, Phase.shrink],  # to explain a failure takes longer than a test may
            ),
        )
    record_property("model", one.steps)
    assert one.steps > EXAMPLES * AT_ONCE / 2
