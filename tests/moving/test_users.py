"""The sessions of users while they move from another engine: listed as they arrive, and ended where they are."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.core.management import call_command
from django.test import override_settings

from gsession_django import SessionStore, StorageUnavailable
from gsession_django.backends.file import SessionStore as FileStore
from gsession_django.backends.memory import SessionStore as MemoryStore
from gsession_django.core.engine import engine_of
from gsession_django.moving import steps
from gsession_django.moving.our_engines import OurSource
from gsession_django.users import clients, end_sessions, sessions_of
from gsession_django.users.about import LISTED, SINCE
from tests.support.engines import empty
from tests.support.indexes import engine_on
from tests.support.old_sites import OURS, old_site, store_of
from tests.support.sign_ins import ids_of, request_of, sign_in
from tests.support.storages import IndexedStorage


@pytest.fixture
def store_class(tmp_path: Path) -> Iterator[type[SessionStore]]:
    """Yield an engine with an index, to which sessions move from files."""
    fallback = {"FALLBACK_ENGINE": FileStore.__module__}
    with engine_on(IndexedStorage, GSESSION=fallback, SESSION_FILE_PATH=tmp_path) as store_class:
        yield store_class


def moved(store_class: type[SessionStore], name: str, source_class: type[SessionStore], key: str) -> Any:
    """Move a session as ``migrate_sessions`` does, and return the outcome."""
    source, engine, store = OurSource(name, source_class), engine_of(store_class), store_class(key)
    (ref,) = refs = [source.ref_of(key)]
    found: Any = source.read(refs)[ref]
    return engine.run(steps.move(engine, source, {ref: (str(store.session_id), found)}, store))[ref]


def test_a_session_that_its_first_visit_moves_is_listed(store_class: type[SessionStore]) -> None:
    key = sign_in(FileStore()).session_key
    assert store_class(key)[SESSION_KEY] == "7"
    assert ids_of() == {store_class(key).session_id}


def test_a_session_that_comes_from_an_engine_with_an_index_is_listed_and_keeps_its_sign_in() -> None:
    class Old(IndexedStorage):
        reads_settings = False  # it keeps its sessions while the settings name another engine

    with engine_on(Old) as old_class:
        key = str(sign_in(old_class()).session_key)
        (before,) = sessions_of("7")
        with engine_on(IndexedStorage) as store_class:
            assert moved(store_class, "old", old_class, key) is steps.Outcome.MOVED
            (after,) = sessions_of("7")
            assert after.session_id == store_class(key).session_id
            assert after.created == before.created
            medium = store_class.get_storage().medium  # type: ignore[attr-defined]
            medium.calls.clear()
            request = store_class(key)
            assert request[SESSION_KEY] == "7"
            request["cart"] = 1
            request.save()
            assert "add_to_user" in medium.names(), "until when it was listed counts for the old index alone"
            (after,) = sessions_of("7")
            assert after.created == before.created


def by_a_visit(source: str, key: str) -> None:
    with override_settings(GSESSION={**settings.GSESSION, "FALLBACK_ENGINE": source}):
        assert store_of(settings.SESSION_ENGINE, key)[SESSION_KEY] == "7"


def by_the_command(source: str, key: str) -> None:
    call_command("migrate_sessions", "--from", source, stdout=StringIO())


@pytest.mark.parametrize("move", [by_a_visit, by_the_command])
@pytest.mark.parametrize(("source", "target"), list(pairwise([*OURS, "file"])))
def test_what_is_known_of_a_session_moves_with_it_from_engine_to_engine(
    tmp_path: Path, source: str, target: str, move: Callable[[str, str], None]
) -> None:
    source, target = OURS[source], OURS[target]
    with old_site(tmp_path):
        given = {**settings.GSESSION, "RECORD_CLIENT": True}
        with override_settings(SESSION_ENGINE=source, GSESSION=given):
            store = store_of(source)
            store.set_expiry(1000)
            sign_in(store)
            clients.record(request_of(store))
            store.save()
            store.get_storage().update_ttl(store.session_id, 600)  # the last visit was 400 seconds ago
            (before,) = sessions_of("7")
        with override_settings(SESSION_ENGINE=target, GSESSION=given):
            assert sessions_of("7") == []
            move(source, store.session_key)
            (after,) = sessions_of("7")
            assert (after.created, after.user_id, after.handle) == (before.created, "7", before.handle)
            assert after.last_seen_from == before.last_seen_from is not None
            assert before.created is not None
            assert after.last_seen is not None
            assert before.last_seen is not None
            assert abs(after.last_seen - before.last_seen) < timedelta(seconds=2), "a move is not a visit"
            assert end_sessions("7") == 1
            assert store_of(target, store.session_key).get(SESSION_KEY) is None
        with override_settings(SESSION_ENGINE=source, GSESSION=given):
            assert sessions_of("7") == []


def test_all_sessions_that_end_include_those_that_have_not_moved_yet(store_class: type[SessionStore]) -> None:
    key = sign_in(FileStore()).session_key
    end_sessions("7")
    assert store_class(key).get(SESSION_KEY) is None


def test_a_session_that_was_ended_after_half_a_move_does_not_come_back(
    store_class: type[SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = sign_in(FileStore()).session_key
    with monkeypatch.context() as patched:

        def fails(source: OurSource, refs: Any) -> None:
            raise StorageUnavailable("the fallback is away")

        patched.setattr(OurSource, "remove", fails)
        with pytest.raises(StorageUnavailable):
            store_class(key).get(SESSION_KEY)  # the copy is certain by then
    assert end_sessions("7") == 1
    assert store_class(key).get(SESSION_KEY) is None


def test_a_copy_that_a_visitor_touched_is_still_the_same_session() -> None:
    with engine_on(IndexedStorage) as store_class:
        empty(MemoryStore)
        old = MemoryStore()
        old[SESSION_KEY] = "7"
        old.save()
        storage: Any = MemoryStore.get_storage()
        for name in (SINCE, LISTED):  # it was stored before sessions were listed
            storage._entries.live(old.session_id).values.pop(name, None)
        source, engine, store = OurSource(MemoryStore.__module__, MemoryStore), engine_of(store_class), store_class()
        ref = source.ref_of(str(old.session_key))
        target_id = str(store_class(old.session_key).session_id)

        def batch() -> Any:
            return {ref: (target_id, source.read([ref])[ref])}

        engine.run(steps.copy(engine, source, batch(), store))
        visitor = store_class(old.session_key)
        assert visitor[SESSION_KEY] == "7"
        visitor.modified = True
        visitor.save()
        assert engine.run(steps.move(engine, source, batch(), store)) == {ref: steps.Outcome.MOVED}
