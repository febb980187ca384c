"""Without hiredis, redis-py reads the replies of the Redis engines itself."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

FILES = ["tests/redis/test_engines.py", "tests/redis/test_connections.py"]
# Tests that read every kind of reply, and tests that are disturbed as they read.
SELECTION = (
    "surplus or large or round_trips or (any_line and old_connection) or any_step or cancel or signal or reset or "
    "middle or thousands or lost_scripts or merges or goframe"
)


def test_redis_pys_own_parsers_work_as_well() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.without_hiredis", "-p", "no:cacheprovider", "-k", SELECTION, *FILES],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
