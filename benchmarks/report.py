"""The results, as tables or as JSON."""

import math
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import django

from benchmarks.curves import OVER_LIVE, OVER_SIZE, Curve

_HEADINGS = ("operation", "engine", "time", "beside", "time", "ratio", "middle half", "target", "reached", "rounds")
_PAGE_HEADINGS = ("page", "served by", "engine", "per second", "beside", "per second", "ratio", "middle half", "rounds")
_PURGE_HEADINGS = (
    *("expired", "of", "purged by", "time", "slowest request before", "meanwhile", "ratio"),
    *("99.9 % within, before", "meanwhile", "full scan", "ratio"),
)
_SERIALIZER_HEADINGS = (
    "session",
    "serializer",
    "bytes",
    "dumps",
    "ratio",
    "middle half",
    "loads",
    "ratio",
    "middle half",
)
_SIZE_HEADINGS = ("engine", "sessions", "keys each", "bytes each, MEMORY USAGE", "bytes each, used_memory")

Table = list[tuple[str, ...]]
"""Rows of cells, the headings first."""


@dataclass(frozen=True)
class Report:
    """The results of one run. A part that was not measured is empty."""

    machine: dict[str, str]
    results: "Sequence[Result]"
    pages: "Sequence[PageResult]"
    sizes: "Sequence[SizeResult]"
    purges: "Sequence[PurgeResult]"
    serializers: "Sequence[SerializerResult]"


@dataclass(frozen=True)
class Result:
    """One engine of ours beside one peer in one operation. Times are medians, in nanoseconds per call.

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


@dataclass(frozen=True)
class PageResult:
    """A page of a site with one of our engines beside the same page with a peer. Rates are requests per second.

    Attributes:
        ratio: the median of the rounds' ratios of rates, ours to the peer's; `low` and `high` are their quartiles.
    """

    page: str
    server: str
    ours: str
    ours_rate: float
    peer: str
    peer_rate: float
    ratio: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class SizeResult:
    """The memory of a session on the Redis server.

    Attributes:
        sessions: the number of stored sessions.
        keys: the number of Redis keys per session.
        memory_usage: bytes per session, by ``MEMORY USAGE`` of its keys.
        used_memory: bytes per session, by the difference in ``INFO`` before and after.
    """

    engine: str
    sessions: int
    keys: float
    memory_usage: float
    used_memory: float


@dataclass(frozen=True)
class SerializerResult:
    """A serializer beside another on one session. Times are medians, in nanoseconds per call.

    Attributes:
        bytes: the size of the serialized session.
        dumps_ratio, loads_ratio: the quartiles of the rounds' ratios, its time to the other's.
    """

    session: str
    serializer: str
    bytes: int
    peer: str
    dumps_ns: float
    dumps_ratio: tuple[float, float, float]
    loads_ns: float
    loads_ratio: tuple[float, float, float]
    rounds: int


@dataclass(frozen=True)
class PurgeResult:
    """A purge of a large table. Times are in seconds.

    Attributes:
        sessions, expired: the number of all sessions, and of expired ones.
        seconds: the time of the purge.
        slowest_before, slowest: the slowest request of a client before the purge, and while it ran.
        most_before, most: the time within which 999 of 1000 requests ended, before and while it ran.
        scan: the time of a scan of every row.
    """

    by: str
    sessions: int
    expired: int
    seconds: float
    slowest_before: float | None = None
    slowest: float | None = None
    most_before: float | None = None
    most: float | None = None
    scan: float | None = None

    @property
    def ratio(self) -> float:
        """The time of the slowest request while the purge ran, over that of the slowest before."""
        return self.slowest / self.slowest_before if self.slowest and self.slowest_before else math.nan


def compare(
    operation: str, ours: str, our_times: Sequence[float], peer: str, peer_times: Sequence[float], target: float | None
) -> Result:
    low, ratio, high = _quartiles(our_times, peer_times)
    medians = statistics.median(our_times), statistics.median(peer_times)
    return Result(operation, ours, medians[0], peer, medians[1], ratio, low, high, target, len(our_times))


def compare_pages(
    page: str, server: str, ours: str, our_times: Sequence[float], peer: str, peer_times: Sequence[float]
) -> PageResult:
    """Compare by nanoseconds per request, one number for each round."""
    low, ratio, high = _quartiles(peer_times, our_times)
    rates = 1e9 / statistics.median(our_times), 1e9 / statistics.median(peer_times)
    return PageResult(page, server, ours, rates[0], peer, rates[1], ratio, low, high, len(our_times))


def compare_serializers(
    session: str, serializer: str, size: int, peer: str, dumps: dict[str, list[float]], loads: dict[str, list[float]]
) -> SerializerResult:
    """Compare by nanoseconds per call of each serializer, one number for each round."""

    def of(times: dict[str, list[float]]) -> tuple[float, tuple[float, float, float]]:
        low, ratio, high = _quartiles(times[serializer], times[peer])
        return statistics.median(times[serializer]), (low, ratio, high)

    return SerializerResult(session, serializer, size, peer, *of(dumps), *of(loads), len(dumps[serializer]))


def _quartiles(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return statistics.quantiles(ratios, n=4, method="inclusive")


def environment() -> dict[str, str]:
    folder = tempfile.gettempdir()
    return {
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Django": django.get_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "session files on": _file_system(Path(folder).resolve()),
        **{name: version(name) for name in ("redis", "hiredis", "django-redis", "msgspec", "gunicorn", "uvicorn")},
    }


def _file_system(folder: Path) -> str:
    """Return the type of the file system, and its options: one mounted with ``discard`` is slow at freeing blocks."""
    try:
        mounts = [line.split()[1:4] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "a file system of unknown type"
    # The last mount on a folder hides earlier ones.
    *_, kind, options = max(
        (len(Path(point).parts), number, kind, options)
        for number, (point, kind, options) in enumerate(mounts)
        if folder.is_relative_to(point)
    )
    return f"{kind} ({options})"


def as_json(report: Report) -> dict[str, Any]:
    return {
        "environment": report.machine,
        "results": [asdict(result) | {"reached": result.reached} for result in report.results],
        "pages": [asdict(result) for result in report.pages],
        "sizes": [asdict(result) for result in report.sizes],
        "purges": [asdict(result) for result in report.purges],
        "serializers": [asdict(result) for result in report.serializers],
    }


def as_text(report: Report) -> str:
    return "\n\n".join([_machine(report.machine), *("\n".join(_lines(table)) for table in _tables(report))])


def _lines(table: Table) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def as_markdown(report: Report) -> str:
    parts = [_machine(report.machine)]
    for headings, *rows in _tables(report):
        marked = [headings, ("---",) * len(headings), *rows]
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in marked))
    return "\n\n".join(parts)


def _machine(machine: dict[str, str]) -> str:
    return "; ".join(f"{name} {value}" for name, value in machine.items())


def _tables(report: Report) -> Iterator[Table]:
    if report.results:
        yield [_HEADINGS, *(tuple(_cells(result)) for result in report.results)]
        for curves in (OVER_SIZE, OVER_LIVE):
            table = _curves(report.results, curves)
            if len(table) > 1:
                yield table
    if report.pages:
        yield [_PAGE_HEADINGS, *(tuple(_page_cells(result)) for result in report.pages)]
    if report.sizes:
        yield [_SIZE_HEADINGS, *(tuple(_size_cells(result)) for result in report.sizes)]
    if report.purges:
        yield [_PURGE_HEADINGS, *(tuple(_purge_cells(result)) for result in report.purges)]
    if report.serializers:
        yield [_SERIALIZER_HEADINGS, *(tuple(_serializer_cells(result)) for result in report.serializers)]


def _cells(result: Result) -> Iterator[str]:
    yield from (result.operation, result.ours, _duration(result.ours_ns), result.peer, _duration(result.peer_ns))
    yield from (f"{result.ratio:.3f}", f"{result.low:.3f} to {result.high:.3f}")
    yield "" if result.target is None else f"{result.target:g}"
    yield "" if result.reached is None else "yes" if result.reached else "NO"
    yield str(result.rounds)


def _curves(results: Sequence[Result], curves: Mapping[str, Curve]) -> Table:
    """Return the ratio at each point, with the target. Each pair of engines with several points has a row."""
    table: Table = [("operation", "engine", "beside", *next(iter(curves.values())))]
    for operation, curve in curves.items():
        for ours, peer in dict.fromkeys((result.ours, result.peer) for result in results):
            found = {result.operation: result for result in results if (result.ours, result.peer) == (ours, peer)}
            points = [found.get(name) for name in curve.values()]
            if len(points) - points.count(None) > 1:
                table.append((operation, ours, peer, *map(_point, points)))
    return table


def _point(result: Result | None) -> str:
    if result is None:
        return ""
    target = "" if result.target is None else f" ({result.target:g}: {'yes' if result.reached else 'NO'})"
    return f"{result.ratio:.2f}{target}"


def _page_cells(result: PageResult) -> Iterator[str]:
    yield from (result.page, result.server, result.ours, f"{result.ours_rate:.0f}", result.peer)
    yield from (f"{result.peer_rate:.0f}", f"{result.ratio:.2f}", f"{result.low:.2f} to {result.high:.2f}")
    yield str(result.rounds)


def _size_cells(result: SizeResult) -> Iterator[str]:
    yield from (result.engine, str(result.sessions), f"{result.keys:g}")
    yield from (f"{result.memory_usage:.0f}", f"{result.used_memory:.0f}")


def _serializer_cells(result: SerializerResult) -> Iterator[str]:
    yield from (result.session, result.serializer, str(result.bytes))
    for nanoseconds, (low, ratio, high) in (
        (result.dumps_ns, result.dumps_ratio),
        (result.loads_ns, result.loads_ratio),
    ):
        yield from (_duration(nanoseconds), f"{ratio:.2f}", f"{low:.2f} to {high:.2f}")


def _purge_cells(result: PurgeResult) -> Iterator[str]:
    def time(seconds: float | None) -> str:
        return "" if seconds is None else _duration(seconds * 1e9)

    yield from (f"{result.expired:,}", f"{result.sessions:,}", result.by, time(result.seconds))
    yield from (time(result.slowest_before), time(result.slowest))
    yield "" if math.isnan(result.ratio) else f"{result.ratio:.2f}"
    yield from (time(result.most_before), time(result.most), time(result.scan))
    yield "" if result.scan is None else f"{result.seconds / result.scan:.3f}"


def _duration(nanoseconds: float) -> str:
    if nanoseconds < 10e6:
        return f"{nanoseconds / 1e3:.1f} µs"
    return f"{nanoseconds / 1e6:.1f} ms" if nanoseconds < 100e6 else f"{nanoseconds / 1e9:.2f} s"
