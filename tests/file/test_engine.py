"""The file engine: permissions, purging, locking, an unusable folder, a full disk, fsync, and many sessions."""

import ctypes
import errno
import getpass
import hashlib
import itertools
import os
import pwd
import random
import resource
import shutil
import signal
import stat
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.conf import settings
from django.core.files import locks
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.test.utils import override_settings
from django.urls import path as url

from gsession_django import SessionMap, SessionStore, StorageUnavailable
from gsession_django.backends import file
from gsession_django.file import folder as session_folder
from gsession_django.file.session_file import HEADER_SIZE, FileLock, SessionFile, write_new
from gsession_django.serializers import DecodeError
from tests.support.clock import moved_clock
from tests.support.engines import engine, id_of, new_session, path_of, same_shard, stored
from tests.support.processes import TIMEOUT, Parent, Worker, let_them_meet, promised, workers

pytestmark = pytest.mark.once

ONE, OTHER, THIRD = same_shard(3)
ELSEWHERE, NOWHERE = (hashlib.sha256(name).hexdigest() for name in (b"in another shard", b"in a third"))
MEGABYTE = 1_000_000


@pytest.fixture
def store_class(tmp_path: Path) -> Iterator[type[SessionStore]]:
    with engine("file", tmp_path / "sessions") as found:
        (tmp_path / "sessions").mkdir()
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
def storage(store_class: type[SessionStore]) -> file.FileStorage:
    return storage_of(store_class)


def storage_of(store_class: type[SessionStore]) -> file.FileStorage:
    found = store_class.get_storage()
    assert isinstance(found, file.FileStorage)
    return found


def make(storage: file.FileStorage, session_id: str = ONE, ttl: int = 60, **data: Any) -> None:
    assert storage.create(session_id, SessionMap(data), ttl)


def data_of(storage: file.FileStorage, session_id: str = ONE) -> dict[str, Any] | None:
    found = storage.get_session(session_id, 60)
    return None if found is None else dict(found)


def held(storage: file.FileStorage, session_id: str = ONE, **changes: Any) -> SessionMap:
    """Return a session as a request holds it after these changes."""
    found = storage.get_session(session_id, 60)
    assert found is not None
    found.update(changes)
    return found


# Who may read it.


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_files_are_for_the_user_alone_whatever_the_umask(
    store_class: type[SessionStore], folder: Path, mask: int
) -> None:
    with umask(mask):
        store = store_class(new_session(store_class, {"key": 1}))
        store["key"] = "x" * 100_000
        store.save()
        store.cycle_key()
        store.save()
        store.save()
        store_class.clear_expired()
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    assert len(modes) >= 3
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}


def test_a_folder_that_the_site_gave_keeps_its_permissions(store_class: type[SessionStore], folder: Path) -> None:
    folder.chmod(0o750)
    new_session(store_class, {"key": 1})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


# Who may write to it.


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o702, 0o777, 0o2775])
def test_a_folder_that_others_can_write_to_is_refused(store_class: type[SessionStore], folder: Path, mode: int) -> None:
    folder.chmod(mode)
    for operation in operations_on(store_class, "0123456789abcdef").values():
        with pytest.raises(StorageUnavailable, match=rf"its mode is {mode:o}.*nobody else can write to it"):
            operation()
    assert list(folder.iterdir()) == []
    folder.chmod(0o755)
    assert stored(store_class, new_session(store_class, {"key": 1})) == {"key": 1}


def test_a_folder_of_another_user_is_refused(
    store_class: type[SessionStore], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = folder.stat().st_uid or 12345
    if os.geteuid() == 0:
        os.chown(folder, owner, -1)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(StorageUnavailable, match=f"it belongs to the user {owner}, and this process runs as the user"):
        new_session(store_class, {"key": 1})
    assert list(folder.iterdir()) == []


def somebody_makes(folder: Path, kind: str, elsewhere: Path) -> None:
    elsewhere.mkdir(0o700)
    if kind == "a symlink":
        folder.symlink_to(elsewhere)
    else:
        folder.mkdir(0o700)
        folder.chmod(0o777)


@pytest.mark.parametrize("kind", ["a symlink", "a folder that is open to others"])
def test_in_a_folder_with_a_sticky_bit_nothing_is_stored_where_others_were_first(
    store_class: type[SessionStore], storage: file.FileStorage, folder: Path, tmp_path: Path, kind: str
) -> None:
    folder.chmod(0o1777)  # as /tmp, and as a new tmpfs
    make(storage, ONE, key=1)
    shard = path_of(folder, ONE).parent
    assert data_of(storage) == {"key": 1}
    somebody_makes(folder / "users", kind, tmp_path / "elsewhere")
    with pytest.raises(StorageUnavailable, match="users' is open to others"):
        storage.add_to_user("5", ONE, 60)
    shard.rename(tmp_path / "away")
    (tmp_path / "elsewhere").rmdir()
    somebody_makes(shard, kind, tmp_path / "elsewhere")
    operations: list[Callable[[], Any]] = [
        lambda: storage.apply(ONE, SessionMap({"key": 2}), 60),
        lambda: storage.create(ONE, SessionMap({"key": 2}), 60),
        lambda: list(storage.purge(10)),
    ]
    for operation in operations:
        with pytest.raises(StorageUnavailable, match=f"{shard.name}' is open to others"):
            operation()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert list(shard.iterdir()) == []


# The header.


def spoil_the_body(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:HEADER_SIZE] + bytes(len(data) - HEADER_SIZE))


def test_the_expiry_is_read_without_the_session(storage: file.FileStorage, folder: Path) -> None:
    make(storage, ONE, key="x" * 100)
    make(storage, OTHER, ttl=-1, key="x" * 100)
    for session_id in (ONE, OTHER):
        spoil_the_body(path_of(folder, session_id))
    assert storage.exists(ONE)
    assert list(storage.ids()) == [ONE]
    assert sum(storage.purge(10, dry_run=True)) == 1
    assert sum(storage.purge(10)) == 1
    with pytest.raises(DecodeError):
        data_of(storage, ONE)
    assert path_of(folder, ONE).exists()


def test_a_touch_writes_the_header_alone(storage: file.FileStorage, folder: Path) -> None:
    make(storage, ONE, key="x" * 100_000)
    body = path_of(folder, ONE).read_bytes()[HEADER_SIZE:]
    real_write = os.write
    written: list[int] = []

    def write(fd: int, data: Any) -> int:
        written.append(len(data))
        return real_write(fd, data)

    with mock.patch.object(os, "write", write):
        assert storage.update_ttl(ONE, 600)
    assert written == [HEADER_SIZE]
    assert path_of(folder, ONE).read_bytes()[HEADER_SIZE:] == body


# Readers beside writers.


def test_a_session_that_is_written_twice_while_it_is_read_is_read_whole(
    storage: file.FileStorage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(storage, ONE, text="a" * 50_000)
    read_body, writes = SessionFile.body, iter("bc")

    def body(self: SessionFile) -> bytes:
        for letter in writes:
            with monkeypatch.context() as patch:
                patch.setattr(SessionFile, "body", read_body)
                assert storage.apply(ONE, held(storage, text=letter * 50_000), 60)
        return read_body(self)

    monkeypatch.setattr(SessionFile, "body", body)
    assert promised(data_of, storage).result(20) == {"text": "c" * 50_000}
    assert caplog.records == []


def test_a_session_whose_file_is_cut_while_it_is_read_is_read_whole(
    storage: file.FileStorage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(storage, ONE, text="a" * MEGABYTE)
    read_body, writes = SessionFile.body, iter("bc")

    def body(self: SessionFile) -> bytes:
        for letter in writes:
            with monkeypatch.context() as patch:
                patch.setattr(SessionFile, "body", read_body)
                assert storage.apply(ONE, held(storage, text=letter), 60)
        return read_body(self)

    monkeypatch.setattr(SessionFile, "body", body)
    assert promised(data_of, storage).result(20) == {"text": "c"}
    assert caplog.records == []


def test_a_session_that_is_removed_during_a_read_is_read_whole_or_is_gone(
    storage: file.FileStorage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(storage, ONE, text="a" * 50_000)
    read_body = SessionFile.body

    def body(self: SessionFile) -> bytes:
        storage.remove_all(ONE)
        return read_body(self)

    monkeypatch.setattr(SessionFile, "body", body)
    assert promised(data_of, storage).result(20) in (None, {"text": "a" * 50_000})
    assert caplog.records == []
    assert data_of(storage) is None


# Purging.


def expired_in_one_shard(storage: file.FileStorage, count: int = 2) -> list[str]:
    """Store expired sessions, and return them in the order in which a purge removes them."""
    ids = same_shard(count)
    for session_id in ids:
        make(storage, session_id, ttl=10, key=1)
    return [name for name in os.listdir(path_of(Path(settings.SESSION_FILE_PATH or ""), ids[0]).parent) if name in ids]


def test_a_session_renewed_between_two_steps_of_a_purge_is_not_removed(storage: file.FileStorage) -> None:
    with moved_clock() as clock:
        first, second = expired_in_one_shard(storage)
        clock.offset = 100
        steps = storage.purge(1)
        assert next(steps) == 1
        clock.offset = 0  # a touch began before the session expired, and ends only now
        assert storage.update_ttl(second, 1000)
        clock.offset = 100
        assert sum(steps) == 0
        assert data_of(storage, second) == {"key": 1}
        assert data_of(storage, first) is None


def test_a_session_created_again_between_two_steps_of_a_purge_is_not_removed(storage: file.FileStorage) -> None:
    with moved_clock() as clock:
        _, second = expired_in_one_shard(storage)
        clock.offset = 100
        steps = storage.purge(1)
        assert next(steps) == 1
        make(storage, second, new=1)
        assert sum(steps) == 0
        assert data_of(storage, second) == {"new": 1}


def test_a_session_that_is_removed_between_two_steps_of_a_purge_causes_no_error(storage: file.FileStorage) -> None:
    with moved_clock() as clock:
        _, second, third = expired_in_one_shard(storage, 3)
        clock.offset = 100
        steps = storage.purge(1)
        assert next(steps) == 1
        storage.remove_all(second)  # a visitor signs out, or another purge is faster
        assert sum(steps) == 1
        assert data_of(storage, third) is None


def test_two_purges_at_once_remove_each_session_once(storage: file.FileStorage, folder: Path) -> None:
    for number in range(100):
        make(storage, f"{number:064x}", ttl=-1)
    one, other = storage.purge(1), storage.purge(1)
    removed = 0
    for step in one:
        removed += step + next(other, 0)
    assert removed + sum(other) == 100
    assert list(folder.glob("*/[0-9a-f]*")) == []


def test_a_purge_holds_no_lock_between_two_steps(storage: file.FileStorage) -> None:
    with moved_clock() as clock:
        expired_in_one_shard(storage)
        clock.offset = 100
        steps = storage.purge(1)
        next(steps)
        assert promised(storage.create, THIRD, SessionMap({}), 60).result(TIMEOUT)


def test_a_purge_leaves_files_of_others_alone(storage: file.FileStorage, folder: Path) -> None:
    make(storage, ttl=-1)
    shard = path_of(folder, ONE).parent
    others = [folder / "README", folder / "other" / "file", folder / "deeper" / "00" / "file", shard / "Notes.TXT"]
    for path in others:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("not ours")
    assert sum(storage.purge(10)) == 1
    assert [path.read_text() for path in others] == ["not ours"] * 4


def purge_until_told(parent: Parent) -> None:
    storage = storage_of(file.SessionStore)
    parent.say("ready")
    removed = 0
    while not parent.heard():
        removed += sum(storage.purge(5))
    parent.say(removed)


def test_a_session_that_is_touched_as_it_expires_is_not_purged_by_another_process(
    storage: file.FileStorage, folder: Path
) -> None:
    ids = same_shard(400)
    for session_id in ids:
        make(storage, session_id, key=1)
    start = time.time() + 0.05
    for number, session_id in enumerate(ids):  # they expire one after another, a millisecond apart
        with SessionFile(str(path_of(folder, session_id)), writable=True) as session_file:
            session_file.renew(start + number / 1000)
    with Worker(folder, purge_until_told) as purger:
        assert purger.hear() == "ready"
        renewed = []
        for number, session_id in enumerate(ids):
            while time.time() < start + number / 1000 - 0.0002:
                pass
            if storage.update_ttl(session_id, 60):
                renewed.append(session_id)
        purger.say("enough")
        purger.hear()
    assert [session_id for session_id in renewed if data_of(storage, session_id) != {"key": 1}] == []
    assert sorted(storage.ids()) == sorted(renewed)


# The lock of a shard.


def hold(parent: Parent, folder: str) -> None:
    """Take the lock of a shard, change its sessions as the test orders, and release it."""
    with FileLock(f"{folder}/.lock"):
        parent.say("held")
        order, session_id = parent.hear()
        path = f"{folder}/{session_id}"
        if order == "remove":
            os.unlink(path)
        elif order == "renew":
            with SessionFile(path, writable=True) as session_file:
                session_file.renew(time.time() + 600)
        elif order == "create":
            write_new(path, f"{folder}/.new", b'{"theirs": 1}', time.time() + 600)


@contextmanager
def held_elsewhere(folder: Path, waiting: threading.Event) -> Iterator[Worker]:
    """Let another process hold the lock of ONE's shard, and set `waiting` when this process is about to wait for it."""
    real_lock = locks.lock

    def lock(*args: Any) -> bool:
        waiting.set()
        return real_lock(*args)

    with Worker(folder, hold, str(path_of(folder, ONE).parent)) as holder:
        assert holder.hear() == "held"
        with mock.patch.object(locks, "lock", lock):
            yield holder


Operation = Callable[[file.FileStorage], Any]


@pytest.mark.parametrize(
    ("operation", "order", "session_id", "result"),
    [
        pytest.param(lambda storage: storage.update_ttl(ONE, 600), "remove", ONE, False, id="touch"),
        pytest.param(lambda storage: storage.create(OTHER, SessionMap({}), 60), "create", OTHER, False, id="create"),
        pytest.param(lambda storage: storage.move(ONE, OTHER, 60), "remove", ONE, False, id="move to the same shard"),
        pytest.param(lambda storage: storage.move(ONE, NOWHERE, 60), "remove", ONE, False, id="move"),
        pytest.param(lambda storage: storage.move(ELSEWHERE, OTHER, 60), "create", OTHER, False, id="move into"),
        pytest.param(lambda storage: sum(storage.purge(10)), "renew", THIRD, 0, id="purge"),
        pytest.param(lambda storage: storage.remove_all(OTHER), "create", OTHER, None, id="remove_all"),
    ],
)
def test_it_waits_for_the_lock_that_another_process_holds(
    storage: file.FileStorage, folder: Path, operation: Operation, order: str, session_id: str, result: Any
) -> None:
    make(storage, ONE)
    make(storage, THIRD, ttl=-1)
    make(storage, ELSEWHERE)
    waiting = threading.Event()
    with held_elsewhere(folder, waiting) as holder:
        future = promised(operation, storage)
        assert waiting.wait(20), "it takes no lock"
        holder.say((order, session_id))  # the operation must see the result, because its turn comes later
        assert future.result(TIMEOUT) == result


def test_a_save_waits_for_the_lock_that_another_process_holds(storage: file.FileStorage, folder: Path) -> None:
    make(storage, ONE, key=1)
    session, waiting = held(storage, key=2), threading.Event()
    with held_elsewhere(folder, waiting) as holder:
        future = promised(storage.apply, ONE, session, 60)
        assert waiting.wait(20), "it takes no lock"
        holder.say(("remove", ONE))
        assert future.result(TIMEOUT) is False
    assert data_of(storage) is None


@pytest.mark.parametrize("operation", ["touch", "save", "purge"])
def test_it_goes_on_when_the_process_that_holds_the_lock_is_killed(
    storage: file.FileStorage, folder: Path, operation: str
) -> None:
    make(storage, ONE, key=1)
    make(storage, OTHER, ttl=-1)
    operations: dict[str, Callable[[], Any]] = {
        "touch": lambda: storage.update_ttl(ONE, 600),
        "save": lambda: storage.apply(ONE, held(storage, key=2), 60),
        "purge": lambda: sum(storage.purge(10)),
    }
    waiting = threading.Event()
    with held_elsewhere(folder, waiting) as holder:
        future = promised(operations[operation])
        assert waiting.wait(20), "it takes no lock"
        assert not future.done()
        holder.kill()
        assert future.result(TIMEOUT) == 1


def test_a_reader_takes_no_lock(storage: file.FileStorage, folder: Path) -> None:
    make(storage, ONE, key=1)
    waiting = threading.Event()
    with held_elsewhere(folder, waiting):
        assert promised(data_of, storage).result(TIMEOUT) == {"key": 1}
        assert promised(storage.exists, ONE).result(TIMEOUT) is True
    assert not waiting.is_set()


WANDERERS = [f"{number:064x}" for number in range(8)]


def wander(parent: Parent, number: int) -> None:
    chance, storage = random.Random(number), storage_of(file.SessionStore)
    parent.meet()
    for _ in range(300):
        old, new = chance.sample(WANDERERS, 2)
        storage.move(old, new, 60)
    parent.say("done")


def test_moves_that_cross_do_not_wait_for_each_other(storage: file.FileStorage, folder: Path) -> None:
    make(storage, WANDERERS[0], key=1)
    make(storage, WANDERERS[1], key=2)
    with workers(folder, 4, wander) as those:
        let_them_meet(those)
        assert [worker.hear(timeout=30) for worker in those] == ["done"] * 4
    assert sorted((data_of(storage, session_id) or {})["key"] for session_id in storage.ids()) == [1, 2]


# A folder that cannot be used is not an empty one.


def operations_on(store_class: type[SessionStore], key: str) -> dict[str, Callable[[], Any]]:
    """Return every operation of a request, or a command, on a stored session."""
    storage = storage_of(store_class)
    session_id = id_of(store_class, key)

    def save() -> None:
        store = store_class()
        store["key"] = 2
        store.save()

    return {
        "load": lambda: store_class(key).get("key"),
        "exists": lambda: store_class().exists(key),
        "create": save,
        "touch": lambda: storage.update_ttl(session_id, 60),
        "save": lambda: storage.apply(session_id, SessionMap({"key": 2}), 60),
        "move": lambda: storage.move(session_id, ELSEWHERE, 60),
        "delete": lambda: store_class(key).delete(),
        "purge": store_class.clear_expired,
        "ids": lambda: list(storage.ids()),
    }


OPERATIONS = ["load", "exists", "create", "touch", "save", "move", "delete", "purge", "ids"]


@pytest.mark.parametrize("since", ["from the beginning", "at run time"])
@pytest.mark.parametrize("instead", ["nothing", "a file", "a symlink to nothing"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_missing_folder_is_unavailable_and_not_empty(
    tmp_path: Path, folder: Path, name: str, instead: str, since: str
) -> None:
    folder.mkdir()
    with engine("file", folder) as store_class:
        key = new_session(store_class, {"key": 1})
    with engine("file", folder) as store_class:
        if since == "at run time":
            assert stored(store_class, key) == {"key": 1}
        folder.rename(tmp_path / "away")
        if instead == "a file":
            folder.write_text("not a folder")
        elif instead == "a symlink to nothing":
            folder.symlink_to(tmp_path / "nothing")
        with pytest.raises(StorageUnavailable, match="SESSION_FILE_PATH"):
            operations_on(store_class, key)[name]()
        if instead == "nothing":
            assert not folder.exists(), "somebody may mount a disk there again"
        else:
            folder.unlink()
        (tmp_path / "away").rename(folder)
        assert stored(store_class, key) == {"key": 1}


def test_a_senseless_path_is_unavailable() -> None:
    for path in ("", "/dev/null", "no/such/folder"):
        with engine("file", path) as store_class, pytest.raises(StorageUnavailable, match="SESSION_FILE_PATH"):
            new_session(store_class, {"key": 1})


def become_nobody() -> None:
    """Give up root's rights, because root ignores permissions. For any other user, do nothing."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def without_permission(parent: Parent, folder: str, mode: int) -> None:
    os.chdir(folder)
    with override_settings(SESSION_FILE_PATH="."):
        store_class = file.SessionStore
        # Everything that Python imports late is imported by now.
        key, old = (new_session(store_class, {"key": 1}) for _ in range(2))
        operations_on(store_class, old)["load"]()
        with SessionFile(str(path_of(Path(), id_of(store_class, old))), writable=True) as session_file:
            session_file.renew(0)
        for path in [Path(), *Path().rglob("*")]:
            if os.geteuid() == 0:
                os.chown(path, 65534, 65534)
        become_nobody()
        modes = {path: path.stat().st_mode for path in Path().rglob("*")}
        for path in sorted(modes, reverse=True):
            path.chmod(modes[path] & mode)
        endings = {}
        for name, operation in operations_on(store_class, key).items():
            try:
                operation()
                endings[name] = "done"
            except BaseException as error:
                endings[name] = type(error).__name__
        for path in sorted(modes):
            path.chmod(modes[path])
        parent.say((endings, stored(store_class, key)))


@pytest.mark.parametrize(
    ("mode", "done"), [(0o555, {"load", "exists", "ids"}), (0o000, set())], ids=["not writable", "not readable"]
)
def test_a_folder_without_permission_is_unavailable_and_its_sessions_stay(
    folder: Path, mode: int, done: set[str]
) -> None:
    folder.mkdir()
    with Worker(folder, without_permission, str(folder), mode) as worker:
        endings, left = worker.hear()
    # The shard of a new session may not exist yet, and then the engine creates it.
    endings.pop("create")
    assert endings == {name: "done" if name in done else "StorageUnavailable" for name in endings}
    assert left == {"key": 1}


def view(request: HttpRequest) -> HttpResponse:
    request.session["visits"] = request.session.get("visits", 0) + 1
    return HttpResponse(str(request.session["visits"]))


urlpatterns = [url("", view)]


@pytest.fixture
def client() -> Iterator[Client]:
    with override_settings(
        ROOT_URLCONF=__name__, MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"], ALLOWED_HOSTS=["*"]
    ):
        yield Client(raise_request_exception=False)


def test_an_outage_logs_nobody_out(
    store_class: type[SessionStore], tmp_path: Path, folder: Path, client: Client
) -> None:
    assert client.get("/").content == b"1"
    key = client.cookies["sessionid"].value
    folder.rename(tmp_path / "away")
    response = client.get("/")
    assert response.status_code == 500
    assert "sessionid" not in response.cookies
    (tmp_path / "away").rename(folder)
    assert client.get("/").content == b"2"
    assert client.cookies["sessionid"].value == key


# The default folder.


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the default folder, inside a temporary directory of this test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with override_settings(SESSION_FILE_PATH=None):
        yield Path(session_folder.default_path())


def test_the_default_folder_is_private_and_in_the_temporary_directory(tmp_path: Path, own_folder: Path) -> None:
    with umask(0):
        key = new_session(file.SessionStore, {"key": 1})
    assert own_folder.parent == tmp_path
    assert stat.S_IMODE(own_folder.stat().st_mode) == 0o700
    assert stored(file.SessionStore, key) == {"key": 1}


def test_the_default_folder_belongs_to_this_site_only_and_does_not_reveal_its_secret(own_folder: Path) -> None:
    with override_settings(SECRET_KEY="another site's"):
        assert session_folder.default_path() != str(own_folder)
        assert "another" not in session_folder.default_path()
    assert session_folder.default_path() == str(own_folder)


def test_the_default_folder_belongs_to_this_user_only(own_folder: Path) -> None:
    with (
        mock.patch.object(os, "geteuid", return_value=54321),
        mock.patch.object(getpass, "getuser", return_value="else"),
    ):
        assert session_folder.default_path() != str(own_folder)


def test_a_user_without_a_name_has_a_default_folder(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):  # as in a container that runs under an arbitrary uid
        monkeypatch.delenv(name, raising=False)
    with mock.patch.object(pwd, "getpwuid", side_effect=KeyError("getpwuid(): uid not found: 54321")):
        key = new_session(file.SessionStore, {"key": 1})
        assert stored(file.SessionStore, key) == {"key": 1}


def test_a_default_folder_that_is_removed_at_run_time_is_created_again(own_folder: Path) -> None:
    key = new_session(file.SessionStore, {"key": 1})
    own_folder.rename(own_folder.with_name("cleaned up"))  # as programs that clean up /tmp do
    assert stored(file.SessionStore, key) is None
    assert stored(file.SessionStore, new_session(file.SessionStore, {"key": 2})) == {"key": 2}
    assert stat.S_IMODE(own_folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("trap", "since"),
    [
        *itertools.product(["a symlink", "a symlink to nothing", "a file"], ["from the beginning", "at run time"]),
        *itertools.product(["open to others", "somebody else's"], ["from the beginning", "at run time"]),
    ],
)
def test_a_default_folder_that_may_be_a_trap_is_refused(
    tmp_path: Path, own_folder: Path, trap: str, since: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if since == "at run time":
        new_session(file.SessionStore, {"key": 1})
        own_folder.rename(tmp_path / "away")
    private = tmp_path / "private"
    private.mkdir(0o700)
    if trap == "a symlink":
        own_folder.symlink_to(private)
    elif trap == "a symlink to nothing":
        own_folder.symlink_to(tmp_path / "nothing")
    elif trap == "a file":
        own_folder.write_text("not a folder")
    else:
        own_folder.mkdir(0o700)
        if trap == "open to others":
            own_folder.chmod(0o701)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: own_folder.lstat().st_uid + 1)
            monkeypatch.setattr(session_folder, "default_path", lambda: str(own_folder))
    with pytest.raises(StorageUnavailable):
        stored(file.SessionStore, "0123456789abcdef")
    with pytest.raises(StorageUnavailable):
        new_session(file.SessionStore, {"key": 1})
    assert list(private.iterdir()) == []
    assert not (tmp_path / "nothing").exists()


def test_nothing_is_stored_in_a_default_folder_that_somebody_else_has_made_again(
    tmp_path: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if the same sessions are in it."""
    key = new_session(file.SessionStore, {"key": 1})
    storage, session_id = storage_of(file.SessionStore), id_of(file.SessionStore, key)
    make(storage, ONE, key=1)
    request = held(storage, ONE, key=2)
    own_folder.rename(tmp_path / "cleaned up")
    shutil.copytree(tmp_path / "cleaned up", own_folder)
    before = path_of(own_folder, ONE).read_bytes()
    monkeypatch.setattr(os, "geteuid", lambda: own_folder.lstat().st_uid + 1)
    operations: list[Callable[[], Any]] = [
        lambda: storage.apply(ONE, request, 60),
        lambda: storage.update_ttl(ONE, 600),
        lambda: storage.move(ONE, OTHER, 60),
        lambda: storage.remove_all(session_id),
        lambda: storage.add_to_user("5", ONE, 60),
        lambda: storage.sessions_of("5"),
        lambda: storage.lock(ONE, "token", 5),
        lambda: list(storage.purge(10)),
    ]
    for operation in operations:
        with pytest.raises(StorageUnavailable):
            operation()
    assert path_of(own_folder, ONE).read_bytes() == before


# A full disk.


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size`. It works like a full disk, for every user and platform."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_what_does_not_fit(parent: Parent, folder: str) -> None:
    store_class = file.SessionStore
    key = new_session(store_class, {"text": "a" * 10_000})
    store = store_class(key)
    store["text"] = "b" * MEGABYTE
    before = path_of(Path(folder), id_of(store_class, key)).stat().st_size
    with file_size_limit(50_000):
        with pytest.raises(StorageUnavailable) as raised:
            store.save()
        assert isinstance(raised.value.__cause__, OSError)
        assert raised.value.__cause__.errno in (errno.EFBIG, errno.ENOSPC)
        assert stored(store_class, key) == {"text": "a" * 10_000}
        with pytest.raises(StorageUnavailable):
            new_session(store_class, {"text": "b" * MEGABYTE})
        assert len(list(storage_of(store_class).ids())) == 1
        other = store_class(key)
        other["more"] = 1
        other.save()
        other.save()
        assert stored(store_class, key) == {"text": "a" * 10_000, "more": 1}
        assert new_session(store_class, {"text": "small"})
    store.save()
    assert stored(store_class, key) == {"text": "b" * MEGABYTE, "more": 1}
    parent.say(before)


def test_a_session_that_does_not_fit_on_the_disk_leaves_the_previous_one(folder: Path) -> None:
    folder.mkdir()
    with Worker(folder, save_what_does_not_fit, str(folder)) as worker:
        worker.hear()
        worker.wait()


def fail_to_save(parent: Parent, folder: str) -> None:
    store_class = file.SessionStore
    key = new_session(store_class, {"text": "a" * 10_000})
    store = store_class(key)
    store["text"] = "b" * MEGABYTE
    sizes = []
    for _ in range(2):
        sizes.append(sum(path.stat().st_size for path in Path(folder).glob("*/*")))
        with file_size_limit(50_000):
            for save in (store.save, lambda: new_session(store_class, {"text": "b" * MEGABYTE})):
                with pytest.raises(StorageUnavailable):
                    save()
    parent.say(sizes)


def test_a_session_that_does_not_fit_on_the_disk_takes_no_space_from_the_others(folder: Path) -> None:
    folder.mkdir()
    with Worker(folder, fail_to_save, str(folder)) as worker:
        before, after = worker.hear()
    assert after == before


def test_a_large_value_that_did_not_fit_can_be_removed_again(
    store_class: type[SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_session(store_class, {"key": 1})
    store, other = store_class(key), store_class(key)
    store["large"] = "x"
    other["other"] = 1
    other.save()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(StorageUnavailable):
            store.save()
    del store["large"]
    store["small"] = 1
    store.save()
    assert stored(store_class, key) == {"key": 1, "other": 1, "small": 1}


NEW_USER_AND_MOUNTS = 0x10000000 | 0x00020000


def fill_a_disk(parent: Parent, folder: str) -> None:
    """Mount a disk of 200 kB that only this process sees, and fill it. The disk goes with the process."""
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_USER_AND_MOUNTS):
        parent.say("this system allows no private mounts")
        return
    for name, text in (("setgroups", "deny"), ("gid_map", f"0 {gid} 1"), ("uid_map", f"0 {uid} 1")):
        Path("/proc/self", name).write_text(text)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=200k"):
        parent.say(f"cannot mount: {os.strerror(ctypes.get_errno())}")
        return
    store_class = file.SessionStore
    key, large = new_session(store_class, {"text": "a" * 10_000}), new_session(store_class, {"text": "a" * 10_000})
    filler = Path(folder, "filler")
    with filler.open("wb", buffering=0) as stream:
        while stream.tell() < MEGABYTE:
            try:
                stream.write(bytes(4096))
            except OSError:
                break
    assert filler.stat().st_size < 200_000
    grown = store_class(key)
    grown["text"] = "b" * 50_000
    for save in (grown.save, lambda: new_session(store_class, {"text": "b" * 50_000})):
        with pytest.raises(StorageUnavailable):
            save()
    assert stored(store_class, key) == {"text": "a" * 10_000}
    assert storage_of(store_class).update_ttl(id_of(store_class, key), 600)
    filler.unlink()
    grown.save()
    assert stored(store_class, key) == {"text": "b" * 50_000}
    store = store_class(large)
    store["text"] = "b" * MEGABYTE
    with pytest.raises(StorageUnavailable):
        store.save()
    assert stored(store_class, large) == {"text": "a" * 10_000}
    assert stored(store_class, new_session(store_class, {"text": "c" * 1000})) == {"text": "c" * 1000}
    parent.say("")


def test_a_really_full_disk_keeps_its_sessions_and_has_space_for_small_ones(folder: Path) -> None:
    folder.mkdir()
    with Worker(folder, fill_a_disk, str(folder)) as worker:
        if problem := worker.hear():
            pytest.skip(problem)


# The option fsync.


@contextmanager
def synced(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[list[str]]:
    """Yield the names of the synced files and folders, and the steps in between."""
    events: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "unlink", "write", "mkdir")}

    def fsync(fd: int) -> None:
        status = os.fstat(fd)
        found = next((path for path in [folder, *folder.glob("*")] if os.path.samestat(path.stat(), status)), None)
        events.append("file" if found is None else "root" if found == folder else found.name)
        real["fsync"](fd)

    def other(name: str) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            events.append(f"({name})")
            return real[name](*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        for name in real.keys() - {"fsync"}:
            patch.setattr(os, name, other(name))
        yield events


def test_with_fsync_the_disk_has_everything_stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    with engine("file", folder, fsync=True) as store_class:
        storage = storage_of(store_class)
        make(storage, OTHER)
        make(storage, ELSEWHERE)
        shard, elsewhere = (path_of(folder, session_id).parent.name for session_id in (OTHER, ELSEWHERE))
        with synced(monkeypatch, folder) as events:
            make(storage, ONE)
            assert events == ["(write)", "file", "(replace)", shard]
            events.clear()
            assert storage.apply(ONE, held(storage, key=1), 60)
            assert events == ["(write)", "file", "(write)", "file"]
            events.clear()
            assert storage.update_ttl(ONE, 60)
            assert events == ["(write)", "file"]
            events.clear()
            storage.remove_all(ELSEWHERE)
            assert events == ["(unlink)", elsewhere]
            events.clear()
            assert storage.move(ONE, ELSEWHERE, 60)
            renamed = events.index("(rename)")
            assert events[:renamed] == ["(write)", "file"]
            assert sorted(events[renamed + 1 : -2]) == sorted([shard, elsewhere])
            # Last, as the disk may not let go of the tag for the old name before it knows the new name.
            assert events[-2:] == ["(write)", "file"]


def test_with_fsync_the_disk_has_the_new_folder_of_a_session(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    with engine("file", folder, fsync=True) as store_class, synced(monkeypatch, folder) as events:
        make(storage_of(store_class), ONE)
        assert "root" in events, "a power cut may take the new folder, and the session in it"
        events.clear()
        assert storage_of(store_class).move(ONE, ELSEWHERE, 60)
        assert "root" in events


def test_without_fsync_nothing_waits_for_the_disk(
    storage: file.FileStorage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with synced(monkeypatch, folder) as events:
        make(storage, ONE)
        assert storage.apply(ONE, held(storage, key=1), 60)
        assert storage.update_ttl(ONE, 60)
        assert storage.move(ONE, ELSEWHERE, 60)
        storage.remove_all(ELSEWHERE)
    assert [event for event in events if not event.startswith("(")] == []


# Many sessions.


@pytest.mark.parametrize("hash_ids", [True, False])
def test_sessions_spread_evenly_over_256_folders(tmp_path: Path, hash_ids: bool) -> None:
    chance = random.Random(1)
    with engine("file", tmp_path, hash_ids=hash_ids) as store_class:
        storage = storage_of(store_class)
        for _ in range(2560):
            key = f"{chance.getrandbits(128):032x}"
            make(storage, id_of(store_class, key))
    counts = Counter(path.parent.name for path in tmp_path.glob("*/[0-9a-f]*"))
    assert len(counts) == 256
    assert max(counts.values()) <= 30


def test_a_session_whose_size_varies_does_not_make_its_file_grow(store_class: type[SessionStore], folder: Path) -> None:
    chance, key = random.Random(1), new_session(store_class, {"text": ""})
    path = path_of(folder, id_of(store_class, key))
    for _ in range(300):
        store = store_class(key)
        store["text"] = "x" * chance.randrange(20_000)
        store.save()
        assert path.stat().st_size <= 3 * 20_100
    assert stored(store_class, key) == {"text": store["text"]}


def test_a_session_that_was_a_megabyte_once_is_small_again(store_class: type[SessionStore], folder: Path) -> None:
    key = new_session(store_class, {"text": "x" * MEGABYTE})
    for number in range(2):
        store = store_class(key)
        store["text"] = number
        store.save()
    assert path_of(folder, id_of(store_class, key)).stat().st_size < 100_000
