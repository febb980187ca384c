"""How it is measured: the engines take turns in many short rounds, and each round gives one ratio.

The machine may be shared and noisy. What disturbs it longer than a round disturbs all engines alike, and what is
shorter spoils a few rounds of many, which a median does not see.
"""

import asyncio
import gc
import inspect
import os
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib.sessions.backends.base import SessionBase
from django.test.utils import override_settings

from benchmarks.engines import Engine, Setup

Times = dict[str, list[float]]
"""Nanoseconds a call, one number a round, by the name of the engine."""


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process, and the servers that it starts, on one core.

    A request and its reply are then two switches of one core and cost the same each time. Over two, whoever waits is
    woken on a core that has gone to sleep, or is not, as the scheduler likes: on a virtual machine that takes longer
    than all the rest, and it has nothing to do with what is measured.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class WrongResult(Exception):
    """An operation did not do what it claims: its time means nothing."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        stages: how often everything is set up anew.
        rounds: in each stage, how often each engine has its turn.
        calls: the number of calls in a turn.
        sessions: how many sessions are stored before.
        warm_up: whether the first round of a stage does not count.
    """

    stages: int
    rounds: int
    calls: int
    sessions: int
    warm_up: bool = True


class Subject:
    """An engine that is set up for measuring.

    Attributes:
        store: its SessionStore.
        keys: the session keys of what is stored.
    """

    def __init__(self, engine: Engine, setup: Setup) -> None:
        self.name = engine.name
        self.setup = setup
        self.store: type[SessionBase] = import_module(engine.module).SessionStore
        self.keys: list[str] = []

    @contextmanager
    def turn(self, **values: Any) -> Iterator[None]:
        """Let the engine's settings hold, and `values` too."""
        values = {**self.setup.settings, **values}
        before = {name: getattr(settings, name) for name in values}
        _set(values)
        try:
            yield
        finally:
            _set(before)


def _set(values: Mapping[str, Any]) -> None:
    # Not by override_settings: at its signal our engines would drop their storage, and with it what is in memory.
    for name, value in values.items():
        setattr(settings, name, value)


@dataclass(frozen=True)
class Operation(ABC):
    """Something that an engine does. Only :meth:`act` is timed; it may be a coroutine function.

    Attributes:
        plan, quick: how much is measured, normally and with ``--quick``, which leaves out an operation without.
        save_every_request: ``SESSION_SAVE_EVERY_REQUEST``.
        touch_interval: ``GSESSION["TOUCH_INTERVAL"]``; ``None`` leaves the default.
    """

    name: str
    plan: Plan
    quick: Plan | None
    save_every_request: bool = False
    touch_interval: float | None = None

    @abstractmethod
    def fill(self, subject: Subject, sessions: int) -> list[str]:
        """Store sessions and return their keys."""

    @abstractmethod
    def prepare(self, subject: Subject, keys: Sequence[str]) -> Sequence[Any]:
        """Return what each call of a turn is given; `keys` are of stored sessions, as many as there are calls."""

    @abstractmethod
    def act(self, subject: Subject, given: Any) -> Any: ...

    @abstractmethod
    def check(self, subject: Subject, given: Any, result: Any) -> None:
        """Raise WrongResult if the call that was `given` this, the first of a stage, did not do what it claims."""

    def rehearse(self, subjects: Sequence[Subject]) -> None:  # noqa: B027
        """The same for what takes longer to see, before anything is measured."""


def measure(operation: Operation, plan: Plan, engines: Sequence[Engine]) -> Times:
    times: Times = {engine.name: [] for engine in engines}
    with asyncio.Runner() as runner:
        for stage in range(plan.stages):
            with _on_stage(operation, plan, engines) as subjects:
                for number in range(plan.rounds + plan.warm_up):
                    turns = _round(operation, plan, subjects, stage + number, runner, check=number == 0)
                    if number >= plan.warm_up:
                        for name, elapsed in turns.items():
                            times[name].append(elapsed / plan.calls)
    return times


@contextmanager
def _on_stage(operation: Operation, plan: Plan, engines: Sequence[Engine]) -> Iterator[list[Subject]]:
    with ExitStack() as stack:
        setups = [stack.enter_context(engine.setup()) for engine in engines]
        gsession: dict[str, Any] = {
            "ENGINES": {
                engine.module: setup.options for engine, setup in zip(engines, setups, strict=True) if setup.options
            }
        }
        if operation.touch_interval is not None:
            gsession["TOUCH_INTERVAL"] = operation.touch_interval
        stack.enter_context(
            override_settings(
                SESSION_SAVE_EVERY_REQUEST=operation.save_every_request,
                CACHES={alias: cache for setup in setups for alias, cache in setup.caches.items()},
                GSESSION=gsession,
            )
        )
        subjects = [Subject(engine, setup) for engine, setup in zip(engines, setups, strict=True)]
        for subject in subjects:
            with subject.turn():
                subject.keys = operation.fill(subject, plan.sessions)
        gc.collect()
        gc.freeze()  # what is there by now is not looked through again at each collection below
        try:
            operation.rehearse(subjects)
            yield subjects
        finally:
            gc.unfreeze()


def _round(
    operation: Operation, plan: Plan, subjects: Sequence[Subject], number: int, runner: asyncio.Runner, check: bool
) -> dict[str, int]:
    order = subjects if number % 2 == 0 else subjects[::-1]
    chosen = random.Random(number).sample(range(plan.sessions), plan.calls)
    turns = {}
    for subject in order:
        with subject.turn():
            given = operation.prepare(subject, [subject.keys[index] for index in chosen])
            elapsed, results = _timed(operation, subject, given, runner)
            if check:
                operation.check(subject, given[0], results[0])
        turns[subject.name] = elapsed
    return turns


def _timed(
    operation: Operation, subject: Subject, given: Sequence[Any], runner: asyncio.Runner
) -> tuple[int, list[Any]]:
    act = operation.act
    gc.collect()
    gc.disable()
    try:
        if inspect.iscoroutinefunction(act):

            async def run() -> tuple[int, list[Any]]:
                start = time.perf_counter_ns()
                results = [await act(subject, each) for each in given]
                return time.perf_counter_ns() - start, results

            return runner.run(run())
        start = time.perf_counter_ns()
        results = [act(subject, each) for each in given]
        return time.perf_counter_ns() - start, results
    finally:
        gc.enable()
