"""Moves of a session, in every order of the steps of several actors, and stopped at every point.

An actor is an operation that the test drives by hand, one call at a time, on the memory storage and a dict. The test
tries every next step from each state. In each state, a visitor then comes alone: a visitor would find the same after
the other actors were killed there.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from gsession_django import SessionMap
from gsession_django.backends.memory import MemoryStorage, SessionStore
from gsession_django.core.abilities import abilities
from gsession_django.core.driving import UNABLE, Operation
from gsession_django.core.engine import Engine
from gsession_django.core.locks import IdLocks
from gsession_django.moving import steps
from gsession_django.moving.fallback import FallbackEngine
from gsession_django.moving.source import Found, Source

pytestmark = pytest.mark.once

KEY, ID, NEW_ID = "the-session-key", "the-id", "the-new-id"
DATA = {"user": 1, "cart": {"apple": 1}}
LEFT = 99.5  # the TTL of the session at the source
RENEWED = 5000  # its TTL after the visitor has saved a change


class Dict:
    """A source in memory."""

    name = "a dict"

    def __init__(self) -> None:
        self.sessions: dict[str, dict[str, Any]] = {KEY: dict(DATA)}

    def ref_of(self, session_key: str) -> str:
        return session_key

    def batches(self, size: int) -> Iterator[Sequence[str]]:
        yield list(self.sessions)

    def read(self, refs: Sequence[str]) -> dict[str, Found | None]:
        return {ref: Found(dict(self.sessions[ref]), LEFT) for ref in refs if ref in self.sessions}

    def present(self, refs: Sequence[str]) -> set[str]:
        return {ref for ref in refs if ref in self.sessions}

    def remove(self, refs: Sequence[str]) -> None:
        for ref in refs:
            self.sessions.pop(ref, None)


class Refusing(MemoryStorage):
    """A target that creates the session, and refuses each change of it."""

    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        if session_id == ID:
            raise ValueError("too large")
        return super().apply(session_id, session, ttl)


@dataclass
class Actor:
    """An actor in a process of its own.

    Attributes:
        operation: what it does.
        call: its next call; ``None`` after the last.
        seen: the answers that it has got so far. They determine what it does next.
    """

    operation: Operation
    call: Any = None
    seen: list[Any] = field(default_factory=list)
    result: Any = None

    @property
    def name(self) -> str:
        return "" if self.call is None else self.call[0] if isinstance(self.call, tuple) else self.call.func.__name__


class _Engine(FallbackEngine):
    """An engine with a fallback that no setting names."""

    def __init__(self, source: Source) -> None:
        Engine.__init__(self, SessionStore)
        self.fallback = source


class World:
    """The two engines and the actors, after some steps.

    Args:
        actors: make the operation of each actor.
        path: the numbers of the actors that took a step, in this order; -1 is a visitor's request that saves a change.
        storage_class: the target.
    """

    def __init__(
        self,
        actors: Sequence[Callable[["World"], Operation]],
        path: Sequence[int],
        storage_class: type[MemoryStorage] = MemoryStorage,
    ) -> None:
        self.source, self.storage = Dict(), storage_class()
        self.ended, self.changed = 0, False
        self.actors = [Actor(make(self)) for make in actors]
        for actor in self.actors:
            self._go_on(actor, None)
        for number in path:
            self.step(number)

    def engine(self) -> FallbackEngine:
        engine = _Engine(self.source)
        # Locks of this world: the actors of another one hold theirs for ever.
        engine.storage, engine.locks = self.storage, IdLocks()
        engine.choose_calls()
        return engine

    def _go_on(self, actor: Actor, told: Any) -> None:
        try:
            actor.call = actor.operation.throw(told) if isinstance(told, Exception) else actor.operation.send(told)
        except StopIteration as stop:
            actor.call, actor.result = None, stop.value
        except ImproperlyConfigured as error:  # the visitor's request raises it
            actor.call, actor.result = None, error

    def perform(self, call: Any) -> Any:
        if not isinstance(call, tuple):
            return call()
        return getattr(self.storage, call[0])(*call[1:]) if call[0] in abilities(type(self.storage)) else UNABLE

    def step(self, number: int) -> None:
        if number == -1:
            self.visitor_changes_something()
            return
        actor = self.actors[number]
        try:
            told = self.perform(actor.call)
        except ValueError as error:
            told = error
        actor.seen.append((actor.name, told))
        self._go_on(actor, told)

    def alone(self, operation: Operation) -> Any:
        """Run an operation to its end, with no step of another in between."""
        return self.engine().run(operation)

    def visit(self, session_id: str = ID, session_key: str = KEY) -> dict[str, Any] | None:
        session = self.alone(self.engine().find(session_key, session_id, AGE))
        return None if session is None else session.as_dict()

    def visitor_changes_something(self) -> None:
        session = self.alone(self.engine().find(KEY, ID, AGE))
        self.changed = session is not None
        if session is not None:
            session["cart"]["pear"] = 1
            assert self.storage.apply(ID, session, RENEWED)

    # What the engines have.

    def at_target(self, session_id: str = ID) -> dict[str, Any] | None:
        session = self.storage.get_session(session_id, 1)
        return None if session is None else session.as_dict()

    def ttl_left(self, session_id: str = ID) -> float:
        session = self.storage.get_session(session_id, 1)
        assert session is not None
        assert session.ttl_left is not None
        return session.ttl_left

    def state(self) -> Any:
        """Return everything that determines the next steps."""
        seen = tuple(tuple((name, self._plain(told)) for name, told in actor.seen) for actor in self.actors)
        return self._plain(self.source.sessions), self._plain(self.at_target()), self.changed, seen

    def _plain(self, told: Any) -> str:
        if isinstance(told, SessionMap):
            current = self.storage.get_session(ID, 1)
            return f"{SessionMap(told.as_dict())} {current is not None and current.version == told.version}"
        return repr(told)


class _Lifetimes:
    def get_session_cookie_age(self) -> int:
        return 1000

    def ttl_of(self, expiry: Any) -> int:
        return 1000

    def owner(self) -> str | None:
        return None


AGE = _Lifetimes()


# Actors.


def first_touch(world: World) -> Operation:
    """A request of the site."""
    session = yield from world.engine().find(KEY, ID, AGE)
    assert session is not None or world.ended


def command(world: World) -> Operation:
    """``migrate_sessions``."""
    found = (yield functools.partial(world.source.read, [KEY])).get(KEY)
    if found is not None:
        yield from steps.move(world.engine(), world.source, {KEY: (ID, found)}, AGE)


def copying(world: World) -> Operation:
    """``migrate_sessions --copy``."""
    found = (yield functools.partial(world.source.read, [KEY])).get(KEY)
    if found is not None:
        yield from steps.copy(world.engine(), world.source, {KEY: (ID, found)}, AGE)


def sign_out(world: World) -> Operation:
    """A request that ends the session."""
    yield functools.partial(world.source.remove, [KEY])
    world.ended = 1
    yield "remove_all", ID
    world.ended = 2


def sign_in(world: World) -> Operation:
    """A request that gives the session another key."""
    # The first touch is one step here, to keep the number of states small. Other actors try its steps.
    load = world.engine().find(KEY, ID, AGE)
    assert (yield functools.partial(world.alone, load)) is not None
    yield functools.partial(world.source.remove, [KEY])
    world.ended = 1
    assert (yield "move", ID, NEW_ID, 1000)
    world.ended = 2


# What must hold.


def check(world: World, keeps: bool) -> None:
    """Check what a visitor finds who comes alone; `keeps` is whether an actor copies."""
    ended, changed = world.ended, world.changed
    found = world.visit()
    if ended == 2:
        assert found is None
        assert world.source.sessions == {}
        assert world.at_target() is None
    elif ended == 0 or found is not None:
        assert found == (DATA if not changed else {"user": 1, "cart": {"apple": 1, "pear": 1}})
        assert world.at_target() == found, "no pair is left"
        assert world.source.sessions == {} or keeps
        assert 4990 < world.ttl_left() <= RENEWED if changed else 90 < world.ttl_left() <= 100


def check_refused(world: World) -> None:
    """Check the same if the target refuses the session."""
    ended = world.ended
    if ended == 0:
        with pytest.raises(ImproperlyConfigured, match="too large"):
            world.visit()
        assert world.source.sessions == {KEY: DATA}
    else:
        assert world.visit() is None
        assert world.source.sessions == {}
    if ended != 1:
        assert world.at_target() is None, "no copy is left"


def check_new(world: World) -> None:
    """Check the same if the session has a new key by then."""
    if world.ended == 2:
        assert world.visit(NEW_ID, "the-new-session-key") == DATA
        assert world.at_target(NEW_ID) == DATA, "no pair is left"


def explore(
    monkeypatch: pytest.MonkeyPatch,
    *actors: Callable[[World], Operation],
    keeps: bool = False,
    changes: bool = False,
    refuses: bool = False,
) -> int:
    """Try all orders of all steps, and return the number of states.

    Args:
        actors: the actors.
        keeps: whether one of them copies.
        changes: whether a visitor also saves a change, some time before the session ends.
        refuses: whether the target refuses the session.
    """
    met = set()
    paths: list[tuple[int, ...]] = [()]
    while paths:
        path = paths.pop()
        # Each copy has its own token, and the same path makes the same tokens.
        tokens = itertools.count()
        monkeypatch.setattr("secrets.token_hex", lambda size, tokens=tokens: f"token {next(tokens)}")
        try:
            world = World(actors, path, Refusing if refuses else MemoryStorage)
            state = world.state()
            if state in met:
                continue
            met.add(state)
            paths += [(*path, number) for number, actor in enumerate(world.actors) if actor.call is not None]
            if changes and not world.changed and world.ended == 0:
                paths.append((*path, -1))
            if refuses:
                check_refused(world)
            else:
                check(world, keeps)
            if sign_in in actors:
                check_new(World(actors, path))
        except AssertionError as error:
            names = ["visitor" if number == -1 else f"{actors[number].__name__}[{number}]" for number in path]
            raise AssertionError(f"{error}\nafter {' '.join(names)}") from error
    return len(met)


@pytest.mark.parametrize(
    ("actors", "changes"),
    [
        ([first_touch, first_touch], True),
        ([first_touch, command], True),
        ([command, command, sign_out], True),
        ([first_touch, command, sign_out], False),
        ([first_touch, first_touch, sign_out], False),
        ([first_touch, sign_in], False),
        ([command, command, sign_in], False),
    ],
    ids=lambda value: "-".join(actor.__name__ for actor in value) if isinstance(value, list) else "",
)
def test_a_session_that_is_moved_is_never_lost_and_never_comes_back(
    monkeypatch: pytest.MonkeyPatch, actors: list[Callable[[World], Operation]], changes: bool
) -> None:
    assert explore(monkeypatch, *actors, changes=changes) > 90


def test_what_a_session_has_left_to_live_is_rounded_up() -> None:
    world = World([], [])
    call = next(steps.move(world.engine(), world.source, {KEY: (ID, Found(DATA, LEFT))}, AGE))
    assert isinstance(call, tuple)
    assert (call[0], call[1], call[3]) == ("create", ID, 100)


@pytest.mark.parametrize("actors", [[copying, copying, sign_out], [first_touch, copying, sign_out]])
def test_nor_is_one_that_is_copied(monkeypatch: pytest.MonkeyPatch, actors: list[Callable[[World], Operation]]) -> None:
    assert explore(monkeypatch, *actors, keeps=True) > 90


@pytest.mark.parametrize(
    "actors",
    [
        [first_touch, command],
        [command, sign_out],
        [copying, sign_out],
        [first_touch, copying],
        [command, command],
        [first_touch, sign_out],
    ],
)
def test_one_that_the_target_refuses_half_way_stays_at_the_source_and_leaves_no_copy(
    monkeypatch: pytest.MonkeyPatch, actors: list[Callable[[World], Operation]]
) -> None:
    assert explore(monkeypatch, *actors, refuses=True) > 20
