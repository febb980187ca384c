"""The purge of a large table in PostgreSQL while clients read and write sessions in it: ours beside Django's."""

import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, Final

import django
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from django.test.utils import override_settings

from benchmarks.database_engines import DJANGO, OURS, postgresql, server
from benchmarks.measure import WrongResult
from benchmarks.operations import SESSION
from benchmarks.report import PurgeResult
from tests.support.databases import connected

_CLIENTS: Final = 4
_TIMEOUT: Final = 600.0
_LIVE_TTL: Final = 14 * 24 * 3600


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        sessions: the number of sessions in the table.
        many: the number of expired ones when clients run.
        few: the number of expired ones without clients.
        rounds: the number of purges beside clients.
        seconds: the seconds that the clients run before each purge.
        repeats: the number of purges, and of scans of the table, without clients.
    """

    sessions: int
    many: int
    few: int
    rounds: int
    seconds: float
    repeats: int


NORMAL = Plan(sessions=1_000_000, many=900_000, few=100, rounds=5, seconds=20, repeats=5)
QUICK = Plan(sessions=50_000, many=45_000, few=100, rounds=2, seconds=2, repeats=3)


@dataclass(frozen=True)
class _Purger:
    """An engine, its command, and the SQL that fills its table.

    Attributes:
        rows: the columns to select for a row, from the first row `t` and a number `i`. `{expires}` is its expiry, in
            seconds since 1970.
        expires: the SQL for the expiry of a row, in seconds since 1970.
        set_expires: the SQL that sets it to `{expires}`.
    """

    name: str
    module: str
    model: str
    command: str
    rows: str
    expires: str
    set_expires: str

    @property
    def table(self) -> str:
        return str(apps.get_model(self.model)._meta.db_table)


_PURGERS: Final = (
    _Purger(
        "purge_sessions",
        "gsession_django.backends.database",
        OURS,
        "purge_sessions",
        "encode(sha256(i::text::bytea), 'hex'), t.data, i, (1000 * ({expires}))::bigint",
        "expires / 1000.0",
        "expires = (1000 * ({expires}))::bigint",
    ),
    _Purger(
        "Django's clearsessions",
        "django.contrib.sessions.backends.db",
        DJANGO,
        "clearsessions",
        "md5(i::text), t.session_data, to_timestamp({expires})",
        "extract(epoch from expire_date)",
        "expire_date = to_timestamp({expires})",
    ),
)
_NOW: Final = "extract(epoch from clock_timestamp())"
_EXPIRED: Final = f"{_NOW} - 1 - 30 * 86400 * random()"
_LIVE: Final = f"{_NOW} + {_LIVE_TTL}"


def measure_purges(plan: Plan) -> Iterator[PurgeResult]:
    alias = postgresql()
    server().run_on(os.sched_getaffinity(0))
    for purger in _PURGERS:
        with override_settings(SESSION_ENGINE=purger.module, BENCHMARK_DATABASE=alias):
            keys = _fill(purger, alias)
            _insert(purger, alias, plan.many + 1, plan.sessions, _LIVE)
            rounds = []
            for _ in range(plan.rounds):
                _insert(purger, alias, 1, plan.many, _EXPIRED)
                _settle(alias, purger)
                with _clients(purger, keys) as clients:
                    rounds.append(_beside(clients, purger, alias, plan))
                if (left := _count(alias, purger, "true")) != plan.sessions - plan.many + len(keys):
                    raise WrongResult(f"{purger.name}: {left} sessions are left")
            # The median round: the slowest of some ten thousand requests is a matter of chance.
            yield sorted(rounds, key=lambda found: found.ratio)[plan.rounds // 2]
            _insert(purger, alias, 1, plan.many, _LIVE)
            _settle(alias, purger)
            yield _alone(purger, alias, plan)
            _sql(alias, f"TRUNCATE {purger.table}")


def _sql(alias: str, statement: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None


def _count(alias: str, purger: _Purger, condition: str) -> int:
    (number,) = _sql(alias, f"SELECT count(*) FROM {purger.table} WHERE {condition}")
    return int(number)


def _settle(alias: str, purger: _Purger) -> None:
    _sql(alias, f"VACUUM ANALYZE {purger.table}")
    _sql(alias, "CHECKPOINT")


def _insert(purger: _Purger, alias: str, first: int, last: int, expires: str) -> None:
    rows = purger.rows.format(expires=expires)
    table = purger.table
    first_row = f"(SELECT * FROM {table} LIMIT 1) t"
    _sql(alias, f"INSERT INTO {table} SELECT {rows} FROM generate_series({first}, {last}) i, {first_row}")


def _fill(purger: _Purger, alias: str) -> list[str]:
    """Store the sessions for the clients, and return their keys."""
    store_class = import_module(purger.module).SessionStore
    keys = []
    for _ in range(2000):
        store = store_class()
        store.update(SESSION)
        store.save()
        keys.append(store.session_key)
    return keys


# With clients.


def _beside(clients: "Sequence[_Client]", purger: _Purger, alias: str, plan: Plan) -> PurgeResult:
    begun = time.monotonic()
    time.sleep(plan.seconds)
    start = time.monotonic()
    call_command(purger.command, stdout=open(os.devnull, "w"))  # noqa: SIM115
    end = time.monotonic()
    requests = [request for client in clients for request in client.end()]
    without = [seconds for at, seconds in requests if begun <= at < start - 1]
    meanwhile = [seconds for at, seconds in requests if at + seconds >= start and at < end]
    return PurgeResult(
        purger.name,
        plan.sessions,
        plan.many,
        end - start,
        max(without),
        max(meanwhile),
        _per_mille(without),
        _per_mille(meanwhile),
    )


def _per_mille(times: Sequence[float]) -> float:
    """Return the time within which 999 of 1000 requests ended."""
    return statistics.quantiles(times, n=1000)[-1]


class _Client:
    """A process that reads and writes sessions, one request after another, until :meth:`end`."""

    def __init__(self, purger: _Purger, keys: Sequence[str], number: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_ask, args=(theirs, purger.module, server().entry(CONN_MAX_AGE=None), keys, number), daemon=True
        )
        self.process.start()

    def wait(self) -> None:
        self._hear()

    def end(self) -> list[tuple[float, float]]:
        """End the process, and return when each request began and how many seconds it took."""
        self._pipe.send("end")
        requests: list[tuple[float, float]] = self._hear()
        return requests

    def _hear(self) -> Any:
        if not self._pipe.poll(_TIMEOUT):
            raise TimeoutError("A client has not answered.")
        return self._pipe.recv()


def _ask(pipe: "Connection[Any, Any]", module: str, entry: dict[str, Any], keys: Sequence[str], number: int) -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    django.setup()
    chance, requests = random.Random(number), []
    with connected(entry) as alias:
        settings.BENCHMARK_DATABASE = alias
        store_class = import_module(module).SessionStore
        store_class(keys[0]).load()
        pipe.send("ready")
        while not pipe.poll():
            key = chance.choice(keys)
            begun = time.monotonic()
            store = store_class(key)
            if store["language"] is not None and chance.random() < 0.5:
                store["language"] = f"en-{chance.random()}"
                store.save()
            requests.append((begun, time.monotonic() - begun))
    pipe.send(requests)


@contextmanager
def _clients(purger: _Purger, keys: Sequence[str]) -> Iterator[list[_Client]]:
    with ExitStack() as stack:
        clients = [_Client(purger, keys, number) for number in range(_CLIENTS)]
        for client in clients:
            stack.callback(client.process.join)
            stack.callback(client.process.kill)
        for client in clients:
            client.wait()
        yield clients


# Without clients.


def _alone(purger: _Purger, alias: str, plan: Plan) -> PurgeResult:
    scans, purges = [], []
    for _ in range(plan.repeats):
        _sql(
            alias,
            f"UPDATE {purger.table} SET {purger.set_expires.format(expires=_EXPIRED)} WHERE ctid IN "
            f"(SELECT ctid FROM {purger.table} ORDER BY random() LIMIT {plan.few})",
        )
        _settle(alias, purger)
        start = time.perf_counter()
        expired = _count(alias, purger, f"{purger.expires} < {_NOW}")  # no index has this expression: it is a scan
        scans.append(time.perf_counter() - start)
        if expired != plan.few:
            raise WrongResult(f"{purger.name}: {expired} sessions have expired in place of {plan.few}")
        start = time.perf_counter()
        call_command(purger.command, stdout=open(os.devnull, "w"))  # noqa: SIM115
        purges.append(time.perf_counter() - start)
        if left := _count(alias, purger, f"{purger.expires} < {_NOW}"):
            raise WrongResult(f"{purger.name}: {left} expired sessions are left")
    return PurgeResult(purger.name, plan.sessions, plan.few, statistics.median(purges), scan=statistics.median(scans))
