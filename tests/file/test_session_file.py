"""One session in one file: its contents, its size, the order of its writes, and its lock."""

import errno
import itertools
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gsession_django.core.signing import tag_of
from gsession_django.file.session_file import (
    HEADER_SIZE,
    Damaged,
    FileLock,
    Header,
    SessionFile,
    sync_folder,
    write_new,
)
from tests.support.processes import TIMEOUT, Parent, Worker, let_them_meet, workers

pytestmark = pytest.mark.once

LATER = 4_000_000_000.25
MEGABYTE = 1_000_000
TAG = tag_of("file", "session", b"body")


def new_file(folder: Path, body: bytes, expires: float = LATER) -> Path:
    path = folder / "session"
    write_new(str(path), str(folder / ".new"), body, expires)
    return path


def read(path: Path) -> bytes:
    with SessionFile(str(path)) as file:
        return file.body()


def write(path: Path, body: bytes, expires: float = LATER, fsync: bool = False) -> int:
    with SessionFile(str(path), writable=True, fsync=fsync) as file:
        return file.write(body, expires)


# Contents.


@pytest.mark.parametrize("size", [0, 1, 8191 - HEADER_SIZE, 8192 - HEADER_SIZE, 8193 - HEADER_SIZE, MEGABYTE])
def test_a_written_body_is_read_back(tmp_path: Path, size: int) -> None:
    first, second = b"a" * size, b"b" * size
    path = new_file(tmp_path, first)
    assert read(path) == first
    write(path, second)
    assert read(path) == second
    write(path, b"short")
    assert read(path) == b"short"
    write(path, first)
    assert read(path) == first


def test_nothing_is_left_beside_a_new_file(tmp_path: Path) -> None:
    path = new_file(tmp_path, b"body")
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_takes_the_place_of_another_in_one_step(tmp_path: Path) -> None:
    path = new_file(tmp_path, b"old")
    with SessionFile(str(path)) as reader:
        new_file(tmp_path, b"new")
        assert reader.body() == b"old"
    assert read(path) == b"new"


@pytest.mark.parametrize("expires", [0.0, -1.5, 0.1 + 0.2, LATER, 1e300])
def test_the_expiry_is_kept_to_the_bit(tmp_path: Path, expires: float) -> None:
    path = new_file(tmp_path, b"body", expires)
    with SessionFile(str(path)) as file:
        assert file.header.expires == expires
        assert file.header.alive is (expires > time.time())


def test_the_revision_changes_with_each_write_and_not_with_a_touch(tmp_path: Path) -> None:
    path = new_file(tmp_path, b"body")
    with SessionFile(str(path), writable=True) as file:
        revisions = [file.header.revision, *(file.write(b"body", LATER) for _ in range(5))]
        assert len(set(revisions)) == 6
        file.renew(LATER + 1)
    with SessionFile(str(path)) as file:
        assert file.header.revision == revisions[-1]
        assert file.header.expires == LATER + 1


def test_a_file_created_again_under_the_same_name_has_another_revision(tmp_path: Path) -> None:
    revisions = set()
    for _ in range(50):
        with SessionFile(str(new_file(tmp_path, b"body"))) as file:
            revisions.add(file.header.revision)
    assert len(revisions) == 50


def test_the_last_revision_is_followed_by_the_first(tmp_path: Path) -> None:
    path = new_file(tmp_path, b"body")
    header = Header(LATER, 2**64 - 1, HEADER_SIZE, 4, TAG, TAG)
    path.write_bytes(header.pack() + b"body")
    assert write(path, b"next") == 0
    assert read(path) == b"next"


def test_the_header_is_read_without_the_body(tmp_path: Path) -> None:
    path = new_file(tmp_path, b"x" * 100)
    path.write_bytes(path.read_bytes()[:HEADER_SIZE])
    with SessionFile(str(path)) as file:
        assert file.header.expires == LATER
        with pytest.raises(Damaged, match="body"):
            file.body()


def test_one_wrong_bit_anywhere_in_a_header_is_damage(tmp_path: Path) -> None:
    packed = Header(LATER, 5, HEADER_SIZE, 4, TAG, TAG).pack()
    assert Header.unpack(packed) == Header(LATER, 5, HEADER_SIZE, 4, TAG, TAG)
    for bit in range(8 * len(packed)):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            Header.unpack(bytes(flipped))


@pytest.mark.parametrize(
    "header", [Header(LATER, 1, HEADER_SIZE, 2**32 - 1, TAG, TAG), Header(LATER, 1, 2**32 - 1, 9, TAG, TAG)]
)
def test_a_header_that_points_beyond_the_file_is_damage_and_costs_no_memory(
    tmp_path: Path, header: Header, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "session"
    path.write_bytes(header.pack() + b"body")
    real_read = os.read

    def read_a_little(fd: int, size: int) -> bytes:
        assert size < MEGABYTE, "it reserves more memory than the file has bytes"
        return real_read(fd, size)

    monkeypatch.setattr(os, "read", read_a_little)
    with pytest.raises(Damaged):
        read(path)


def test_a_missing_file_raises_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SessionFile(str(tmp_path / "session"))


def test_a_damaged_file_is_not_left_open(tmp_path: Path) -> None:
    path = tmp_path / "session"
    path.write_bytes(b"no session")
    before = os.open(path, os.O_RDONLY)
    os.close(before)
    for _ in range(5):
        with pytest.raises(Damaged):
            SessionFile(str(path))
    after = os.open(path, os.O_RDONLY)
    os.close(after)
    assert after == before


# An interrupted write leaves the previous body readable.


@pytest.mark.parametrize("sizes", [(10, 10), (10, 20), (20, 10), (10, MEGABYTE), (MEGABYTE, 10), (0, 10), (10, 0)])
def test_a_write_that_breaks_off_leaves_the_previous_body(
    tmp_path: Path, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (os.urandom(size) for size in sizes)
    real_write = os.write
    for allowed in itertools.count():
        path = new_file(tmp_path, b"even older")
        write(path, first)
        calls = itertools.count()

        def failing(fd: int, data: Any, calls: Iterator[int] = calls, allowed: int = allowed) -> int:
            if next(calls) < allowed:
                return real_write(fd, data)
            if len(data) != HEADER_SIZE:  # a header fits into one page, so the kernel writes all of it or nothing
                real_write(fd, bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", failing)
            try:
                write(path, second)
            except OSError:
                assert read(path) == first
            else:
                assert read(path) == second
                return


# Size.


@pytest.mark.parametrize("seed", range(20))
def test_a_file_never_gets_larger_than_about_three_times_its_largest_body(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    largest = chance.choice([100, 5000, 100_000])
    path = new_file(tmp_path, bytes(chance.randrange(largest)))
    for _ in range(200):
        size = chance.choice([chance.randrange(largest + 1), chance.randrange(10), largest])
        body = bytes(size)
        write(path, body)
        assert path.stat().st_size <= HEADER_SIZE + 3 * largest
        assert read(path) == body


def test_a_body_that_grows_byte_by_byte_keeps_the_file_within_bounds(tmp_path: Path) -> None:
    path = new_file(tmp_path, b"")
    for size in range(2000):
        write(path, bytes(size))
        assert path.stat().st_size <= HEADER_SIZE + 3 * max(size, 1)


@pytest.mark.parametrize("before", [0, 100, 70_000])
def test_a_file_shrinks_when_a_megabyte_has_gone(tmp_path: Path, before: int) -> None:
    path = new_file(tmp_path, bytes(before))
    write(path, bytes(MEGABYTE))
    for _ in range(3):  # the first body may still go behind the megabyte
        write(path, b"small")
    assert path.stat().st_size < 200_000
    assert read(path) == b"small"


def test_a_file_created_with_a_megabyte_shrinks_too(tmp_path: Path) -> None:
    path = new_file(tmp_path, bytes(MEGABYTE))
    write(path, b"small")
    write(path, b"small")
    assert path.stat().st_size < 100_000


# Waits for the disk, and their order.


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield a list of the writes, renames and syncs from now on."""
    events: list[str] = []

    def record(name: str, describe: Callable[..., str]) -> None:
        real = getattr(os, name)

        def wrapper(*args: Any) -> Any:
            events.append(describe(*args))
            return real(*args)

        patch.setattr(os, name, wrapper)

    with monkeypatch.context() as patch:
        record("write", lambda fd, data: "header" if len(data) == HEADER_SIZE else "body")
        record("fsync", lambda fd: "sync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync")
        record("replace", lambda *paths: "replace")
        record("ftruncate", lambda *args: "cut")
        yield events


def test_with_fsync_the_body_is_on_the_disk_before_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = new_file(tmp_path, bytes(MEGABYTE))
    with recorded(monkeypatch) as events:
        write(path, b"new body", fsync=True)
        write(path, b"new body", fsync=True)
    order = ["body", "sync", "header", "sync"]
    assert events == [*order, *order, "cut"], "the old body must stay until the header points to the new one"


def test_with_fsync_a_new_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(monkeypatch) as events:
        write_new(str(tmp_path / "session"), str(tmp_path / ".new"), b"body", LATER, fsync=True)
        sync_folder(str(tmp_path))
    assert events == ["body", "sync", "replace", "sync folder"]


def test_with_fsync_a_touch_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = new_file(tmp_path, b"body")
    with recorded(monkeypatch) as events, SessionFile(str(path), writable=True, fsync=True) as file:
        file.renew(LATER + 1)
    assert events == ["header", "sync"]


def test_without_fsync_nothing_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(monkeypatch) as events:
        path = new_file(tmp_path, b"body")
        write(path, b"new body")
        with SessionFile(str(path), writable=True) as file:
            file.renew(LATER + 1)
    assert not [event for event in events if event.startswith("sync")]


# The lock.


def count_up(counter: Path, lock: str, times: int) -> None:
    for _ in range(times):
        with FileLock(lock):
            number = int(counter.read_text())
            counter.write_text(f"{number + 1:08}")


def count_up_elsewhere(parent: Parent, number: int, counter: Path, lock: str) -> None:
    parent.meet()
    count_up(counter, lock, 100)
    parent.say("done")


def test_only_one_thread_of_all_processes_holds_the_lock_at_a_time(tmp_path: Path) -> None:
    counter, lock = tmp_path / "counter", str(tmp_path / ".lock")
    counter.write_text("0")
    with workers(tmp_path, 3, count_up_elsewhere, counter, lock) as those, ThreadPoolExecutor(3) as pool:
        let_them_meet(those)
        futures = [pool.submit(count_up, counter, lock, 100) for _ in range(3)]
        for future in futures:
            future.result(TIMEOUT)
        assert [worker.hear() for worker in those] == ["done"] * 3
    assert int(counter.read_text()) == 600


def test_the_lock_is_released_when_its_block_fails(tmp_path: Path) -> None:
    lock = str(tmp_path / ".lock")
    with pytest.raises(ZeroDivisionError), FileLock(lock):
        raise ZeroDivisionError
    taken = threading.Event()

    def take() -> None:
        with FileLock(lock):
            taken.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    assert taken.wait(TIMEOUT)
    thread.join(TIMEOUT)


def fork_while_locked(parent: Parent, lock: str) -> None:
    """Fork while holding the lock, and release it while the fork, which has the file open, lives on."""
    done, tell = os.pipe()
    with FileLock(lock):
        pid = os.fork()
        if pid == 0:
            os.close(tell)
            os.read(done, 1)  # until the other end is closed
            os._exit(0)
    os.close(done)
    parent.say("let go")
    parent.hear()
    os.close(tell)
    os.waitpid(pid, 0)
    parent.say("reaped")


def test_a_process_that_was_forked_under_the_lock_does_not_keep_it(tmp_path: Path) -> None:
    lock = str(tmp_path / ".lock")
    taken = threading.Event()

    def take() -> None:
        with FileLock(lock):
            taken.set()

    with Worker(tmp_path, fork_while_locked, lock) as holder:
        assert holder.hear() == "let go"
        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        assert taken.wait(10), "the forked process still holds the lock"
        holder.say()
        assert holder.hear() == "reaped"
        thread.join(TIMEOUT)


def test_without_a_folder_there_is_no_lock(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), FileLock(str(tmp_path / "missing" / ".lock")):
        pass


def test_the_lock_leaves_no_file_open(tmp_path: Path) -> None:
    lock = str(tmp_path / ".lock")
    before = os.open(tmp_path, os.O_RDONLY)
    os.close(before)
    for _ in range(5):
        with FileLock(lock):
            pass
    after = os.open(tmp_path, os.O_RDONLY)
    os.close(after)
    assert after == before
