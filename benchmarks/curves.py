"""The ranges to measure over: the size of a session, and the number of live sessions."""

from typing import Final

SIZES: Final = {"0 kB": 0, "1 kB": 1000, "10 kB": 10_000, "100 kB": 100_000, "1 MB": 1_000_000}
"""The bytes to add to a session, by the name of a point."""

LIVE: Final = {f"{number:,}": number for number in (1000, 100_000, 1_000_000)}

Curve = dict[str, str]
"""The name of an operation by the name of a point."""

OVER_SIZE: Final[dict[str, Curve]] = {
    operation: {name: f"{operation}, {name}" if size else operation for name, size in SIZES.items()}
    for operation in ("load", "modify")
}
OVER_LIVE: Final[dict[str, Curve]] = {
    operation: {name: f"{operation}, {name} live" for name in LIVE} for operation in ("load", "create")
}

CURVES: Final = frozenset(
    name for curves in (OVER_SIZE, OVER_LIVE) for curve in curves.values() for name in curve.values()
)
"""The names of all of these operations."""
