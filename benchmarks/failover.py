"""``python -m benchmarks.failover``: the changes that a failover of Redis Sentinel loses, and the cost of waiting for
replicas.
"""

import argparse
import itertools
import logging
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import django
from django.test.utils import override_settings

from benchmarks.report import environment
from gsession_django import StorageUnavailable
from gsession_django.backends.redis import SessionStore
from tests.support.proxies import Passed, Proxy
from tests.support.redis_sentinels import Sentinels
from tests.support.redis_servers import RedisServer

_WRITERS = 4
_SECONDS = 1.0
_HEADINGS = ("replication held up", "wait_replicas", "failovers", "acknowledged", "lost", "save", "99 of 100 within")


@dataclass
class Writer:
    """Changes one session again and again, and notes the seconds of each save."""

    key: str
    acknowledged: int = 0
    times: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Write until the server is gone."""
        while True:
            try:
                store = SessionStore(self.key)
                store["number"] = store.get("number", 0) + 1
                start = time.perf_counter()
                store.save()
            except StorageUnavailable:
                return
            self.times.append(time.perf_counter() - start)
            self.acknowledged += 1


def fail_over(lag: float, wait_replicas: int) -> Iterator[Writer]:
    """Kill a master while writers change sessions, and yield the writers once Sentinel has chosen another master.

    Args:
        lag: seconds by which a proxy delays each piece of the replication.
        wait_replicas: the engine's option.
    """
    proxies: list[Proxy] = []

    def hold_up(connection: int, data: bytes) -> Passed:
        time.sleep(lag)
        return data, False

    with ExitStack() as stack:

        def upstream(master: RedisServer) -> int:
            proxies.append(stack.enter_context(Proxy(master.port)))
            return proxies[0].port

        sentinels = stack.enter_context(Sentinels(upstream=upstream, timeout=60_000))
        entry = {"BACKEND": "django_redis.cache.RedisCache", **sentinels.entry()}
        options = {"wait_replicas": wait_replicas, "wait_timeout": 1}
        stack.enter_context(
            override_settings(
                SESSION_CACHE_ALIAS="sessions",
                CACHES={"sessions": entry},
                GSESSION={"ENGINES": {SessionStore.__module__: options}},
            )
        )
        writers = []
        for _ in range(_WRITERS):
            store = SessionStore()
            store.create()
            writers.append(Writer(str(store.session_key)))
        if lag:
            proxies[0].on_reply = hold_up
        threads = [threading.Thread(target=writer.run) for writer in writers]
        for thread in threads:
            thread.start()
        time.sleep(_SECONDS)
        proxies[0].cut_all()  # the data on its way dies with the master
        sentinels.servers[0].kill()
        for thread in threads:
            thread.join()
        sentinels.wait_for_another_than(sentinels.servers[0])
        yield from writers


def lost(writer: Writer) -> int:
    return max(0, writer.acknowledged - int(SessionStore(writer.key).get("number", 0)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failover", description=__doc__)
    parser.add_argument("--failovers", type=int, default=10, help="how many of each kind; one takes about six seconds")
    failovers: int = parser.parse_args(arguments).failovers
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    django.setup()
    logging.disable(logging.WARNING)  # the engine warns when too few replicas acknowledge
    rows: list[tuple[object, ...]] = [_HEADINGS]
    for lag, wait_replicas in itertools.product((0.0, 0.02), (0, 1)):
        print(f"Measuring {wait_replicas=}, with {lag * 1000:g} ms ...", file=sys.stderr)
        acknowledged = gone = 0
        times: list[float] = []
        for _ in range(failovers):
            for writer in fail_over(lag, wait_replicas):
                acknowledged += writer.acknowledged
                gone += lost(writer)
                times += writer.times
        slow = statistics.quantiles(times, n=100)[98]
        durations = (f"{value * 1000:.2f} ms" for value in (statistics.median(times), slow))
        rows.append((f"{lag * 1000:g} ms", wait_replicas, failovers, acknowledged, gone, *durations))
    print(", ".join(f"{name} {value}" for name, value in environment().items()))
    for number, row in enumerate(rows):
        print(f"| {' | '.join(map(str, row))} |")
        if number == 0:
            print(f"|{' --- |' * len(row)}")


if __name__ == "__main__":
    main()
