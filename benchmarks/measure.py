"""The method: the engines take turns in many short rounds, and each round gives one ratio.

The machine may be shared and noisy. A disturbance that is longer than a round affects all engines alike. A shorter one
spoils a few rounds of many, and the median ignores those.
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
"""Nanoseconds per call, one number for each round, by the name of the engine."""


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process, and the servers that it starts, on one core.

    A request and its reply then switch one core twice, which costs the same each time. With two cores, the scheduler
    sometimes wakes a waiting process on a sleeping core. On a virtual machine that takes longer than all the rest, and
    no engine is the cause.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class WrongResult(Exception):
    """An operation did not do its work, so its time means nothing."""


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        stages: how often to set up everything anew.
        rounds: the turns of each engine in a stage.
        calls: the number of calls in a turn.
        sessions: the number of sessions to store first.
        warm_up: whether to ignore the first round of a stage.
    """

    stages: int
    rounds: int
    calls: int
    sessions: int
    warm_up: bool = True


class Subject:
    """An engine, ready to measure.

    Attributes:
        store: its SessionStore.
        keys: the keys of the stored sessions.
    """

    def __init__(self, engine: Engine, setup: Setup) -> None:
        self.name = engine.name
        self.setup = setup
        self.store: type[SessionBase] = import_module(engine.module).SessionStore
        self.keys: list[str] = []

    @contextmanager
    def turn(self, **values: Any) -> Iterator[None]:
        """Apply the engine's settings, and `values` too, inside the block."""
        values = {**self.setup.settings, **values}
        before = {name: getattr(settings, name) for name in values}
        _set(values)
        try:
            yield
        finally:
            _set(before)


def _set(values: Mapping[str, Any]) -> None:
    # Not by override_settings: at its signal our engines would drop their storage, with all sessions in memory.
    for name, value in values.items():
        setattr(settings, name, value)


@dataclass(frozen=True)
class Operation(ABC):
    """An operation of an engine. Only :meth:`act` is timed. It may be a coroutine function.

    Attributes:
        plan: how much to measure.
        quick: the same with ``--quick``, which skips an operation that has ``None`` here.
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
        """Return the argument of each call of a turn. `keys` are keys of stored sessions, one for each call."""

    @abstractmethod
    def act(self, subject: Subject, given: Any) -> Any: ...

    @abstractmethod
    def check(self, subject: Subject, given: Any, result: Any) -> None:
        """Raise WrongResult if the first call of a stage, with the argument `given`, did not do its work."""

    def rehearse(self, subjects: Sequence[Subject]) -> None:  # noqa: B027
        """Make the checks that take too long for :meth:`check`, once before the measurement."""


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
        gc.freeze()  # the collections below need not look through older objects again
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
