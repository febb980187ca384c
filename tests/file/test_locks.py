"""The file engine's locks: what is in the folder, what a killed process leaves, and processes that want the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gsession_django import StorageUnavailable
from gsession_django.backends import file
from tests.support.clock import moved_clock
from tests.support.engines import engine
from tests.support.processes import Parent, let_them_meet, workers

pytestmark = pytest.mark.once


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[file.FileStorage]:
    with engine("file", tmp_path) as store_class:
        found = store_class.get_storage()
        assert isinstance(found, file.FileStorage)
        yield found


def locks_in(folder: Path) -> list[Path]:
    return [path for path in (folder / "locks").iterdir() if not path.name.startswith(".")]


def test_a_lock_is_a_private_file_that_goes_with_it(tmp_path: Path, storage: file.FileStorage) -> None:
    assert storage.lock("session", "mine", 60)
    (path,) = locks_in(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    storage.unlock("session", "mine")
    assert locks_in(tmp_path) == []


def test_a_purge_removes_locks_that_are_over(tmp_path: Path, storage: file.FileStorage) -> None:
    with moved_clock() as clock:
        for number in range(5):
            assert storage.lock(f"dead {number}", "token", 10)
        assert storage.lock("session", "mine", 100)
        clock.offset += 20
        list(storage.purge(2, dry_run=True))
        assert len(locks_in(tmp_path)) == 6
        list(storage.purge(2))
        assert len(locks_in(tmp_path)) == 1
        assert not storage.lock("session", "theirs", 60)


@pytest.mark.parametrize("left", [b"", b"mine", b"mine 17", b"mine 17958", b"\xff\x00"])
def test_a_lock_that_was_not_written_to_its_end_is_free(tmp_path: Path, storage: file.FileStorage, left: bytes) -> None:
    assert storage.lock("session", "mine", 60)
    (path,) = locks_in(tmp_path)
    path.write_bytes(left)
    assert storage.lock("session", "theirs", 60)


def test_a_token_may_have_a_blank(storage: file.FileStorage) -> None:
    assert storage.lock("session", "a token of mine", 60)
    assert not storage.lock("session", "a token", 60)
    assert storage.lock("session", "a token of mine", 60)


def test_a_folder_that_cannot_be_used_is_no_free_lock(tmp_path: Path, storage: file.FileStorage) -> None:
    (tmp_path / "locks").write_text("a file")
    with pytest.raises(StorageUnavailable, match="SESSION_FILE_PATH"):
        storage.lock("session", "mine", 60)


def count_alone(parent: Parent, number: int, counter: str) -> None:
    """Count to 50 in a file, each time alone."""
    storage = file.SessionStore.get_storage()
    path, turns = Path(counter), 0
    parent.meet()
    while turns < 50:
        if storage.lock("session", f"process {number}", 60):
            path.write_text(str(int(path.read_text()) + 1))
            storage.unlock("session", f"process {number}")
            turns += 1
    parent.say(turns)


def test_processes_have_it_one_at_a_time(tmp_path: Path) -> None:
    folder, counter = tmp_path / "sessions", tmp_path / "counter"
    folder.mkdir()
    counter.write_text("0")
    with workers(folder, 3, count_alone, str(counter)) as those:
        let_them_meet(those)
        assert [worker.hear() for worker in those] == [50] * 3
    assert counter.read_text() == "150"
