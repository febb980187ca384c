"""The operations to measure: each with its preparation, which is not timed, and a check of its result."""

import os
import reprlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from random import Random
from typing import Any

from django.contrib.sessions.backends.base import SessionBase

from benchmarks.curves import LIVE, OVER_LIVE, OVER_SIZE, SIZES, Curve
from benchmarks.measure import Operation, Plan, Subject, WrongResult
from gsession_django import SessionStore

USER = {
    "_auth_user_id": "4711",
    "_auth_user_backend": "django.contrib.auth.backends.ModelBackend",
    "_auth_user_hash": "5b1c0c9f4a1c2f9d7f35f0f4f1d0a1a7f0e7a3d9c4b8e6f2a1b3c5d7e9f1a3b5",
}
VISITOR = {"cart": {"apple": 3, "pear": 1, "plum": 12}, "language": "en"}
SESSION = {**USER, **VISITOR}

_PARAGRAPH = (
    "If nobody is at home on that day please leave the parcel with the neighbour on the second floor as it is a "
    "present and do not ring after eight in the evening since the children are asleep by then.\n"
)

_short = reprlib.Repr()
_short.maxdict = _short.maxstring = 100  # the value read may be a whole large session


def expect(subject: Subject, stored: Any, expected: Any, what: str) -> None:
    if stored != expected:
        raise WrongResult(f"{subject.name}: {what} is {_short.repr(stored)} in place of {_short.repr(expected)}")


def new_session(subject: Subject, data: dict[str, Any]) -> str:
    store = subject.store()
    store.update(data)
    store.save()
    assert store.session_key is not None
    return store.session_key


def read_back(subject: Subject, key: str) -> dict[str, Any]:
    return dict(subject.store(key).items())


@cache
def _drafts(size: int) -> dict[str, Any]:
    """Return the contents of a half-filled long form: four texts, `size` bytes together."""
    chosen, words = Random(size), _PARAGRAPH.split(" ")
    return {f"draft {number}": " ".join(chosen.choices(words, k=size // 8))[: size // 4] for number in range(4)}


@dataclass(frozen=True)
class OnSessions(Operation):
    """An operation on stored sessions of a signed-in user.

    Attributes:
        size: bytes of other data in each session, which the operation does not use.
        live: the number of all live sessions. The operation uses those of its plan.
    """

    size: int = 0
    live: int = 0

    @property
    def session(self) -> dict[str, Any]:
        return {**SESSION, **_drafts(self.size)} if self.size else SESSION

    def fill(self, subject: Subject, sessions: int) -> list[str]:
        keys = [new_session(subject, self.session) for _ in range(sessions)]
        if self.live > sessions:
            assert subject.setup.copy is not None
            subject.setup.copy(self.live // sessions - 1)
        return keys

    def prepare(self, subject: Subject, keys: Sequence[str]) -> Sequence[Any]:
        return keys


@dataclass(frozen=True)
class Load(OnSessions):
    def act(self, subject: Subject, given: str) -> Any:
        return subject.store(given).get("_auth_user_id")

    def check(self, subject: Subject, given: str, result: Any) -> None:
        value = result if subject.setup.value_of is None else subject.setup.value_of(result)
        expect(subject, value, USER["_auth_user_id"], "the value read")
        expect(subject, read_back(subject, given), self.session, "the session")


class AsyncLoad(Load):
    async def act(self, subject: Subject, given: str) -> Any:
        return await subject.store(given).aget("_auth_user_id")


class Modify(OnSessions):
    _values = count()

    def prepare(self, subject: Subject, keys: Sequence[str]) -> Sequence[tuple[str, str]]:
        return [(key, f"en-{next(self._values)}") for key in keys]

    def act(self, subject: Subject, given: tuple[str, str]) -> Any:
        key, value = given
        store = subject.store(key)
        store["language"] = value
        store.save()

    def check(self, subject: Subject, given: tuple[str, str], result: None) -> None:
        key, value = given
        expect(subject, read_back(subject, key), {**self.session, "language": value}, "the session")


class AsyncModify(Modify):
    async def act(self, subject: Subject, given: tuple[str, str]) -> None:
        key, value = given
        store = subject.store(key)
        await store.aset("language", value)
        await store.asave()


@dataclass(frozen=True)
class ChangeInPlace(OnSessions):
    """A request changes one item of a large dict, and then reads ``modified``, as the middleware does.

    Attributes:
        size: the approximate size of the dict in bytes, as JSON.
    """

    _values = count()

    @property
    def session(self) -> dict[str, Any]:
        lines = {str(number): {"name": "a thing", "price": "9.90", "n": 1} for number in range(self.size // 50)}
        return {**SESSION, "lines": lines}

    def prepare(self, subject: Subject, keys: Sequence[str]) -> Sequence[tuple[str, int]]:
        return [(key, next(self._values)) for key in keys]

    def act(self, subject: Subject, given: tuple[str, int]) -> Any:
        key, value = given
        store = subject.store(key)
        store["lines"]["7"]["n"] = value
        if not isinstance(store, SessionStore):
            store.modified = True  # Django asks the view to set it
        if store.modified:
            store.save()

    def check(self, subject: Subject, given: tuple[str, int], result: None) -> None:
        key, value = given
        expected = self.session
        expected["lines"]["7"]["n"] = value
        expect(subject, read_back(subject, key), expected, "the session")


@dataclass(frozen=True)
class Touch(OnSessions):
    """A request that changes nothing, under SESSION_SAVE_EVERY_REQUEST, soon after the visitor's last request."""

    save_every_request: bool = True

    def prepare(self, subject: Subject, keys: Sequence[str]) -> Sequence[Any]:
        visitor = subject.store(keys[0])
        visitor["language"] = "en"
        visitor.modified = True
        visitor.save()
        return [keys[0]] * len(keys)

    def act(self, subject: Subject, given: Any) -> Any:
        store = subject.store(given)
        store.get("_auth_user_id")
        store.save()

    def check(self, subject: Subject, given: Any, result: None) -> None:
        expect(subject, read_back(subject, self._key(given)), SESSION, "the session")

    def _key(self, given: Any) -> str:
        return str(given)

    def rehearse(self, subjects: Sequence[Subject]) -> None:
        """Check that a due touch renews the TTL: the session outlives one that was created with it."""
        if self.touch_interval is None:
            return
        # Django's engines round the time left down to whole seconds: below one second, a session is over.
        pairs = []
        for subject in subjects:
            with subject.turn(SESSION_COOKIE_AGE=4):
                pairs.append([new_session(subject, SESSION) for _ in range(2)])
        time.sleep(2.2)
        for subject, (touched, _) in zip(subjects, pairs, strict=True):
            with subject.turn(SESSION_COOKIE_AGE=4):
                store = subject.store(touched)
                store.get("_auth_user_id")
                store.save()
        time.sleep(2.2)
        for subject, (touched, other) in zip(subjects, pairs, strict=True):
            with subject.turn(SESSION_COOKIE_AGE=4):
                expect(subject, read_back(subject, touched), SESSION, "a session touched, after its first TTL,")
                expect(subject, read_back(subject, other), {}, "a session not touched, after its TTL,")
                subject.store().delete(touched)


class AsyncTouch(Touch):
    async def act(self, subject: Subject, given: Any) -> None:
        store = subject.store(given)
        await store.aget("_auth_user_id")
        await store.asave()


@dataclass(frozen=True)
class SaveUnchanged(Touch):
    """Only the save, of a session that an earlier call has read."""

    def prepare(self, subject: Subject, keys: Sequence[str]) -> Sequence[SessionBase]:
        stores = [subject.store(key) for key in super().prepare(subject, keys)]
        for store in stores:
            store.get("_auth_user_id")
        return stores

    def act(self, subject: Subject, given: SessionBase) -> None:
        given.save()

    def _key(self, given: SessionBase) -> str:
        return str(given.session_key)


class Create(OnSessions):
    def prepare(self, subject: Subject, keys: Sequence[str]) -> Sequence[None]:
        return [None] * len(keys)

    def act(self, subject: Subject, given: None) -> Any:
        store = subject.store()
        for key, value in SESSION.items():
            store[key] = value
        store.save()
        return store.session_key

    def check(self, subject: Subject, given: None, result: str) -> None:
        expect(subject, read_back(subject, result), SESSION, "the session")


class AsyncCreate(Create):
    async def act(self, subject: Subject, given: None) -> str | None:
        store = subject.store()
        for key, value in SESSION.items():
            await store.aset(key, value)
        await store.asave()
        return store.session_key


class Login(OnSessions):
    """A visitor signs in: a session that already holds a cart gets a new key and the user."""

    def prepare(self, subject: Subject, keys: Sequence[str]) -> Sequence[str]:
        return [new_session(subject, VISITOR) for _ in keys]

    def act(self, subject: Subject, given: str) -> Any:
        store = subject.store(given)
        store.get("_auth_user_id")
        store.cycle_key()
        for key, value in USER.items():
            store[key] = value
        store.save()
        return store.session_key

    def check(self, subject: Subject, given: str, result: str) -> None:
        expect(subject, read_back(subject, result), SESSION, "the session under its new key")
        expect(subject, read_back(subject, given), {}, "the session under its old key")


class AsyncLogin(Login):
    async def act(self, subject: Subject, given: str) -> str | None:
        store = subject.store(given)
        await store.aget("_auth_user_id")
        await store.acycle_key()
        for key, value in USER.items():
            await store.aset(key, value)
        await store.asave()
        return store.session_key


@dataclass(frozen=True)
class Purge(Operation):
    """A purge removes the expired half of many sessions. A subject's keys alternate: expired, live, and so on."""

    def fill(self, subject: Subject, sessions: int) -> list[str]:
        return list(self._sessions(subject, sessions))

    def _sessions(self, subject: Subject, sessions: int) -> Iterator[str]:
        # In runs, because switching the setting takes longer than creating a session.
        run = 100
        for _ in range(0, sessions, 2 * run):
            with subject.turn(SESSION_COOKIE_AGE=-1):
                expired = [new_session(subject, SESSION) for _ in range(run)]
            for key in expired:
                if subject.setup.expire is not None:
                    subject.setup.expire(key)
                yield key
                yield new_session(subject, SESSION)

    def prepare(self, subject: Subject, keys: Sequence[str]) -> Sequence[None]:
        os.sync()
        return [None]

    def act(self, subject: Subject, given: None) -> None:
        subject.store.clear_expired()

    def check(self, subject: Subject, given: None, result: None) -> None:
        live = subject.keys[1::2]
        if subject.setup.count is not None:
            expect(subject, subject.setup.count(), len(live), "the number of sessions left")
        expect(subject, sum(subject.store().exists(key) for key in live), len(live), "the number of live sessions left")
        expect(subject, read_back(subject, live[0]), SESSION, "a live session")


NORMAL = Plan(stages=1, rounds=150, calls=40, sessions=2000)
QUICK = Plan(stages=1, rounds=40, calls=10, sessions=2000)
MIDDLE = Plan(stages=1, rounds=100, calls=20, sessions=200)
LARGE = Plan(stages=1, rounds=60, calls=20, sessions=20)
QUICK_LARGE = Plan(stages=1, rounds=10, calls=20, sessions=20)
MEGABYTE = Plan(stages=1, rounds=40, calls=4, sessions=20)
QUICK_MEGABYTE = Plan(stages=1, rounds=10, calls=2, sessions=20)
AMONG = Plan(stages=1, rounds=100, calls=20, sessions=1000)
QUICK_AMONG = Plan(stages=1, rounds=20, calls=10, sessions=1000)
PURGE = Plan(stages=3, rounds=1, calls=1, sessions=100_000, warm_up=False)
QUICK_PURGE = Plan(stages=3, rounds=1, calls=1, sessions=5000, warm_up=False)

_OF_SIZE = {
    "1 kB": (MIDDLE, QUICK_LARGE),
    "10 kB": (MIDDLE, QUICK_LARGE),
    "100 kB": (LARGE, QUICK_LARGE),
    "1 MB": (MEGABYTE, QUICK_MEGABYTE),
}
# A million takes too long for a quick run.
_OF_LIVE = {"1,000": (AMONG, QUICK_AMONG), "100,000": (AMONG, QUICK_AMONG), "1,000,000": (AMONG, None)}


def _over_size(operation: type[OnSessions], curve: Curve) -> Iterator[Operation]:
    return (operation(curve[point], *plans, size=SIZES[point]) for point, plans in _OF_SIZE.items())


def _over_live(operation: type[OnSessions], curve: Curve) -> Iterator[Operation]:
    return (operation(curve[point], *plans, live=LIVE[point]) for point, plans in _OF_LIVE.items())


OPERATIONS: tuple[Operation, ...] = (
    Load("load", NORMAL, QUICK),
    *_over_size(Load, OVER_SIZE["load"]),
    *_over_live(Load, OVER_LIVE["load"]),
    # First, because operations that remove or rename files slow it down: see UNTIL_THE_END in engines.py.
    Create("create", NORMAL, QUICK),
    *_over_live(Create, OVER_LIVE["create"]),
    Modify("modify", NORMAL, QUICK),
    *_over_size(Modify, OVER_SIZE["modify"]),
    Touch("touch", NORMAL, QUICK),
    Touch("touch, due", NORMAL, QUICK, touch_interval=0),
    SaveUnchanged("save, not due", NORMAL, QUICK),
    SaveUnchanged("save, due", NORMAL, QUICK, touch_interval=0),
    Login("login", NORMAL, QUICK),
    ChangeInPlace("change in place, 1 kB", NORMAL, QUICK, size=1000),
    ChangeInPlace("change in place, 10 kB", MIDDLE, QUICK_LARGE, size=10_000),
    ChangeInPlace("change in place, 100 kB", LARGE, QUICK_LARGE, size=100_000),
    AsyncLoad("async load", NORMAL, QUICK),
    AsyncCreate("async create", NORMAL, QUICK),
    AsyncModify("async modify", NORMAL, QUICK),
    AsyncTouch("async touch", NORMAL, QUICK),
    AsyncLogin("async login", NORMAL, QUICK),
    Purge("purge", PURGE, QUICK_PURGE),
)
