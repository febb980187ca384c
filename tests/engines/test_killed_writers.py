"""A process that is killed at any moment leaves the previous session or the new one: at random moments, and at each
call that it makes to the system."""

import fcntl
import itertools
import json
import logging
import os
import random
import select
import shutil
import signal
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from gsession_django.backends import file
from gsession_django.core.session_map import SessionMap
from gsession_django.file.session_file import FileLock
from tests.support.engines import engine, path_of, same_shard
from tests.support.processes import TIMEOUT, Parent, Worker

pytestmark = pytest.mark.once

KILLS = 240
WRITERS = 4
SESSIONS = 3  # of each writer
LIFETIME = 0.03  # seconds that a writer lives at most
SIZES = [0, 10, 500, 5_000, 9_000, 70_000, 300_000]


def payload(number: int, size: int) -> dict[str, Any]:
    """Return a session with a checksum, to tell whether it is whole."""
    text = f"{number}." * (size // 3)
    return {"number": number, "text": text, "checksum": zlib.crc32(text.encode())}


def number_of(data: SessionMap) -> int:
    assert data.keys() == {"number", "text", "checksum"}, f"not whole: {sorted(data)}"
    text, number = data["text"], data["number"]
    assert zlib.crc32(text.encode()) == data["checksum"], "not whole: the text is not the one that was stored"
    assert text[:20] == (f"{number}." * 20)[: len(text[:20])], "not whole: the text is another session's"
    assert isinstance(number, int)
    return number


class Log(logging.Handler):
    """Collects the records of django.security.SuspiciousSession."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logger = logging.getLogger("django.security.SuspiciousSession")
        logger.addHandler(self)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


# The writers, and their reports before and after each operation.


class AnnouncedStorage(file.FileStorage):
    """Reports a session key before it stores anything under it."""

    tell: Callable[..., None]

    def new(self, ttl: int) -> str:
        key = os.urandom(16).hex()
        self.tell("new key", key)
        return key


class SessionStore(file.SessionStore):
    storage_class = AnnouncedStorage


@dataclass
class Session:
    """The known state of one session of a writer.

    Attributes:
        keys: the possible session keys: two during a cycle_key().
        number: the last acknowledged number; ``None`` without a session.
        doubt: the operation that the writer has begun and not acknowledged.
    """

    keys: list[str] = field(default_factory=list)
    number: int | None = None
    doubt: str = ""


def write_until_killed(pipe: int, seed: str, sessions: list[Session]) -> None:
    chance = random.Random(seed)

    def tell(*what: object) -> None:
        os.write(pipe, json.dumps(what).encode() + b"\n")

    storage = SessionStore.get_storage()
    assert isinstance(storage, AnnouncedStorage)
    while True:
        which = chance.randrange(len(sessions))
        session = sessions[which]
        storage.tell = lambda *what, which=which: tell(which, *what)
        store = SessionStore(session.keys[0] if session.keys else None)
        if session.number is None:
            store.update(payload(1, chance.choice(SIZES)))
            tell(which, "create")
            store.save()
            session.keys, session.number = [store.session_key or ""], 1
            tell(which, "created")
            continue
        match chance.choice(["modify"] * 5 + ["touch", "touch", "cycle", "cycle", "delete"]):
            case "modify":
                session.number += 1
                store.update(payload(session.number, chance.choice(SIZES)))
                tell(which, "modify")
                store.save()
                tell(which, "modified")
            case "touch":
                assert store["number"] == session.number
                tell(which, "touch")
                store.save()
                tell(which, "touched")
            case "cycle":
                tell(which, "cycle")
                store.cycle_key()
                tell(which, "cycled")
                store.save()
                session.keys = [store.session_key or ""]
            case "delete":
                tell(which, "delete")
                store.delete()
                session.keys, session.number = [], None
                tell(which, "deleted")


def hear(sessions: list[Session], heard: bytes) -> int:
    """Update the known states from a writer's reports, and return the number of acknowledgements."""
    acknowledged = 0
    for line in heard.split(b"\n")[:-1]:
        which, what, *more = json.loads(line)
        session = sessions[which]
        if what == "new key":
            session.keys.append(more[0])
        elif what.endswith("ed"):
            acknowledged += 1
            session.doubt = ""
            if what == "deleted":
                session.keys, session.number = [], None
            elif what == "created":
                session.number = 1
            elif what == "modified":
                session.number = (session.number or 0) + 1
            elif what == "cycled":
                del session.keys[0]
        else:
            session.doubt = what
    return acknowledged


def verify(session: Session) -> None:
    """Check what a killed writer left of a session, and take note of what it is."""
    found = {}
    for key in session.keys:
        store = SessionStore(key)
        data = store._session
        if store.session_key is not None:
            found[key] = number_of(data)
    assert len(found) <= 1, f"{session}: it is there under two keys"
    number = next(iter(found.values()), None)
    allowed: set[int | None] = {session.number}
    if session.doubt == "modify":
        allowed.add((session.number or 0) + 1)
    elif session.doubt == "create":
        allowed.add(1)
    elif session.doubt == "delete":
        allowed.add(None)
    assert number in allowed, f"{session}: {number} was read back"
    if session.doubt != "cycle" and number is not None:
        assert list(found) == session.keys[-1:], f"{session}: it is there under another key"
    session.keys, session.number, session.doubt = list(found), number, ""


def read_until_told(stop: int, report: int) -> None:
    """Read all sessions again and again, and report every fault."""
    log, reads, wrong = Log(), 0, ""
    storage = SessionStore.get_storage()
    try:
        while not select.select([stop], [], [], 0)[0]:
            for session_id in storage.ids():
                for _ in range(3):
                    session = storage.get_session(session_id, 60)
                    if session is not None:
                        number_of(session)  # type: ignore[arg-type]
                        reads += 1
    except BaseException as error:
        wrong = repr(error)
    os.write(report, json.dumps([reads, wrong, log.lines[:5]]).encode())


@dataclass
class Writer:
    pid: int
    pipe: int
    dies: float
    sessions: list[Session]
    heard: bytes = b""


def fork(run: Callable[[], None], close: list[int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        for fd in close:
            os.close(fd)
        run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def kill_writers_at_random(parent: Parent, seed: int) -> None:
    chance, log = random.Random(seed), Log()
    (stopped, stop), (report, reported) = os.pipe(), os.pipe()
    reader = fork(lambda: read_until_told(stopped, reported), [stop, report])
    os.close(stopped)
    os.close(reported)
    writers: list[Writer] = []
    kills = acknowledged = 0
    doubts: set[str] = set()

    def start(sessions: list[Session]) -> None:
        pipe, theirs = os.pipe()
        name = f"{seed}/{kills}/{len(writers)}"
        pid = fork(lambda: write_until_killed(theirs, name, sessions), [pipe, stop, report, *(w.pipe for w in writers)])
        os.close(theirs)
        writers.append(Writer(pid, pipe, time.monotonic() + chance.uniform(0, LIFETIME), sessions))

    for _ in range(WRITERS):
        start([Session() for _ in range(SESSIONS)])
    while writers:
        first = min(writers, key=lambda writer: writer.dies)
        left = first.dies - time.monotonic()
        for pipe in select.select([writer.pipe for writer in writers], [], [], max(left, 0))[0]:
            writer = next(writer for writer in writers if writer.pipe == pipe)
            writer.heard += (heard := os.read(pipe, 1 << 20))
            assert heard, "a writer has ended without being killed"
        if first.dies > time.monotonic():
            continue
        os.kill(first.pid, signal.SIGKILL)
        os.waitpid(first.pid, 0)
        while heard := os.read(first.pipe, 1 << 20):
            first.heard += heard
        os.close(first.pipe)
        writers.remove(first)
        kills += 1
        acknowledged += hear(first.sessions, first.heard)
        for session in first.sessions:
            doubts.add(session.doubt)
            verify(session)
        if kills + len(writers) < KILLS:
            start(first.sessions)
    os.close(stop)
    reads, wrong, lines = json.loads(os.read(report, 1 << 20))
    os.waitpid(reader, 0)
    parent.say((kills, acknowledged, doubts, reads, wrong, lines + log.lines[:5]))


def test_acknowledged_changes_read_back_whole_whenever_their_writer_is_killed(tmp_path: Path) -> None:
    seed = int(os.environ.get("GSESSION_TEST_SEED") or random.randrange(10**9))
    print(f"GSESSION_TEST_SEED={seed} makes the same writers again")  # pytest shows this after a failure
    with Worker(tmp_path, kill_writers_at_random, seed) as killer:
        kills, acknowledged, doubts, reads, wrong, lines = killer.hear()
    assert not wrong, f"the reader: {wrong}"
    assert lines == [], "the engine took a session for damaged"
    assert kills >= 200
    assert acknowledged > kills
    assert reads > kills
    assert doubts >= {"", "modify", "cycle"}, f"the kills met nothing but {doubts}"


# At each call to the system.

CALLS = ["open", "write", "lseek", "ftruncate", "fsync", "close", "replace", "rename", "unlink", "mkdir", "makedirs"]
OLD, NEW = payload(1, 20_000), payload(2, 40_000)
ONE, OTHER = same_shard(2)


def killed_at(turn: int, operation: Callable[[], object]) -> bool:
    """Run `operation` in a process that kills itself at its `turn`-th call to the system; ``False`` if it finished.

    Odd turns kill before the call, even ones after it. A write of more than a page also gets a kill in its middle,
    because the kernel may stop there.
    """

    def run() -> None:
        turns = itertools.count(1)

        def step() -> None:
            if next(turns) == turn:
                os.kill(os.getpid(), signal.SIGKILL)

        def killing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                if name == "write" and len(args[1]) > 4096:
                    written = call(args[0], bytes(args[1])[: len(args[1]) // 2])
                    step()
                    return written
                step()
                result = call(*args, **kwargs)
                step()
                return result

            return wrapper

        for name in CALLS:
            setattr(os, name, killing(name, getattr(os, name)))
        fcntl.flock = killing("flock", fcntl.flock)
        operation()

    pid = fork(run, [])
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "it failed by itself"
    return False


def numbers(storage: file.FileStorage, *ids: str) -> list[int | None]:
    found = [storage.get_session(session_id, 60) for session_id in ids]
    return [None if session is None else number_of(session) for session in found]


def change(storage: file.FileStorage, data: dict[str, Any]) -> bool:
    held = storage.get_session(ONE, 60)
    assert held is not None
    held.update(data)
    return storage.apply(ONE, held, 60)


@dataclass
class Case:
    """One operation to kill at each call, and the allowed outcomes: of session ONE and session OTHER."""

    run: Callable[[file.FileStorage], object]
    outcomes: list[list[int | None]]
    before: Callable[[file.FileStorage], object] = lambda storage: storage.create(ONE, SessionMap(dict(OLD)), 60)


def make_expired(storage: file.FileStorage) -> None:
    storage.create(ONE, SessionMap(dict(OLD)), 60)
    storage.create(OTHER, SessionMap(dict(NEW)), -1)


def remove_shard(storage: file.FileStorage) -> None:
    storage.create(ONE, SessionMap(dict(OLD)), 60)
    shutil.rmtree(path_of(Path(settings.SESSION_FILE_PATH or ""), ONE).parent)


def grow_and_shrink(storage: file.FileStorage) -> None:
    storage.create(ONE, SessionMap(payload(0, 300_000)), 60)
    change(storage, OLD)


CASES = {
    "create": Case(
        lambda storage: storage.create(ONE, SessionMap(dict(NEW)), 60), [[None, None], [2, None]], lambda storage: None
    ),
    "create in a new folder": Case(
        lambda storage: storage.create(ONE, SessionMap(dict(NEW)), 60), [[None, None], [2, None]], remove_shard
    ),
    "create beside another": Case(
        lambda storage: storage.create(OTHER, SessionMap(dict(NEW)), 60), [[1, None], [1, 2]]
    ),
    "apply that grows": Case(lambda storage: change(storage, NEW), [[1, None], [2, None]]),
    "apply that shrinks": Case(lambda storage: change(storage, payload(2, 10)), [[1, None], [2, None]]),
    "apply that cuts the file": Case(lambda storage: change(storage, NEW), [[1, None], [2, None]], grow_and_shrink),
    "touch": Case(lambda storage: storage.update_ttl(ONE, 600), [[1, None]]),
    "move": Case(lambda storage: storage.move(ONE, OTHER, 600), [[1, None], [None, 1]]),
    "remove_all": Case(lambda storage: storage.remove_all(ONE), [[1, None], [None, None]]),
    "purge": Case(lambda storage: list(storage.purge(1)), [[1, None]], make_expired),
}


def kill_at_each_call(parent: Parent, name: str, fsync: bool) -> None:
    case, log = CASES[name], Log()
    for turn in itertools.count(1):
        storage = file.FileStorage(fsync=fsync)
        for session_id in (ONE, OTHER):
            storage.remove_all(session_id)
        case.before(storage)
        through = not killed_at(turn, partial(case.run, storage))
        found = numbers(storage, ONE, OTHER)
        assert found in case.outcomes, f"killed at step {turn}: {found}"
        if through:
            assert found == case.outcomes[-1], f"not killed: {found}"
        # Its locks are free and its leftovers disturb nobody. Otherwise this would hang.
        storage.create(ONE, SessionMap(dict(OLD)), 60)
        assert change(storage, payload(3, 50_000))
        assert storage.update_ttl(ONE, 60)
        assert numbers(storage, ONE) == [3]
        list(storage.purge(10))
        storage.remove_all(OTHER)
        assert storage.move(ONE, OTHER, 60)
        assert numbers(storage, ONE, OTHER) == [None, 3]
        if through:
            parent.say((turn - 1, log.lines))
            return


@pytest.mark.parametrize("fsync", [False, True], ids=["", "fsync"])
@pytest.mark.parametrize("name", CASES)
def test_a_kill_at_any_call_leaves_the_previous_session_or_the_new_one(tmp_path: Path, name: str, fsync: bool) -> None:
    with Worker(tmp_path, kill_at_each_call, name, fsync) as killer:
        kills, lines = killer.hear()
    assert kills >= 8
    assert lines == []


# What a dead process leaves behind.


def die_with_the_lock(parent: Parent, path: str) -> None:
    with FileLock(path):
        parent.say("held")
        parent.hear()


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[file.FileStorage]:
    with engine("file", tmp_path) as store_class:
        found = store_class.get_storage()
        assert isinstance(found, file.FileStorage)
        yield found


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, storage: file.FileStorage) -> None:
    storage.create(ONE, SessionMap({"key": 1}), 60)
    lock = path_of(tmp_path, ONE).parent / ".lock"
    with Worker(tmp_path, die_with_the_lock, str(lock)) as holder:
        assert holder.hear() == "held"
        done = threading.Event()

        def touch() -> None:
            storage.update_ttl(ONE, 60)
            done.set()

        thread = threading.Thread(target=touch, daemon=True)
        thread.start()
        holder.kill()
        assert done.wait(TIMEOUT), "the lock was not released"
        thread.join(TIMEOUT)


def test_the_next_writer_reuses_the_half_written_file_of_a_killed_one(
    tmp_path: Path, storage: file.FileStorage
) -> None:
    storage.create(ONE, SessionMap({"key": 1}), 60)
    folder = path_of(tmp_path, ONE).parent
    files = sorted(folder.iterdir())
    (folder / ".new").write_bytes(b"half a session" * 1000)
    assert storage.create(OTHER, SessionMap({"key": 2}), 60)
    found = storage.get_session(OTHER, 60)
    assert found is not None
    assert dict(found) == {"key": 2}
    assert sorted(folder.iterdir()) == sorted([*files, folder / OTHER])
