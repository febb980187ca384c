"""The time to serialize and deserialize a session: our serializers beside Django's."""

import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from django.contrib.sessions.serializers import JSONSerializer

from benchmarks.measure import WrongResult
from benchmarks.operations import SESSION
from benchmarks.report import SerializerResult, compare_serializers
from gsession_django import serializers
from gsession_django.serializers import TypedSerializer


@dataclass(frozen=True)
class Plan:
    """How much to measure: the rounds, in which each serializer has a turn, and about how many milliseconds a turn."""

    rounds: int
    turn: float


NORMAL, QUICK = Plan(rounds=200, turn=3), Plan(rounds=20, turn=2)

# Things in the cart that make a session of about this size, as JSON.
_SIZES: Final = {"5 keys": 0, "1 kB": 6, "10 kB": 80, "100 kB": 810}
_TYPED, _KEPT, _DJANGO = "TypedSerializer", "JSONSerializer, as kept here", "JSONSerializer"


def _session(things: int, typed: bool) -> dict[str, Any]:
    """Return the session of a signed-in user. The prices and times of the things in the cart are typed, or text."""
    start = datetime(2026, 11, 26, 14, 0, tzinfo=UTC)
    lines = [
        {
            "product": 1000 + number,
            "name": f"Thing number {number}",
            "quantity": number % 5,
            "price": Decimal(f"{number}.90"),
            "added": start + timedelta(seconds=number),
        }
        for number in range(things)
    ]
    session = {**SESSION, "seen": start, **({"lines": lines} if things else {})}
    return session if typed else _as_text(session)


def _as_text(session: dict[str, Any]) -> dict[str, Any]:
    """Return the session with text in place of types that JSON lacks, as a site must do for JSONSerializer."""
    text: dict[str, Any] = {**session, "seen": session["seen"].isoformat()}
    if "lines" in session:
        text["lines"] = [
            {**line, "price": str(line["price"]), "added": line["added"].isoformat()} for line in session["lines"]
        ]
    return text


def _as_types(session: dict[str, Any]) -> dict[str, Any]:
    """Undo :func:`_as_text`, in place."""
    session["seen"] = datetime.fromisoformat(session["seen"])
    for line in session.get("lines", ()):
        line["price"] = Decimal(line["price"])
        line["added"] = datetime.fromisoformat(line["added"])
    return session


Pair = tuple[Callable[[Any], bytes], Callable[[bytes], Any]]
"""The functions that write a session and read it."""


def _pairs(typed: bool) -> dict[str, Pair]:
    ours, django = TypedSerializer(), JSONSerializer()
    kept: Pair = serializers.encode, serializers.decode  # SESSION_SERIALIZER is Django's here
    if not typed:
        return {_TYPED: (ours.dumps, ours.loads), _KEPT: kept, _DJANGO: (django.dumps, django.loads)}
    return {
        _TYPED: (ours.dumps, ours.loads),
        f"{_KEPT}, and text": (lambda data: kept[0](_as_text(data)), lambda data: _as_types(kept[1](data))),
        f"{_DJANGO}, and text": (lambda data: django.dumps(_as_text(data)), lambda data: _as_types(django.loads(data))),
    }


def measure_serializers(plan: Plan) -> Iterator[SerializerResult]:
    gc.freeze()  # the collection before each turn need not look through older objects again
    try:
        for typed in (False, True):
            for size, things in _SIZES.items():
                name = f"{size}, {'typed' if typed else 'plain'}"
                print(f"Measuring serializers, {name} ...", file=sys.stderr)
                yield from _measure(name, _session(things, typed), _pairs(typed), plan)
    finally:
        gc.unfreeze()


def _measure(name: str, session: dict[str, Any], pairs: dict[str, Pair], plan: Plan) -> Iterator[SerializerResult]:
    stored = {}
    for serializer, (dumps, loads) in pairs.items():
        stored[serializer] = dumps(session)
        if loads(stored[serializer]) != session:
            raise WrongResult(f"{serializer} does not bring back the session of {name}")
    *_, peer = pairs
    writing = _times({each: (dumps, session) for each, (dumps, _) in pairs.items()}, plan)
    reading = _times({each: (loads, stored[each]) for each, (_, loads) in pairs.items()}, plan)
    for serializer, data in stored.items():
        yield compare_serializers(name, serializer, len(data), peer, writing, reading)


def _times(calls: dict[str, tuple[Callable[[Any], Any], Any]], plan: Plan) -> dict[str, list[float]]:
    """Return nanoseconds per call, one number for each round, by serializer."""
    times: dict[str, list[float]] = {serializer: [] for serializer in calls}
    number = {serializer: _calls(*call, plan.turn) for serializer, call in calls.items()}
    for round_number in range(plan.rounds):
        order = list(calls) if round_number % 2 == 0 else list(calls)[::-1]
        for serializer in order:
            call, given = calls[serializer]
            times[serializer].append(_timed(call, given, number[serializer]) / number[serializer])
    return times


def _calls(call: Callable[[Any], Any], given: Any, milliseconds: float) -> int:
    """Return the number of calls that take about so many milliseconds."""
    return max(1, round(milliseconds * 1e6 / min(_timed(call, given, 3) / 3 for _ in range(5))))


def _timed(call: Callable[[Any], Any], given: Any, number: int) -> int:
    """Return nanoseconds of processor time: nothing waits here, so other processes do not count."""
    gc.collect()
    gc.disable()
    try:
        start = time.process_time_ns()
        for _ in range(number):
            call(given)
        return time.process_time_ns() - start
    finally:
        gc.enable()
