"""Nobody gets another visitor's data: the hunt of tests/support/redis_hunt.py, GSESSION_HUNT operations long."""

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import Worker
from tests.support.redis_hunt import CLIENTS, ENGINES, KINDS, PATIENCE, WORKERS, HuntingProxy, run
from tests.support.redis_servers import RedisServer

pytestmark = pytest.mark.once

# Operations that are carried out, without the disturbed ones.
OPERATIONS = int(os.environ.get("GSESSION_HUNT", "10000"))


def test_nobody_ever_reads_anothers_session(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """HuntingProxy and Crew disturb a thousand sessions of each engine.

    The parent of the forked workers reads on with its old connections, and loses none.
    """
    start = time.monotonic()
    with (
        RedisServer() as server,
        HuntingProxy(server.port) as proxy,
        Worker(tmp_path, run, proxy.url(), OPERATIONS) as master,
    ):
        master.hear()
        proxy.hunting = True
        master.say()
        master.hear(2 * PATIENCE)
        lost = proxy.lost
        master.say()
        counts, done_by_master, failed, wrong = master.hear()
        master.wait()
    counts = Counter(counts) + proxy.caused
    disturbed = {what: counts[what] for what in ("delays", "parts", "cuts", "unanswered")}
    disturbed |= {what: counts[what] for what in ("cancelled", "timed out", "interrupted")}
    record_property(
        "hunt",
        f"{counts['done']} operations of {OPERATIONS} in {WORKERS} forked workers in {time.monotonic() - start:.0f} s, "
        f"{done_by_master} in their parent: {len(wrong)} wrong. "
        + ", ".join(f"{what}: {count}" for what, count in disturbed.items()),
    )
    assert not wrong, "\n".join([f"{len(wrong)} wrong:", *wrong[:20]])
    assert (lost, failed) == (0, 0), f"the parent lost {lost} connections, and got no answer {failed} times"
    assert counts["done"] >= OPERATIONS
    assert done_by_master > OPERATIONS / 100
    kinds = [*KINDS, *(f"{engine}, {client}" for engine in ENGINES for client in CLIENTS)]
    assert {kind: counts[kind] for kind in kinds if counts[kind] < OPERATIONS / 20} == {}
    assert {what: count for what, count in disturbed.items() if count < OPERATIONS / 1000} == {}
