"""Prints what a run of tox ran, and what it did not: `python .ci/report.py RESULT.json`."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

PYTEST_SUMMARY = re.compile(r"^=+ (.*\b(?:passed|failed|error|no tests ran).*?) =+$", re.MULTILINE)
COUNT = re.compile(r"(\d+) (passed|failed|error|skipped)")
NOT_RUN = re.compile(r"^not run: (.*?) \((.*)\)$", re.MULTILINE)


def missing_interpreter(name: str) -> str:
    match = re.match(r"py3(\d+)-", name)
    return f"python3.{match[1]}" if match else "Python that its Django runs on"


environments = json.loads(Path(sys.argv[1]).read_text())["testenvs"]
skipped = [name for name, it in environments.items() if it.get("result", {}).get("skipped")]
counts: Counter[str] = Counter()
not_installed: dict[str, list[str]] = {}
print()
for name, environment in environments.items():
    output = "".join(command["output"] for command in environment.get("test", []))
    for summary in PYTEST_SUMMARY.findall(output):
        print(f"{name}: {summary}")
        counts.update({outcome: int(count) for count, outcome in COUNT.findall(summary)})
    for tests, reason in NOT_RUN.findall(output):
        not_installed.setdefault(reason, []).append(f"{tests} in {name}")
for reason, tests in not_installed.items():
    print(f"not run: {', '.join(tests)} ({reason})")
for name in skipped:
    print(f"not run: {name} (no {missing_interpreter(name)} found)")
if not skipped and not not_installed:
    print("not run: none")
print(f"tests: {counts['passed']} passed, {counts['failed'] + counts['error']} failed, {counts['skipped']} skipped")
