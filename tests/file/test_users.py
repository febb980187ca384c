"""The file engine's index from users to sessions: its folders, the dead in it, and what goes on there at once."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from gsession_django import SessionMap, StorageUnavailable
from gsession_django.backends.file import FileStorage
from gsession_django.file.users import UserFolders
from gsession_django.testing.threads import in_threads, interrupted
from tests.support.clock import Clock, moved_clock
from tests.support.engines import engine
from tests.support.processes import TIMEOUT

pytestmark = pytest.mark.once

USER = "7"
ONE, OTHER = (hashlib.sha256(name).hexdigest() for name in (b"one", b"other"))


@pytest.fixture
def clock() -> Iterator[Clock]:
    with moved_clock() as clock:
        yield clock


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[FileStorage]:
    with engine("file", tmp_path) as store_class:
        found = store_class.get_storage()
        assert isinstance(found, FileStorage)
        yield found


def sign_in(storage: FileStorage, session_id: str = ONE, ttl: int = 1000) -> None:
    storage.add_to_user(USER, session_id, 2 * ttl)
    assert storage.create(session_id, SessionMap({"_auth_user_id": USER}), ttl)


def folder_of(folder: Path, user: str = USER) -> Path:
    return folder / "users" / hashlib.sha256(user.encode()).hexdigest()


def purge(storage: FileStorage, batch_size: int = 1000) -> list[int]:
    return list(storage.purge(batch_size))


def test_a_user_is_a_private_folder_with_an_empty_file_for_each_session(tmp_path: Path, storage: FileStorage) -> None:
    sign_in(storage)
    folder = folder_of(tmp_path)
    assert [(entry.name, entry.stat().st_size) for entry in folder.iterdir()] == [(ONE, 0)]
    for private in (folder, folder.parent):
        assert private.stat().st_mode & 0o777 == 0o700
    assert (folder / ONE).stat().st_mode & 0o777 == 0o600
    assert list(storage.ids()) == [ONE]
    storage.remove_from_user(USER, ONE, True)
    assert not folder.exists()


def test_sessions_are_listed_in_the_order_in_which_they_were_added(storage: FileStorage, clock: Clock) -> None:
    ids = [hashlib.sha256(bytes([number])).hexdigest() for number in range(5)]
    for session_id in ids:
        sign_in(storage, session_id)
        clock.offset += 1
    assert storage.sessions_of(USER) == ids


def test_what_was_left_of_a_session_is_removed_after_a_minute(
    tmp_path: Path, storage: FileStorage, clock: Clock
) -> None:
    storage.add_to_user(USER, ONE, 60)  # and then the process died
    clock.offset += 50
    storage.add_to_user(USER, OTHER, 60)
    assert storage.sessions_of(USER) == [ONE, OTHER]
    clock.offset += 20
    assert storage.sessions_of(USER) == [OTHER]
    clock.offset += 50
    assert storage.sessions_of(USER) == []
    assert not folder_of(tmp_path).exists()


def test_a_purge_removes_what_was_left_of_sessions_of_all_users(
    tmp_path: Path, storage: FileStorage, clock: Clock
) -> None:
    sign_in(storage)
    for number in range(10):
        for user in "89":
            storage.add_to_user(user, hashlib.sha256(f"{user}{number}".encode()).hexdigest(), 60)
    folder_of(tmp_path, "empty").mkdir()
    clock.offset += 70
    purge(storage, 1000)
    assert [path.name for path in (tmp_path / "users").iterdir() if path.is_dir()] == [folder_of(tmp_path).name]
    assert storage.sessions_of(USER) == [ONE]


def test_a_purge_that_is_stopped_has_removed_a_batch(tmp_path: Path, storage: FileStorage, clock: Clock) -> None:
    for number in range(100):
        storage.add_to_user(USER, hashlib.sha256(bytes([number])).hexdigest(), 60)
    clock.offset += 70
    steps = storage.purge(10)
    assert next(steps) == 0
    assert 80 <= len(list(folder_of(tmp_path).iterdir())) < 100
    assert sum(steps) == 0
    assert not folder_of(tmp_path).exists()


def test_a_dry_run_removes_nothing_of_the_index(tmp_path: Path, storage: FileStorage, clock: Clock) -> None:
    storage.add_to_user(USER, ONE, 60)
    clock.offset += 70
    list(storage.purge(1000, dry_run=True))
    assert (folder_of(tmp_path) / ONE).exists()


def test_a_session_that_is_stored_while_its_dead_file_is_removed_is_listed(
    tmp_path: Path, storage: FileStorage, clock: Clock
) -> None:
    """Wherever that is: the removal is interrupted at each of its lines in turn."""
    seen: set[Any] = set()
    while True:
        before = len(seen)
        storage.remove_from_user(USER, ONE, True)
        storage.add_to_user(USER, ONE, 60)
        clock.offset += 70
        with ThreadPoolExecutor(1) as pool:
            stored: list[Future[None]] = []

            def store(pool: ThreadPoolExecutor = pool, stored: list[Future[None]] = stored) -> None:
                stored.append(pool.submit(sign_in, storage))
                wait(stored, 0.05)  # the removal may hold the lock there

            with interrupted(UserFolders.sessions_of, seen, store):
                storage.sessions_of(USER)
            for future in stored:
                future.result(TIMEOUT)
        if len(seen) == before:
            break
        assert storage.sessions_of(USER) == [ONE]
    assert len(seen) > 10


def test_threads_that_add_and_remove_sessions_of_one_user_lose_none(storage: FileStorage) -> None:
    """The folder comes and goes, as one of them empties it."""
    ids = [hashlib.sha256(bytes([number])).hexdigest() for number in range(4)]

    def work(number: int) -> None:
        if number == len(ids):
            for _ in range(50):
                storage.sessions_of(USER)
                purge(storage)
            return
        for _ in range(50):
            sign_in(storage, ids[number])
            assert ids[number] in storage.sessions_of(USER)
            storage.remove_from_user(USER, ids[number], True)
        sign_in(storage, ids[number])

    in_threads(len(ids) + 1, work)
    assert sorted(storage.sessions_of(USER)) == sorted(ids)


def test_a_folder_that_is_not_there_is_no_user_without_sessions(tmp_path: Path, storage: FileStorage) -> None:
    sign_in(storage)
    shutil.rmtree(tmp_path)
    for ask in (
        lambda: storage.sessions_of(USER),
        lambda: storage.add_to_user(USER, OTHER, 60),
        lambda: storage.remove_from_user(USER, ONE, False),
    ):
        with pytest.raises(StorageUnavailable, match="SESSION_FILE_PATH"):
            ask()
    tmp_path.mkdir()


def test_with_fsync_a_listed_session_is_on_the_disk_before_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    with engine("file", tmp_path, fsync=True) as store_class:
        storage = store_class.get_storage()
        monkeypatch.setattr(os, "fsync", note)
        storage.add_to_user(USER, ONE, 60)
        assert synced == [str(tmp_path), str(tmp_path / "users"), str(folder_of(tmp_path))]
