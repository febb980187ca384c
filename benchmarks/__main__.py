"""``python -m benchmarks``: measures the engines and prints the results."""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import django

from benchmarks import database_engines, engines, http, purging, redis_engines, report, serializers, sizes
from benchmarks.curves import CURVES
from benchmarks.engines import UNTIL_THE_END, Comparison
from benchmarks.measure import Operation, Plan, WrongResult, measure, one_core
from benchmarks.operations import OPERATIONS

COMPARISONS = (*engines.COMPARISONS, *redis_engines.COMPARISONS, *database_engines.COMPARISONS)
OVER_RANGES, HTTP, BYTES, PURGING, SERIALIZERS = _PARTS = "curves", "http", "bytes", "purging", "serializers"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    django.setup()
    results: list[report.Result] = []
    pages: list[report.PageResult] = []
    bytes_a_session: list[report.SizeResult] = []
    purges: list[report.PurgeResult] = []
    serialized: list[report.SerializerResult] = []
    wrong: list[str] = []

    def wanted(*names: str) -> bool:
        return not options.only or not set(options.only).isdisjoint(names)

    with UNTIL_THE_END:
        with nullcontext() if options.spread else one_core():
            for comparison, operation in itertools.product(COMPARISONS, OPERATIONS):
                plan = operation.quick if options.quick else operation.plan
                parts = [OVER_RANGES] if operation.name in CURVES else []
                if plan is not None and wanted(comparison.name, operation.name, *parts):
                    try:
                        results += _compare(comparison, operation, plan)
                    except WrongResult as error:
                        wrong.append(f"{comparison.name}, {operation.name}: {error}")
            if wanted(SERIALIZERS):
                try:
                    serialized += serializers.measure_serializers(
                        serializers.QUICK if options.quick else serializers.NORMAL
                    )
                except WrongResult as error:
                    wrong.append(f"{SERIALIZERS}: {error}")
        redis_engines.spread()
        if wanted(HTTP):
            try:
                pages += http.measure_pages(http.QUICK if options.quick else http.NORMAL)
            except WrongResult as error:
                wrong.append(f"{HTTP}: {error}")
        if wanted(BYTES):
            bytes_a_session += sizes.measure_sizes(sizes.QUICK if options.quick else sizes.SESSIONS)
        if wanted(PURGING):
            try:
                purges += purging.measure_purges(purging.QUICK if options.quick else purging.NORMAL)
            except WrongResult as error:
                wrong.append(f"{PURGING}: {error}")
        machine = report.environment() | redis_engines.environment() | database_engines.environment()
        machine["operations"] = "on all cores" if options.spread else "on one core"
    found = report.Report(machine, results, pages, bytes_a_session, purges, serialized)
    print((report.as_markdown if options.markdown else report.as_text)(found))
    if options.json:
        options.json.write_text(json.dumps(report.as_json(found), indent=2) + "\n")
    for line in wrong:
        print(f"Wrong result: {line}", file=sys.stderr)
    return 1 if wrong else 0


def _compare(comparison: Comparison, operation: Operation, plan: Plan) -> list[report.Result]:
    ours = [engine for engine in comparison.ours if operation.name in engine.operations]
    peers = [peer for peer in comparison.peers if operation.name in peer.engine.operations]
    if not ours or not peers:
        return []
    print(f"Measuring {comparison.name}, {operation.name} ...", file=sys.stderr)
    times = measure(operation, plan, [*ours, *(peer.engine for peer in peers)])
    return [
        report.compare(
            operation.name,
            engine.name,
            times[engine.name],
            peer.engine.name,
            times[peer.engine.name],
            peer.targets.get(engine.name, {}).get(operation.name),
        )
        for engine in ours
        for peer in peers
    ]


def _parser() -> argparse.ArgumentParser:
    comparisons = {comparison.name for comparison in COMPARISONS}
    names = sorted({*comparisons, *(operation.name for operation in OPERATIONS), *_PARTS})
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures our engines beside Django's.")
    parser.add_argument("--quick", action="store_true", help="measure less, and with more noise")
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"a comparison, an operation, or one of {', '.join(_PARTS)}; may be repeated. One of: {', '.join(names)}",
    )
    parser.add_argument("--spread", action="store_true", help="let client and server run on all cores")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
