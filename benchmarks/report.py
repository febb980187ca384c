"""What was measured, as a table or as JSON."""

import os
import platform
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import django

_HEADINGS = ("operation", "engine", "time", "beside", "time", "ratio", "middle half", "target", "reached", "rounds")


@dataclass(frozen=True)
class Result:
    """One engine of ours beside one peer in one operation. Times are medians, in nanoseconds a call.

    Attributes:
        ratio: the median of the rounds' ratios, ours to the peer's; `low` and `high` are their quartiles.
        target: the ratio to reach, if there is one.
    """

    operation: str
    ours: str
    ours_ns: float
    peer: str
    peer_ns: float
    ratio: float
    low: float
    high: float
    target: float | None
    rounds: int

    @property
    def reached(self) -> bool | None:
        return None if self.target is None else self.ratio <= self.target


def compare(
    operation: str, ours: str, our_times: Sequence[float], peer: str, peer_times: Sequence[float], target: float | None
) -> Result:
    ratios = [mine / other for mine, other in zip(our_times, peer_times, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Result(
        operation,
        ours,
        statistics.median(our_times),
        peer,
        statistics.median(peer_times),
        ratio,
        low,
        high,
        target,
        len(ratios),
    )


def environment() -> dict[str, str]:
    folder = tempfile.gettempdir()
    return {
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Django": django.get_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "session files on": _file_system(Path(folder).resolve()),
    }


def _file_system(folder: Path) -> str:
    """Return the type of the file system, and its options: one mounted with ``discard`` is slow at freeing blocks."""
    try:
        mounts = [line.split()[1:4] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "a file system of unknown type"
    # Of mounts on the same folder the last one is seen.
    *_, kind, options = max(
        (len(Path(point).parts), number, kind, options)
        for number, (point, kind, options) in enumerate(mounts)
        if folder.is_relative_to(point)
    )
    return f"{kind} ({options})"


def as_json(results: Sequence[Result], machine: dict[str, str]) -> dict[str, Any]:
    return {
        "environment": machine,
        "results": [asdict(result) | {"reached": result.reached} for result in results],
    }


def as_text(results: Sequence[Result], machine: dict[str, str]) -> str:
    rows = [_HEADINGS, *(_row(result) for result in results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join([_machine(machine), "", *table])


def as_markdown(results: Sequence[Result], machine: dict[str, str]) -> str:
    rows = [_HEADINGS, ("---",) * len(_HEADINGS), *(_row(result) for result in results)]
    return "\n".join([_machine(machine), "", *("| " + " | ".join(row) + " |" for row in rows)])


def _machine(machine: dict[str, str]) -> str:
    return "; ".join(f"{name} {value}" for name, value in machine.items())


def _row(result: Result) -> tuple[str, ...]:
    return tuple(_cells(result))


def _cells(result: Result) -> Iterator[str]:
    yield from (result.operation, result.ours, _duration(result.ours_ns), result.peer, _duration(result.peer_ns))
    yield from (f"{result.ratio:.3f}", f"{result.low:.3f} to {result.high:.3f}")
    yield "" if result.target is None else f"{result.target:g}"
    yield "" if result.reached is None else "yes" if result.reached else "NO"
    yield str(result.rounds)


def _duration(nanoseconds: float) -> str:
    microseconds = nanoseconds / 1000
    return f"{microseconds:.1f} µs" if microseconds < 10_000 else f"{microseconds / 1_000_000:.2f} s"
