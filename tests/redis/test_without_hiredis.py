"""The Redis engines where hiredis is not installed: redis-py then reads the replies itself."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

FILES = ["tests/redis/test_engines.py", "tests/redis/test_connections.py"]
# What reads every kind of reply, and what is disturbed while it does.
SELECTION = (
    "surplus or large or round_trips or (any_line and old_connection) or any_step or cancel or signal or reset or "
    "middle or thousands or lost_scripts or merges or goframe"
)


def test_redis_pys_own_parsers_do_as_well() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.without_hiredis", "-p", "no:cacheprovider", "-k", SELECTION, *FILES],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
