"""Each source lists its sessions, with their data and TTLs. It never takes an unreadable session for an empty one, nor
an outage for a missing session.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.models.signals import pre_delete
from django.test import override_settings
from pytest_django import Settings

from gsession_django import StorageUnavailable
from gsession_django.moving.choice import source_of
from gsession_django.moving.source import Found
from gsession_django.moving.steps import MOVING_KEY
from tests.redis.test_sentinel import shared as sentinels
from tests.support import databases, redis_clusters
from tests.support.old_sites import DJANGOS, OURS, Router, new_session, old_site, store_of, stored
from tests.support.redis_clusters import cluster_settings
from tests.support.redis_servers import RedisServer, shared

PICKLE = "tests.core.test_serializers.PickleSerializer"
ENGINES = {**{f"Django's {name}": engine for name, engine in DJANGOS.items()}, **OURS}
CACHES = [DJANGOS["cache"], DJANGOS["cache on Django's Redis"]]
# The engines that decode with SESSION_SERIALIZER, and those of them that sign sessions.
DECODING = {name: engine for name, engine in ENGINES.items() if engine not in CACHES}
SIGNING = [DJANGOS["db"], DJANGOS["cached_db"], DJANGOS["file"]]

each_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
each_djangos = pytest.mark.parametrize("engine", DJANGOS.values(), ids=DJANGOS)
each_cache = pytest.mark.parametrize("engine", CACHES)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[None]:
    with old_site(tmp_path, SESSION_COOKIE_AGE=1000):
        yield


def read(engine: str, key: str) -> Found | None:
    """Return a session as its source reads it."""
    source = source_of(engine)
    ref = source.ref_of(key)
    return source.read([ref])[ref]


def data_of(engine: str, key: str) -> dict[str, Any]:
    found = read(engine, key)
    assert found is not None
    return found.data


# Sessions that are there.


@each_engine
def test_it_finds_all_sessions_and_what_they_hold(site: None, engine: str) -> None:
    keys = [new_session(engine, {"number": number, "cart": {"apple": [number]}}) for number in range(5)]
    source = source_of(engine)
    refs = [source.ref_of(key) for key in keys]
    batches = list(source.batches(2))
    assert sorted(ref for batch in batches for ref in batch) == sorted(refs)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    found = source.read([*refs, "unknown"])
    assert {ref: session and session.data for ref, session in found.items()} == {
        ref: {"number": number, "cart": {"apple": [number]}} for number, ref in enumerate(refs)
    }


@each_engine
@pytest.mark.parametrize(
    ("expiry", "left"),
    [(None, 1000), (300, 300), (timedelta(seconds=500), 500), (0, 1000)],
    ids=["the cookie's age", "a number", "a date", "browser close"],
)
def test_it_tells_what_a_session_has_left_to_live(site: None, engine: str, expiry: Any, left: float) -> None:
    found = read(engine, new_session(engine, {"key": "value"}, expiry))
    assert found is not None
    assert left - 20 < found.ttl_left <= left


@pytest.mark.parametrize("engine", OURS.values(), ids=OURS)
def test_what_it_has_left_to_live_is_what_the_storage_says(site: None, engine: str) -> None:
    key = new_session(engine, {"key": "value"}, 300)
    storage = store_of(engine).get_storage()
    assert storage.update_ttl(store_of(engine, key).session_id, 100)
    found = read(engine, key)
    assert found is not None
    assert 80 < found.ttl_left <= 100


@each_engine
def test_a_session_that_has_expired_is_not_there(site: None, engine: str) -> None:
    key = new_session(engine, {"key": "value"}, timedelta(seconds=-5))
    source = source_of(engine)
    assert source.read([source.ref_of(key)]) == {}
    assert source.present([source.ref_of(key)]) == set()


@each_engine
def test_it_tells_which_are_still_there_and_removes_some(site: None, engine: str) -> None:
    keys = [new_session(engine, {"number": number}) for number in range(4)]
    source = source_of(engine)
    refs = [source.ref_of(key) for key in keys]
    source.remove([refs[0], refs[2], "unknown"])
    assert source.present([*refs, "unknown"]) == {refs[1], refs[3]}
    assert [stored(engine, key) for key in keys] == [None, {"number": 1}, None, {"number": 3}]
    source.remove([])
    assert source.present([]) == set()
    assert source.read([]) == {}


@each_engine
def test_an_empty_session_is_one(site: None, engine: str) -> None:
    assert data_of(engine, new_session(engine, {})) == {}


@each_engine
@pytest.mark.parametrize("key", ["", "x" * 300, "../../secret", "a/b", ".", "ÄÖÜ", "UPPER", "a*", "%", "'; --"])
def test_a_key_that_no_session_can_have_is_unknown(site: None, engine: str, key: str) -> None:
    new_session(engine, {"key": "value"})
    source = source_of(engine)
    assert source.read([key]) == {}
    assert source.present([key]) == set()
    source.remove([key])
    assert len(next(iter(source.batches(10)))) == 1


def test_more_than_a_database_takes_in_one_statement_is_no_problem(site: None) -> None:
    source = source_of(DJANGOS["db"])
    ref = source.ref_of(new_session(DJANGOS["db"], {"key": "value"}))
    assert source.present([*map(str, range(250_000)), ref]) == {ref}  # more than SQLite takes at once


# Sessions that cannot be read.


@pytest.mark.parametrize("engine", DECODING.values(), ids=DECODING)
def test_what_another_serializer_wrote_is_there_and_cannot_be_read(site: None, engine: str) -> None:
    with override_settings(SESSION_SERIALIZER=PICKLE):
        key = new_session(engine, {"key": "value"})
    assert read(engine, key) is None
    assert source_of(engine).present([source_of(engine).ref_of(key)]) != set()
    with override_settings(SESSION_SERIALIZER=PICKLE):
        assert data_of(engine, key) == {"key": "value"}


@pytest.mark.parametrize("engine", SIGNING)
def test_one_whose_signature_is_broken_is_there_and_cannot_be_read(site: None, settings: Settings, engine: str) -> None:
    key, before = new_session(engine, {"key": "value"}), settings.SECRET_KEY
    with override_settings(SECRET_KEY="another"):
        assert read(engine, key) is None
        with override_settings(SECRET_KEY_FALLBACKS=[before]):
            assert data_of(engine, key) == {"key": "value"}


@each_cache
def test_what_the_cache_cannot_load_is_there_and_cannot_be_read(site: None, engine: str) -> None:
    key = new_session(engine, {"key": "value"})
    store = store_of(engine, key)
    with shared().client() as client:
        for spoiled in (b"\x80spoiled", b"cos\nno_such_function\n.", b"7"):
            client.set(store._cache.make_key(store.cache_key), spoiled)
            assert read(engine, key) is None, spoiled


@each_cache
def test_values_that_the_serializer_cannot_take_are_read(site: None, engine: str) -> None:
    key = new_session(engine, {"price": Decimal("1.50")})
    assert data_of(engine, key) == {"price": Decimal("1.50")}


def test_so_are_those_of_an_engine_with_a_serializer_of_its_own(site: None, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = DJANGOS["db"]
    with override_settings(SESSION_SERIALIZER=PICKLE):
        key = new_session(engine, {"price": Decimal("1.50")})
        serializer = store_of(engine).serializer
    original = type(store_of(engine)).__init__

    def init(self: Any, key: str | None = None) -> None:
        original(self, key)
        self.serializer = serializer

    monkeypatch.setattr(type(store_of(engine)), "__init__", init)
    assert data_of(engine, key) == {"price": Decimal("1.50")}


@pytest.mark.parametrize("expiry", ["never", ["a list"]])
def test_a_file_with_an_expiry_that_is_none_cannot_be_read(site: None, expiry: Any) -> None:
    assert read(DJANGOS["file"], new_session(DJANGOS["file"], {"_session_expiry": expiry} if expiry else {})) is None


# Each engine's own.


def test_a_session_is_read_where_the_router_writes_it(site: None, settings: Settings, tmp_path: Path) -> None:
    engine = DJANGOS["db"]
    key = new_session(engine, {"key": "value"})
    (router,) = settings.DATABASE_ROUTERS
    with databases.connected(databases.sqlite_entry(tmp_path)) as replica:  # it does not even have the table yet
        settings.DATABASE_ROUTERS = [Router(router._alias, replica)]
        source = source_of(engine)
        assert list(source.batches(5)) == [[key]]
        assert data_of(engine, key) == {"key": "value"}
        assert source.present([key]) == {key}


def test_a_model_and_an_encoding_of_the_sites_own_work(site: None, settings: Settings) -> None:
    from tests.support import engine_with_own_model as module

    (router,) = settings.DATABASE_ROUTERS
    with connections[router._alias].schema_editor() as editor:
        editor.create_model(module.OwnSession)
    try:
        key = new_session(module.__name__, {"key": "value"})
        assert data_of(module.__name__, key) == {"key": "value"}
        module.OwnSession.objects.filter(pk=key).update(session_data="spoiled")
        assert read(module.__name__, key) is None
        source_of(module.__name__).remove([key])
        assert not module.OwnSession.objects.exists()
    finally:
        with connections[router._alias].schema_editor() as editor:
            editor.delete_model(module.OwnSession)


def test_a_model_is_not_there_without_its_app() -> None:
    program = f"""
import django
django.setup()
from gsession_django.moving.choice import source_of
source_of({DJANGOS["db"]!r})
"""
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert "ImproperlyConfigured: The engine 'django.contrib.sessions.backends.db' has no model" in done.stderr
    assert "INSTALLED_APPS: for Django's own engines, that is 'django.contrib.sessions'" in done.stderr


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_it_reads_other_databases_too(tmp_path: Path, kind: str) -> None:
    engine = DJANGOS["db"]
    with old_site(tmp_path, kind):
        keys = [new_session(engine, {"number": number}) for number in range(5)]
        expired = new_session(engine, {}, timedelta(seconds=-5))
        source = source_of(engine)
        assert sorted(ref for batch in source.batches(2) for ref in batch) == sorted([*keys, expired])
        assert source.read([*keys, expired]).keys() == {*keys}
        others = [key.upper() for key in keys]  # to some databases these are the same
        assert source.read(others) == {}
        assert source.present(others) == set()
        source.remove(keys[:4])
        assert source.present([*keys, expired]) == {keys[4]}


def test_a_session_that_is_removed_is_not_in_the_cache_either(site: None) -> None:
    engine = DJANGOS["cached_db"]
    key = new_session(engine, {"key": "value"})
    source_of(engine).remove([key])
    assert stored(engine, key) in (None, {})
    assert not store_of(engine).exists(key)


def test_a_request_of_the_old_release_does_not_leave_it_in_the_cache(site: None) -> None:
    from django.contrib.sessions.models import Session

    engine = DJANGOS["cached_db"]
    key = new_session(engine, {"key": "value"})

    def request(**kwargs: Any) -> None:
        assert stored(engine, key) == {"key": "value"}

    pre_delete.connect(request, Session)
    try:
        source_of(engine).remove([key])
    finally:
        pre_delete.disconnect(request, Session)
    assert not store_of(engine).exists(key)


def test_the_row_is_the_truth_and_not_the_cache(site: None) -> None:
    engine = DJANGOS["cached_db"]
    key = new_session(engine, {"key": "value"})
    store = store_of(engine, key)
    store.model.objects.filter(pk=key).delete()
    assert stored(engine, key) == {"key": "value"}
    source = source_of(engine)
    assert source.read([key]) == {}
    assert source.present([key]) == set()


def test_a_file_without_an_expiry_lives_from_its_last_modification(site: None, tmp_path: Path) -> None:
    engine = DJANGOS["file"]
    key = new_session(engine, {"key": "value"})
    path, now = tmp_path / f"sessionid{key}", time.time()
    os.utime(path, (now - 600, now - 600))
    found = read(engine, key)
    assert found is not None
    assert 380 < found.ttl_left <= 400
    os.utime(path, (now - 1001, now - 1001))
    assert source_of(engine).read([key]) == {}


def test_files_that_are_no_sessions_are_left_alone(site: None, tmp_path: Path) -> None:
    engine = DJANGOS["file"]
    key = new_session(engine, {"key": "value"})
    for name in (f"sessionid{key}_out_1a2b3c", "other", "sessionid..", f"sessionid{key[::-1]}"):
        (tmp_path / name).touch()  # Django is creating the session of the last one
    source = source_of(engine)
    assert sorted(next(iter(source.batches(5)))) == sorted([key, key[::-1]])
    assert source.read([key, key[::-1]]).keys() == {key}


def test_a_damaged_file_cannot_be_read(site: None, tmp_path: Path) -> None:
    engine = DJANGOS["file"]
    key = new_session(engine, {"key": "value"})
    for spoiled in (b"\xff\xfe", b"spoiled"):
        (tmp_path / f"sessionid{key}").write_bytes(spoiled)
        assert read(engine, key) is None


@each_cache
def test_other_things_in_the_cache_are_no_sessions(site: None, engine: str) -> None:
    key = new_session(engine, {"key": "value"})
    cache = store_of(engine)._cache
    cache.set("other", {"key": "value"})
    cache.set("django.contrib.sessions.cached_dbxyz", {"key": "value"})
    cache.set("django.contrib.sessions.cachexyz", {"key": "value"}, version=2)
    assert list(source_of(engine).batches(5)) == [[key]]


@each_cache
@pytest.mark.parametrize(("expiry", "left"), [(None, 1000), (300, 300)])
def test_one_that_the_server_never_lets_expire_lives_as_django_says(
    site: None, engine: str, expiry: Any, left: float
) -> None:
    key = new_session(engine, {"key": "value"}, expiry)
    store = store_of(engine, key)
    with shared().client() as client:
        assert client.persist(store._cache.make_key(store.cache_key))
    found = read(engine, key)
    assert found is not None
    assert found.ttl_left == left


def test_django_redis_reads_what_djangos_redis_cache_wrote(site: None, settings: Settings) -> None:
    engine = DJANGOS["cache"]
    entry = settings.CACHES["sessions"]
    djangos = {**entry, "BACKEND": "django.core.cache.backends.redis.RedisCache", "OPTIONS": {}}
    settings.CACHES = {**settings.CACHES, "sessions": djangos}
    key = new_session(engine, {"key": "value"})
    settings.CACHES = {**settings.CACHES, "sessions": entry}
    assert data_of(engine, key) == {"key": "value"}
    assert stored(engine, key) == {"key": "value"}


def cluster_entry() -> dict[str, Any]:
    entry: dict[str, Any] = cluster_settings("", redis_clusters.shared().url())["CACHES"]["sessions"]
    return entry


def sentinel_entry() -> dict[str, Any]:
    return {"BACKEND": "django_redis.cache.RedisCache", **sentinels().entry()}


@pytest.mark.parametrize("entry", [cluster_entry, sentinel_entry])
def test_sessions_are_found_in_a_cluster_and_behind_sentinel(
    site: None, settings: Settings, entry: Callable[[], dict[str, Any]]
) -> None:
    engine = DJANGOS["cache"]
    prefix = settings.CACHES["sessions"]["KEY_PREFIX"]
    settings.CACHES = {**settings.CACHES, "sessions": {**entry(), "KEY_PREFIX": prefix}}
    keys = [new_session(engine, {"number": number}, 300) for number in range(20)]
    source = source_of(engine)
    assert sorted(ref for batch in source.batches(8) for ref in batch) == sorted(keys)
    found = source.read(keys)
    assert [session and session.data["number"] for session in found.values()] == [*range(20)]
    assert all(session and 280 < session.ttl_left <= 300 for session in found.values())
    source.remove(keys[:10])
    assert source.present(keys) == {*keys[10:]}


@each_engine
def test_what_is_kept_for_us_is_no_part_of_a_session(site: None, engine: str) -> None:
    key = new_session(engine, {"key": "value"})
    if engine in OURS.values():
        store = store_of(engine, key)
        assert store["key"] == "value"
        store[f"{MOVING_KEY}1"] = "certain"
        store.save()
    assert data_of(engine, key) == {"key": "value"}


def test_large_values_are_moved_too(site: None) -> None:
    large = {"large": "x" * 100_000, "small": 1}
    assert data_of(OURS["redis_hash"], new_session(OURS["redis_hash"], large)) == large


@pytest.mark.parametrize("storage", ["PerKeyStorage", "CompleteStorage"])
def test_a_storage_that_is_asked_key_by_key_gives_all_pairs(monkeypatch: pytest.MonkeyPatch, storage: str) -> None:
    from tests.support import engine_that_purges, storages

    class Store(engine_that_purges.SessionStore):
        storage_class = getattr(storages, storage)

    monkeypatch.setattr(engine_that_purges, "SessionStore", Store)
    engine = engine_that_purges.__name__
    key = new_session(engine, {"one": 1, "two": 2}, 300)
    found = read(engine, key)
    assert found is not None
    assert found.data == {"one": 1, "two": 2, "_session_expiry": 300}
    assert 290 < found.ttl_left <= 300
    empty = new_session(engine, {})
    assert data_of(engine, empty) == {}


def test_a_storage_that_cannot_list_its_sessions_says_so() -> None:
    source = source_of("tests.support.engine_that_cannot_purge")
    with pytest.raises(ImproperlyConfigured, match=r"WholeMapStorage .* cannot list its sessions: it has no ids\(\)"):
        list(source.batches(5))


# Outages.


def fails(source: Any, ref: str) -> list[str]:
    """Check that each call fails, and return the messages."""
    calls: list[Callable[[], Any]] = [
        lambda: list(source.batches(5)),
        lambda: source.read([ref]),
        lambda: source.present([ref]),
        lambda: source.remove([ref]),
    ]
    said = []
    for call in calls:
        with pytest.raises(StorageUnavailable) as raised:
            call()
        said.append(str(raised.value))
    return said


@pytest.mark.parametrize("engine", [*CACHES, OURS["redis"], OURS["redis_hash"]])
def test_a_redis_that_is_gone_is_an_outage(tmp_path: Path, engine: str) -> None:
    with RedisServer() as server, old_site(tmp_path, url=server.url()):
        source = source_of(engine)
        ref = source.ref_of(new_session(engine, {"key": "value"}))
        server.kill()
        for said in fails(source, ref):
            assert "CACHES['sessions']" in said or f"{engine!r} cannot use its cache, which SESSION_CACHE_ALIAS" in said
        server.restart()


def test_a_cache_that_is_gone_removes_nothing(tmp_path: Path) -> None:
    """Otherwise the session would come back from the cache, once that is up."""
    engine = DJANGOS["cached_db"]
    with RedisServer() as server, old_site(tmp_path, url=server.url()):
        source, key = source_of(engine), new_session(engine, {"key": "value"})
        server.kill()
        with pytest.raises(StorageUnavailable, match="cannot use its cache, which SESSION_CACHE_ALIAS names"):
            source.remove([key])
        assert source.present([key]) == {key}
        server.restart()


@pytest.mark.parametrize("engine", [DJANGOS["db"], DJANGOS["cached_db"]])
def test_a_database_that_is_gone_is_an_outage(site: None, settings: Settings, engine: str) -> None:
    entry = {"ENGINE": "django.db.backends.postgresql", "NAME": "x", "HOST": "127.0.0.1", "PORT": "1"}
    with databases.connected(entry) as alias:
        settings.DATABASE_ROUTERS = [Router(alias)]
        for said in fails(source_of(engine), "x" * 32):
            assert f"engine {engine!r}, DATABASES[{alias!r}], cannot be reached: " in said


def test_a_folder_that_is_gone_is_an_outage(site: None, tmp_path: Path) -> None:
    engine = DJANGOS["file"]
    source, key = source_of(engine), new_session(engine, {"key": "value"})
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    for said in fails(source, key):
        assert f"{engine!r} cannot use its folder (SESSION_FILE_PATH)" in said
        assert str(tmp_path) in said
    moved.rename(tmp_path)
    assert source.present([key]) == {key}


# Engines that sessions cannot be moved from.


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ("no.such.engine", "'no.such.engine' is not a session engine: No module named"),
        ("", "'' is not a session engine: it is not the dotted name of a module"),
        ("gsession_django.core.conf", "'gsession_django.core.conf' is not a session engine: .*SessionStore"),
        ("django.contrib.sessions.backends.base", "'django.contrib.sessions.backends.base' is not a session engine"),
        ("gsession_django.core.store", "from 'gsession_django.core.store': it is not an engine of gsession_django"),
        ("django.contrib.sessions.backends.signed_cookies", "in the visitors' cookies, and none on a server"),
    ],
)
def test_an_engine_that_is_none_of_these_is_refused(engine: str, says: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=says):
        source_of(engine)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (
            {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
            r"LocMemCache, which can neither list them nor tell",
        ),
        (
            {"BACKEND": "django_redis.cache.RedisCache", "OPTIONS": {"CLIENT_CLASS": "django_redis.client.HerdClient"}},
            "with the CLIENT_CLASS HerdClient. Sessions can only be moved from",
        ),
        (
            {
                "BACKEND": "django_redis.cache.RedisCache",
                "OPTIONS": {"CLIENT_CLASS": "django_redis.client.ShardClient"},
            },
            "with the CLIENT_CLASS ShardClient. Sessions can only be moved from",
        ),
        ({"BACKEND": "django_redis.cache.RedisCache", "KEY_FUNCTION": f"{__name__}.hashed"}, "KEY_FUNCTION of its"),
    ],
)
def test_a_cache_from_which_sessions_cannot_be_moved_is_refused(settings: Settings, entry: Any, says: str) -> None:
    settings.CACHES = {"default": {"LOCATION": "redis://127.0.0.1:1/0", **entry}}
    assert caches["default"] is not None
    with pytest.raises(ImproperlyConfigured, match=says):
        source_of(DJANGOS["cache"])


def hashed(key: str, prefix: str, version: int) -> str:
    return str(hash((key, prefix, version)))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with (
        old_site(tmp_path, SESSION_FILE_PATH=str(tmp_path / "nowhere")),
        pytest.raises(ImproperlyConfigured, match=r"doesn't exist\. Please set your SESSION_FILE_PATH"),
    ):
        source_of(DJANGOS["file"])
