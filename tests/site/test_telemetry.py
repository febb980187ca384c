"""A site that has set OpenTelemetry up sees each storage call. Another site pays nothing."""

import asyncio
import contextvars
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.management import call_command
from django.db import connections
from django.test.utils import override_settings
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gsession_django import SessionStore, StorageUnavailable
from gsession_django.backends import database, redis
from gsession_django.core.engine import engine_of, observe, stop_observing
from gsession_django.recording import System
from gsession_django.serializers import DecodeError
from gsession_django.telemetry import Telemetry
from tests.support import databases, redis_servers, storages
from tests.support.database_servers import shared
from tests.support.engines import EACH_ENGINE, ENGINES, engine, id_of, new_session, stored
from tests.support.processes import TIMEOUT
from tests.support.proxies import Passed, Proxy, everything

each_engine = pytest.mark.parametrize("name", EACH_ENGINE)
each_mode = pytest.mark.parametrize("mode", ["sync", "async", "thread"])


class Tools:
    """Collects the spans and metrics that a site's tools would get."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.traces = TracerProvider(shutdown_on_exit=False)
        self.traces.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.metrics = MeterProvider([self._reader], shutdown_on_exit=False)

    @property
    def spans(self) -> list[ReadableSpan]:
        """The storage calls that have ended."""
        return [span for span in self._exporter.get_finished_spans() if "db.system.name" in attributes_of(span)]

    @property
    def operations(self) -> list[Any]:
        return [attributes_of(span)["db.operation.name"] for span in self.spans]

    def forget_spans(self) -> None:
        self._exporter.clear()

    def metric(self, name: str) -> Any:
        """Return a metric; ``None`` if nothing was recorded."""
        data = self._reader.get_metrics_data()
        found = [] if data is None else [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]
        return next((metric for metric in found if metric.name == name), None)

    def total(self, name: str) -> int:
        """Return the value of a counter."""
        metric = self.metric(name)
        return 0 if metric is None else sum(point.value for point in metric.data.data_points)

    def text(self) -> str:
        """Return all spans and metrics as text."""
        data = self._reader.get_metrics_data()
        return "".join(span.to_json() for span in self.spans) + ("" if data is None else data.to_json())


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


@pytest.fixture
def tools() -> Iterator[Tools]:
    found = Tools()
    telemetry = Telemetry(found.traces, found.metrics)
    observe(telemetry)
    try:
        yield found
    finally:
        stop_observing(telemetry)
        found.traces.shutdown()
        found.metrics.shutdown()


def visit(mode: str, store: SessionStore, change: Callable[[SessionStore], object] = lambda store: None) -> None:
    """Load, change and save a session, as a request does in this mode."""

    def request() -> None:
        store.items()
        change(store)
        store.save()

    async def arequest() -> None:
        await store.aitems()
        await sync_to_async(change)(store)
        await store.asave()

    if mode == "async":
        asyncio.run(arequest())
    elif mode == "thread":
        with ThreadPoolExecutor(1) as threads:
            threads.submit(contextvars.copy_context().run, request).result(TIMEOUT)
    else:
        request()


def server_of(store_class: type[SessionStore]) -> dict[str, Any]:
    """Return the attributes of the server."""
    storage = store_class.get_storage()
    if isinstance(storage, database.DatabaseStorage):
        entry = connections[storage.table.alias].settings_dict
        table = {"db.collection.name": "gsession_django_session", "db.namespace": str(entry["NAME"])}
        return table | ({"server.address": entry["HOST"], "server.port": entry["PORT"]} if entry["HOST"] else {})
    if "redis" in store_class.__module__:
        port = redis_servers.shared().port
        return {"db.namespace": "0", "server.address": "127.0.0.1", "server.port": port}
    return {}


SYSTEMS = {"mariadb": "mysql", "redis_hash": "redis"}
WITHOUT_SERVER = ("memory", "file", "sqlite")


@each_mode
@pytest.mark.parametrize("name", [*ENGINES, "redis", "redis_hash"])
def test_each_call_is_a_span_as_the_conventions_for_databases_have_it(
    tools: Tools, name: str, mode: str, tmp_path: Path
) -> None:
    with engine(name, tmp_path) as store_class:
        key = new_session(store_class, {"a": 1})
        tools.forget_spans()
        with tools.traces.get_tracer("site").start_as_current_span("view") as view:
            visit(mode, store_class(key), lambda store: store.update({"a": 2}))
        server = server_of(store_class)
    target = " gsession_django_session" if "db.collection.name" in server else ""
    assert [span.name for span in tools.spans] == [f"get_session{target}", f"apply{target}"]
    for span in tools.spans:
        assert span.kind is (SpanKind.INTERNAL if name in WITHOUT_SERVER else SpanKind.CLIENT)
        assert span.parent == view.get_span_context()
        assert span.status.status_code is StatusCode.UNSET
        assert attributes_of(span) == server | {
            "db.system.name": SYSTEMS.get(name, name),
            "db.operation.name": span.name.removesuffix(target),
        }


@each_mode
@each_engine
def test_the_duration_of_each_call_is_measured_and_so_they_are_counted(
    tools: Tools, name: str, mode: str, tmp_path: Path
) -> None:
    with engine(name, tmp_path) as store_class:
        visit(mode, store_class(), lambda store: store.update({"a": 1}))
    metric = tools.metric("db.client.operation.duration")
    assert metric.unit == "s"
    (point,) = metric.data.data_points
    (span,) = tools.spans
    assert point.attributes == attributes_of(span)
    assert point.attributes["db.operation.name"] == "create"
    assert point.count == 1
    assert 0 < point.sum < 10
    assert point.explicit_bounds == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)


@each_mode
@each_engine
def test_a_save_that_meets_another_requests_is_a_conflict(tools: Tools, name: str, mode: str, tmp_path: Path) -> None:
    with engine(name, tmp_path) as store_class:
        key = new_session(store_class, {"cart": {}})

        def meet_another(store: SessionStore) -> None:
            other = store_class(key)
            other["cart"]["tea"] = 1
            other.save()
            assert tools.total("gsession.conflicts") == 0
            store["cart"]["milk"] = 1

        visit(mode, store_class(key), meet_another)
        assert stored(store_class, key) == {"cart": {"tea": 1, "milk": 1}}
    assert tools.total("gsession.conflicts") == 1
    merged = [span for span in tools.spans if "gsession.merged" in attributes_of(span)]
    assert [attributes_of(span)["db.operation.name"] for span in merged] == ["apply"]


@contextmanager
def _nothing_listens(name: str, tmp_path: Path) -> Iterator[type[SessionStore]]:
    """Yield an engine whose server or folder does not exist."""
    if name == "file":
        with engine(name, tmp_path / "nowhere") as store_class:
            yield store_class
    elif name == "postgresql":
        with (
            databases.connected(shared(name).entry(PORT=1)) as alias,
            override_settings(**databases.options_for(alias)),
        ):
            yield database.SessionStore
    else:
        with override_settings(**redis_servers.settings_for(redis.__name__, "redis://:hush@127.0.0.1:1/0")):
            yield redis.SessionStore


@each_mode
@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("file", "FileNotFoundError"),
        ("postgresql", "django.db.utils.OperationalError"),
        ("redis", "redis.exceptions.ConnectionError"),
    ],
)
def test_an_outage_is_counted_and_an_error_of_its_span(
    tools: Tools, name: str, cause: str, mode: str, tmp_path: Path
) -> None:
    with _nothing_listens(name, tmp_path) as store_class, pytest.raises(StorageUnavailable):
        visit(mode, store_class("a" * 32))
    (span,) = tools.spans
    assert attributes_of(span)["error.type"] == cause
    assert span.status.status_code is StatusCode.ERROR
    assert tools.total("gsession.outages") == 1
    (point,) = tools.metric("db.client.operation.duration").data.data_points
    assert point.attributes["error.type"] == cause
    assert "hush" not in tools.text()


@each_mode
def test_a_call_that_is_tried_again_is_one_span_and_a_retry(tools: Tools, mode: str) -> None:
    with databases.database("postgresql") as alias, override_settings(**databases.options_for(alias)):
        key = new_session(database.SessionStore, {"a": 1})
        tools.forget_spans()

        def end_the_connection(store: SessionStore) -> None:
            with closing(shared("postgresql").connect()) as control, control.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                )
            store._session["a"] = 2

        visit(mode, database.SessionStore(key), end_the_connection)
    _, save = tools.spans
    assert attributes_of(save)["gsession.retries"] == tools.total("gsession.retries") == 1
    assert save.status.status_code is StatusCode.UNSET


@each_mode
@pytest.mark.parametrize("name", ["redis", "redis_hash"])
def test_commands_that_are_sent_again_are_a_retry(tools: Tools, name: str, mode: str) -> None:
    module = import_module(f"gsession_django.backends.{name}")
    with (
        Proxy(redis_servers.shared().port) as proxy,
        override_settings(**redis_servers.settings_for(module.__name__, proxy.url())),
    ):
        key = new_session(module.SessionStore, {"a": 1})

        def cut_the_connection(connection: int, data: bytes) -> Passed:
            proxy.on_reply = everything
            return b"", True

        def lose_the_next_reply(store: SessionStore) -> None:
            proxy.on_reply = cut_the_connection
            store["a"] = 2

        tools.forget_spans()
        visit(mode, module.SessionStore(key), lose_the_next_reply)
    _, save = tools.spans
    assert attributes_of(save)["gsession.retries"] == tools.total("gsession.retries") == 1
    assert save.status.status_code is StatusCode.UNSET


class Indiscreet:
    """A serializer whose errors quote the value."""

    def dumps(self, obj: Any) -> bytes:
        return repr(obj).encode()

    def loads(self, data: bytes) -> Any:
        raise ValueError(data.decode())


@each_mode
@each_engine
def test_no_key_no_id_and_no_value_is_sent(tools: Tools, name: str, mode: str, tmp_path: Path) -> None:
    with engine(name, tmp_path) as store_class:
        key = new_session(store_class, {"secretkey": {"secretitem": "secretvalue"}})
        store = store_class(key)
        visit(mode, store, lambda store: store.update({"secretkey": {"secretitem": "secrettoo"}}))
        store.cycle_key()
        keys = [key, id_of(store_class, key), str(store.session_key), id_of(store_class, str(store.session_key))]
        with override_settings(SESSION_SERIALIZER=f"{__name__}.Indiscreet"):
            visit(mode, store_class(store.session_key))
        store.delete()
    assert {"create", "get_session", "apply", "move", "remove_all"} <= set(tools.operations)
    assert not any(secret in tools.text() for secret in [*keys, "secret"])


def test_what_cannot_be_read_is_an_error_of_its_span(tools: Tools, tmp_path: Path) -> None:
    with engine("file", tmp_path) as store_class:
        key = new_session(store_class, {"a": 1})
        with override_settings(SESSION_SERIALIZER=f"{__name__}.Indiscreet"):
            visit("sync", store_class(key))
    failed = [attributes_of(span)["error.type"] for span in tools.spans if "error.type" in attributes_of(span)]
    assert failed == [f"{DecodeError.__module__}.DecodeError"]
    assert tools.total("gsession.outages") == 0


def test_each_step_of_a_purge_is_a_call(tools: Tools, tmp_path: Path) -> None:
    with engine("file", tmp_path) as store_class:
        for purge in (lambda: call_command("purge_sessions", stdout=StringIO()), store_class.clear_expired):
            new_session(store_class, {"_session_expiry": -1})
            tools.forget_spans()
            purge()
            assert tools.operations == ["purge", "purge"]  # the second call finds no more


# A site's own storages.


class ComposedStore(SessionStore):
    storage_class = storages.SometimesDisabledStorage


class NamedStorage(storages.WholeMapStorage):
    def system(self) -> System:
        return System("memcached", is_server=True, address="cache.example", port=11211)


class NamedStore(SessionStore):
    storage_class = NamedStorage


def test_each_call_that_an_operation_is_composed_of_is_a_span(tools: Tools) -> None:
    key = new_session(ComposedStore, {"a": 1})
    assert stored(ComposedStore, key) == {"a": 1}
    assert all(span.status.status_code is StatusCode.UNSET for span in tools.spans), "Disabled is not an error"
    assert {"create", "set_session", "get_session"} <= set(tools.operations)
    assert {attributes_of(span)["db.system.name"] for span in tools.spans} == {
        "tests.support.storages.sometimesdisabledstorage"
    }


def test_a_storage_says_what_it_stands_on(tools: Tools) -> None:
    new_session(NamedStore, {"a": 1})
    span = tools.spans[-1]
    assert span.kind is SpanKind.CLIENT
    assert attributes_of(span)["db.system.name"] == "memcached"
    assert (attributes_of(span)["server.address"], attributes_of(span)["server.port"]) == ("cache.example", 11211)


class TracedStorage(storages.WholeMapStorage):
    """A storage on a library that is also traced, as database drivers are."""

    tracer: trace.Tracer

    def get_session(self, session_id: str, ttl: int, data: Any = None) -> Any:
        with self.tracer.start_as_current_span("SELECT", attributes={"db.system.name": "postgresql"}):
            return {}


class TracedStore(SessionStore):
    storage_class = TracedStorage


@each_mode
def test_what_a_storage_calls_is_traced_beneath_its_call(
    tools: Tools, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TracedStorage, "tracer", tools.traces.get_tracer("driver"), raising=False)
    visit(mode, TracedStore("a" * 32))
    inner, outer, *_ = tools.spans
    assert (inner.name, outer.name) == ("SELECT", "get_session")
    assert inner.parent == outer.context


class HangingStorage(storages.AsyncStorage):
    async def aget_session(self, session_id: str, ttl: int, data: Any = None) -> Any:
        await asyncio.Event().wait()


class HangingStore(SessionStore):
    storage_class = HangingStorage


def test_a_request_that_is_cancelled_ends_its_span(tools: Tools) -> None:
    async def request() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(HangingStore("a" * 32).aload(), 0.01)
        assert trace.get_current_span() is trace.INVALID_SPAN

    asyncio.run(request())
    assert [attributes_of(span)["error.type"] for span in tools.spans] == ["asyncio.exceptions.CancelledError"]


@pytest.mark.parametrize(
    ("location", "options", "server"),
    [
        ("redis://:hush@host.example:7000/3", {}, ("3", "host.example", 7000)),
        ("redis://[::1]", {}, ("0", "::1", 6379)),
        ("unix:///run/redis.sock?db=2", {}, ("2", "/run/redis.sock", None)),
        (
            "redis://mymaster/1",
            {
                "CONNECTION_FACTORY": "django_redis.pool.SentinelConnectionFactory",
                "SENTINELS": [("sentinel.example", 26379)],
            },
            ("1", None, None),
        ),
        (
            "redis://node.example:7001",
            {"CLIENT_CLASS": "gsession_django.redis.cluster.ClusterClient"},
            (None, "node.example", 7001),
        ),
    ],
)
def test_a_redis_server_is_called_what_the_settings_call_it(
    location: str, options: dict[str, Any], server: tuple[Any, ...]
) -> None:
    settings = redis_servers.settings_for(redis.__name__, location, {"OPTIONS": options}, prefix="")
    with override_settings(**settings):
        system = redis.SessionStore.get_storage().system()
    assert (system.namespace, system.address, system.port) == server
    assert (system.name, system.is_server, system.collection) == ("redis", True, None)


# While nobody observes.


@each_engine
def test_an_engine_calls_its_storage_itself_while_nobody_observes(name: str, tmp_path: Path) -> None:
    with engine(name, tmp_path) as store_class:
        found = engine_of(store_class)
        assert found.calls is found.storage
        with _observed():
            assert found.calls is not found.storage
        assert found.calls is found.storage


@contextmanager
def _observed() -> Iterator[None]:
    telemetry = Telemetry()
    observe(telemetry)
    try:
        yield
    finally:
        stop_observing(telemetry)


# observed() tells whether an engine's calls are observed.
_PROGRAM = """
import django; django.setup()
from django.core.signals import request_started
from gsession_django.backends.memory import SessionStore
from gsession_django.core.engine import engine_of
def observed():
    engine = engine_of(SessionStore)
    SessionStore("a" * 32).load()
    return engine.calls is not engine.storage
"""


def _run(program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_without_opentelemetry_nothing_changes() -> None:
    hidden = "import sys; sys.modules['opentelemetry'] = None\n"
    assert _run(f"{hidden}{_PROGRAM}\nprint(observed())") == ["False"]


def test_nothing_but_the_toolbar_imports_the_panel() -> None:
    loaded = "import sys; print(any('debug_toolbar' in name or 'panels' in name for name in sys.modules))"
    assert _run(f"{_PROGRAM}\nobserved(); {loaded}") == ["False"]


@pytest.mark.parametrize(
    ("provider", "setter"),
    [
        ("sdk.trace.TracerProvider", "trace.set_tracer_provider"),
        ("sdk.metrics.MeterProvider", "metrics.set_meter_provider"),
    ],
    ids=["traces", "metrics"],
)
def test_it_is_on_as_soon_as_the_site_has_set_opentelemetry_up(provider: str, setter: str) -> None:
    names = (provider, setter)
    imports = "\n".join(f"import opentelemetry.{name.rpartition('.')[0]}" for name in names)
    set_up = "opentelemetry.{1}(opentelemetry.{0}())".format(*names)
    assert _run(f"{imports}\n{set_up}\n{_PROGRAM}\nprint(observed())") == ["True"]
    late = f"print(observed())\n{set_up}\nrequest_started.send(None)\nprint(observed())"
    assert _run(f"{imports}\n{_PROGRAM}\n{late}") == ["False", "True"]
