"""Ends a run of tox with what ran and what did not: `python .ci/report.py RESULT.json`."""

import json
import re
import sys
from pathlib import Path

PYTEST_SUMMARY = re.compile(r"^=+ (.*\b(?:passed|failed|error|no tests ran).*?) =+$", re.MULTILINE)
NOT_RUN = re.compile(r"^not run: (.*?) \((.*)\)$", re.MULTILINE)


def missing_interpreter(name: str) -> str:
    match = re.match(r"py3(\d+)-", name)
    return f"python3.{match[1]}" if match else "Python that its Django runs on"


environments = json.loads(Path(sys.argv[1]).read_text())["testenvs"]
lacking: dict[str, list[str]] = {}
skipped = [name for name, it in environments.items() if it.get("result", {}).get("skipped")]
print()
for name, environment in environments.items():
    output = "".join(command["output"] for command in environment.get("test", []))
    for summary in PYTEST_SUMMARY.findall(output):
        print(f"{name}: {summary}")
    for what, reason in NOT_RUN.findall(output):
        lacking.setdefault(reason, []).append(f"{name}: {what}")
for reason, tests in lacking.items():
    print(f"not run: {'; '.join(tests)} ({reason})")
for name in skipped:
    print(f"not run: {name} (no {missing_interpreter(name)} found)")
if not skipped and not lacking:
    print("not run: none")
