"""``python -m benchmarks``: measures, and prints one table."""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import django

from benchmarks import report
from benchmarks.engines import COMPARISONS, FOLDERS, Comparison
from benchmarks.measure import Operation, Plan, WrongResult, measure
from benchmarks.operations import OPERATIONS


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    django.setup()
    results: list[report.Result] = []
    wrong: list[str] = []
    with FOLDERS:
        for comparison, operation in itertools.product(COMPARISONS, OPERATIONS):
            if options.only and not {comparison.name, operation.name} & set(options.only):
                continue
            try:
                results += _compare(comparison, operation, operation.quick if options.quick else operation.plan)
            except WrongResult as error:
                wrong.append(f"{comparison.name}, {operation.name}: {error}")
        machine = report.environment()
    print((report.as_markdown if options.markdown else report.as_text)(results, machine))
    if options.json:
        options.json.write_text(json.dumps(report.as_json(results, machine), indent=2) + "\n")
    for line in wrong:
        print(f"Wrong result: {line}", file=sys.stderr)
    return 1 if wrong else 0


def _compare(comparison: Comparison, operation: Operation, plan: Plan) -> list[report.Result]:
    everybody = [comparison.ours, *(peer.engine for peer in comparison.peers)]
    engines = [engine for engine in everybody if engine.operations is None or operation.name in engine.operations]
    peers = [peer for peer in comparison.peers if peer.engine in engines]
    if comparison.ours not in engines or not peers:
        return []
    print(f"Measuring {comparison.name}, {operation.name} ...", file=sys.stderr)
    times = measure(operation, plan, engines)
    ours = comparison.ours.name
    return [
        report.compare(
            operation.name,
            ours,
            times[ours],
            peer.engine.name,
            times[peer.engine.name],
            peer.targets.get(operation.name),
        )
        for peer in peers
    ]


def _parser() -> argparse.ArgumentParser:
    names = sorted({comparison.name for comparison in COMPARISONS} | {operation.name for operation in OPERATIONS})
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures our engines beside Django's.")
    parser.add_argument("--quick", action="store_true", help="measure less, and with more noise")
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"a comparison or an operation; may be repeated. One of: {', '.join(names)}",
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
