"""Bad input: session keys, files, clocks and TTLs. Never an exception to the visitor, never another's session."""

import json
import logging
import os
import pickle
import random
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.backends.file import SessionStore as DjangoStore
from django.contrib.sessions.exceptions import SessionInterrupted
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client, RequestFactory
from django.test.utils import override_settings
from django.urls import path as url

from gsession_django import SessionMap, SessionStore, StorageUnavailable
from gsession_django.backends import file
from gsession_django.core.signing import tag_of
from gsession_django.file.session_file import HEADER_SIZE, Header, write_new
from gsession_django.serializers import DecodeError
from tests.support.clock import Clock, moved_clock
from tests.support.engines import ENGINES, engine, id_of, new_session, path_of, stored
from tests.support.processes import Parent, Worker

pytestmark = pytest.mark.once

LOG = "django.security.SuspiciousSession"
SECRET = {"secret": "the victim's"}


def storage_of(store_class: type[SessionStore]) -> file.FileStorage:
    found = store_class.get_storage()
    assert isinstance(found, file.FileStorage)
    return found


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOG]


# What views do.


def reads(request: HttpRequest) -> HttpResponse:
    return JsonResponse(dict(request.session.items()))


def writes(request: HttpRequest) -> HttpResponse:
    found = dict(request.session.items())
    request.session["visits"] = request.session.get("visits", 0) + 1
    return JsonResponse(found)


def cycles(request: HttpRequest) -> HttpResponse:
    found = dict(request.session.items())
    request.session.cycle_key()
    request.session["visits"] = 1
    return JsonResponse(found)


def flushes(request: HttpRequest) -> HttpResponse:
    found = dict(request.session.items())
    request.session.flush()
    return JsonResponse(found)


def flushes_at_once(request: HttpRequest) -> HttpResponse:
    request.session.flush()
    request.session["visits"] = 1
    return JsonResponse(dict(request.session.items()))


def clears_at_once(request: HttpRequest) -> HttpResponse:
    request.session.clear()
    request.session["visits"] = 1
    return JsonResponse(dict(request.session.items()))


def clears_and_cycles_at_once(request: HttpRequest) -> HttpResponse:
    request.session.clear()
    request.session.cycle_key()
    request.session["visits"] = 1
    return JsonResponse(dict(request.session.items()))


VIEWS = [reads, writes, cycles, flushes, flushes_at_once, clears_at_once, clears_and_cycles_at_once]
# These views change a session that they have not read. Without a session that is SessionInterrupted, a 400, as with
# Django's own engines.
BLIND = [clears_at_once, clears_and_cycles_at_once]

urlpatterns = [url(view.__name__, view) for view in VIEWS]


@pytest.fixture(autouse=True)
def site() -> Iterator[None]:
    with override_settings(
        ROOT_URLCONF=__name__, MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"], ALLOWED_HOSTS=["*"]
    ):
        yield


def visit(view: Callable[[HttpRequest], HttpResponse], key: str) -> HttpResponse | None:
    """Let a visitor open a view with this session key, as if it had come through the parser of cookies unchanged."""
    request = RequestFactory().get("/")
    request.COOKIES["sessionid"] = key
    try:
        response = SessionMiddleware(view)(request)
    except SessionInterrupted:
        assert view in BLIND
        return None
    assert isinstance(response, HttpResponse)
    return response


def outcome(response: HttpResponse) -> tuple[Any, str | None]:
    """Return the data that the view found, and the session key that the visitor gets."""
    assert response.status_code == 200
    cookie = response.cookies.get("sessionid")
    return json.loads(response.content), None if cookie is None or not cookie.value else cookie.value


# Session keys.


def keys_like(key: str) -> dict[str, str]:
    return {
        "empty": "",
        "a space": " ",
        "seven characters": "abcdef1",
        "10 kB": "a" * 10_240,
        "10 kB that ends like a session's": "a" * 10_240 + key,
        "a path": "../../etc/passwd",
        "an absolute path": "/etc/passwd",
        "a path that leads back": f"../{'0' * 8}/{key}",
        "backslashes": "..\\..\\windows\\win.ini",
        "dots": "........",
        "the lock": "00/.lock",
        "NUL": "abcdefgh\0",
        "an existing key and NUL": key + "\0",
        "unicode": "ключключключ",
        "unicode digits": "٠١٢٣٤٥٦٧٨٩",
        "a lone surrogate": "abcdefgh\ud800",
        "lone surrogates": "\udcff" * 32,
        "line breaks": "abcdefgh\r\nSet-Cookie: a=b",
        "an existing key and a line break": key + "\n",
        "an existing key in upper case": key.upper(),
        "an existing key with a suffix": key + "a",
        "an existing key with a dot": key + ".",
        "an existing key with a space": key + " ",
        "the beginning of an existing key": key[:-1],
        "a pattern": "*" * 32,
        "an unknown key": "0123456789abcdef" * 2,
        "an id": "0123456789abcdef" * 4,
        "format": "%s%s%s%s{0}{0}",
        "only hyphens": "-" * 32,
    }


KEYS = sorted(keys_like(""))


@pytest.fixture(params=[True, False], ids=["hashed ids", "plain ids"])
def hash_ids(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


def sessions_below(tmp_path: Path) -> Path:
    """Return a folder for sessions, some levels below the test's folder."""
    folder = tmp_path / "a" / "b" / "sessions"
    folder.mkdir(parents=True)
    return folder


def use_shard_of(tmp_path: Path, session_id: str) -> None:
    """Create the shard in which the file engine looks for an id, as after long use."""
    number = zlib.crc32(session_id.encode("utf-8", "surrogatepass")) & 255
    shard = tmp_path / "a" / "b" / "sessions" / f"{number:02x}"
    shard.mkdir(exist_ok=True)
    (shard / ".lock").touch()


@pytest.fixture(params=ENGINES)
def store_class(request: pytest.FixtureRequest, tmp_path: Path, hash_ids: bool) -> Iterator[type[SessionStore]]:
    with engine(request.param, sessions_below(tmp_path), hash_ids=hash_ids) as found:
        yield found


def outside(tmp_path: Path) -> dict[Path, bytes | None]:
    """Return all files around the folder of the sessions, and all in it that are not sessions."""
    sessions = tmp_path / "a" / "b" / "sessions"
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in [*tmp_path.rglob("*"), *sessions.parent.rglob("*")]
        if not path.is_relative_to(sessions) or (path.parent == sessions and len(path.name) != 2)
    }


@pytest.mark.parametrize("name", KEYS)
def test_an_invalid_session_key_opens_no_session_and_is_never_adopted(
    store_class: type[SessionStore], tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    victim = new_session(store_class, SECRET)
    key = keys_like(victim)[name]
    use_shard_of(tmp_path, key)
    before = outside(tmp_path)
    for view in VIEWS:
        response = visit(view, key)
        if response is not None:
            found, given = outcome(response)
            assert "secret" not in found
            assert given not in (key, victim)
            if given is not None:
                assert "secret" not in (stored(store_class, given) or {})
    assert stored(store_class, victim) == SECRET
    assert stored(store_class, key) is None
    assert not store_class().exists(key)
    store_class().delete(key)
    assert stored(store_class, victim) == SECRET
    assert outside(tmp_path) == before
    assert warnings_in(caplog) == []


# Spaces and line breaks at the end do not belong to a cookie: with them a visitor sends the key itself.
@pytest.mark.parametrize("name", [name for name in KEYS if keys_like("KEY")[name].strip() != "KEY"])
def test_a_cookie_header_without_a_session_key_is_answered_like_any_other(
    store_class: type[SessionStore], tmp_path: Path, name: str
) -> None:
    victim = new_session(store_class, SECRET)
    raw = keys_like(victim)[name].encode("utf-8", "surrogatepass").decode("latin-1")  # as WSGI has it
    use_shard_of(tmp_path, keys_like(victim)[name])
    before = outside(tmp_path)
    for view in VIEWS:
        client = Client(raise_request_exception=True)
        response = client.get(f"/{view.__name__}", HTTP_COOKIE=f"sessionid={raw}")
        assert response.status_code in ((200, 400) if view in BLIND else (200,))
        assert b"secret" not in response.content
        given = client.cookies["sessionid"].value if "sessionid" in client.cookies else ""
        assert given == "" or given not in (victim, raw)
    assert stored(store_class, victim) == SECRET
    assert outside(tmp_path) == before


def test_the_key_itself_still_opens_the_session(store_class: type[SessionStore]) -> None:
    key = new_session(store_class, SECRET)
    response = visit(reads, key)
    assert response is not None
    assert outcome(response) == (SECRET, None)


IDS = [
    "",
    "1",
    ".",
    "..",
    ".lock",
    ".new",
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "ключ" * 8,
    "A" * 64,
    "a b\n*?[c]",
]
IDS += ["\ud800" * 8, "x" * 10_000, "a/" * 20, "a" * 129, "\n", "abcdefgh\n"]


@pytest.mark.parametrize("session_id", IDS, ids=lambda session_id: ascii(session_id[:12]))
def test_an_impossible_id_is_an_unknown_session(
    store_class: type[SessionStore], tmp_path: Path, session_id: str
) -> None:
    storage = store_class.get_storage()
    (tmp_path / "a" / "b" / "etc").mkdir()
    write_new(str(tmp_path / "a" / "b" / "etc" / "passwd"), str(tmp_path / ".new"), b"{}", time.time() + 600)
    use_shard_of(tmp_path, session_id)
    known, before = id_of(store_class, new_session(store_class, SECRET)), outside(tmp_path)
    assert storage.get_session(session_id, 60) is None
    assert storage.exists(session_id) is False
    assert storage.update_ttl(session_id, 60) is False
    assert storage.apply(session_id, SessionMap({"key": 1}), 60) is False
    assert storage.move(session_id, "0" * 64, 60) is False
    storage.remove_all(session_id)
    assert list(storage.ids()) == [known]
    assert outside(tmp_path) == before


def test_an_id_that_cannot_be_a_file_name_is_refused_with_a_reason(tmp_path: Path) -> None:
    with engine("file", tmp_path, hash_ids=False) as store_class:
        for key in ("ABCDEFGHIJ", "a" * 129, "........", "a.b.c.d.e", "../../etc/passwd", "\ud800" * 8):
            with pytest.raises(ValueError, match="hash_ids"):
                store_class.get_storage().create(key, SessionMap({"key": 1}), 60)
    assert list(tmp_path.rglob("*")) == []


# Files.


@pytest.fixture
def file_store(tmp_path: Path) -> Iterator[type[SessionStore]]:
    with engine("file", sessions_below(tmp_path)) as found:
        yield found


def folder_of_sessions() -> Path:
    assert settings.SESSION_FILE_PATH is not None
    return Path(settings.SESSION_FILE_PATH)


def file_of(store_class: type[SessionStore], key: str) -> Path:
    return path_of(folder_of_sessions(), id_of(store_class, key))


def unreadable(operation: Callable[[], Any]) -> bool:
    """Return whether an operation reports an unreadable session."""
    try:
        operation()
    except DecodeError:
        return True
    return False


def assert_unreadable(store_class: type[SessionStore], key: str, caplog: pytest.LogCaptureFixture) -> None:
    """Check that a damaged file is an empty session for the visitor, stays as it is, and disturbs nobody."""
    caplog.clear()
    session_id, storage = id_of(store_class, key), storage_of(store_class)
    content = path_of(folder_of_sessions(), session_id).read_bytes()
    response = visit(reads, key)
    assert warnings_in(caplog), "nothing was logged"
    assert response is not None
    assert outcome(response) == ({}, None)
    assert response.cookies == {}
    response = visit(writes, key)
    assert response is not None
    found, given = outcome(response)
    assert found == {}
    assert given not in (None, key)
    assert stored(store_class, given) == {"visits": 1}
    assert path_of(folder_of_sessions(), session_id).read_bytes() == content
    assert unreadable(lambda: storage.get_session(session_id, 60))
    assert unreadable(lambda: storage.apply(session_id, SessionMap({"key": 1}), 60))
    # The header may be whole, so these may find a session. They must not fail.
    assert unreadable(lambda: storage.exists(session_id)) or storage.exists(session_id)
    assert unreadable(lambda: storage.update_ttl(session_id, 60)) or storage.update_ttl(session_id, 60)
    assert len(list(storage.ids())) >= 1
    assert sum(storage.purge(10)) >= 0
    # What the serializer cannot read may still be what this site has stored.
    if not unreadable(lambda: storage.move(session_id, "0" * 64, 60)) and storage.exists("0" * 64):
        assert unreadable(lambda: storage.get_session("0" * 64, 60))
    storage.remove_all(session_id)
    storage.remove_all("0" * 64)
    assert storage.create(session_id, SessionMap({"again": 1}), 60)
    assert stored(store_class, key) == {"again": 1}
    storage.remove_all(session_id)
    store_class().delete(given)


def test_a_file_cut_at_any_byte_is_left_alone(file_store: type[SessionStore], caplog: pytest.LogCaptureFixture) -> None:
    key = new_session(file_store, {"key": "value"})
    whole = file_of(file_store, key).read_bytes()
    for length in range(len(whole)):
        path = file_of(file_store, key)
        path.write_bytes(whole[:length])
        assert_unreadable(file_store, key, caplog)
        path.write_bytes(whole)
        assert stored(file_store, key) == {"key": "value"}


def test_a_file_with_any_bit_flipped_is_left_alone(
    file_store: type[SessionStore], caplog: pytest.LogCaptureFixture
) -> None:
    key = new_session(file_store, {"key": "value"})
    path = file_of(file_store, key)
    whole = path.read_bytes()
    session_id, storage = id_of(file_store, key), storage_of(file_store)
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert unreadable(lambda: storage.get_session(session_id, 60)), f"bit {bit}"
        assert unreadable(lambda: storage.apply(session_id, SessionMap({"key": 1}), 60)), f"bit {bit}"
        assert path.read_bytes() == flipped, f"bit {bit}"
        if bit % 37 == 0:
            assert_unreadable(file_store, key, caplog)


def test_a_flipped_bit_in_a_file_that_was_saved_often_gives_the_session_or_an_empty_one(
    file_store: type[SessionStore], caplog: pytest.LogCaptureFixture
) -> None:
    key = new_session(file_store, {"key": "a longer value"})
    for value in ("short", "longer again than that", "b"):
        store = file_store(key)
        store["key"] = value
        store.save()
    path = file_of(file_store, key)
    whole, lost = path.read_bytes(), 0
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        caplog.clear()
        found = stored(file_store, key)
        assert found in ({}, {"key": "b"})
        assert bool(warnings_in(caplog)) == (found == {})
        lost += found == {}
    assert lost == 8 * (HEADER_SIZE + len('{"key":"b"}'))


def django_session_file(data: dict[str, Any]) -> bytes:
    return DjangoStore().encode(data).encode()


def with_body(body: bytes, offset: int = HEADER_SIZE, length: int | None = None) -> Callable[[str], bytes]:
    """Return a function that returns the file of a session with this body, a correct header and a correct tag."""

    def content(session_id: str) -> bytes:
        tag = tag_of("file", session_id, body)
        header = Header(time.time() + 600, 1, offset, len(body) if length is None else length, tag, tag)
        return header.pack() + bytes(offset - HEADER_SIZE) + body

    return content


CONTENTS: dict[str, Callable[[str], bytes]] = {
    "nothing": lambda _: b"",
    "one byte": lambda _: b"G",
    "zeros": lambda _: bytes(4096),
    "ones": lambda _: b"\xff" * 4096,
    "JSON": lambda _: json.dumps({"key": "value", "padding": "x" * 100}).encode(),
    "pickle": lambda _: pickle.dumps({"key": "value", "padding": "x" * 100}),
    "Django's session file": lambda _: django_session_file({"key": "value"}),
    "random bytes": lambda _: random.Random(1).randbytes(5000),
    "the first bytes and then random ones": lambda _: b"GSF1" + random.Random(2).randbytes(5000),
    "a text": lambda _: b"GSF1\n" * 100,
    "a megabyte of nothing": lambda _: bytes(1_000_000),
    "a body that is not JSON": with_body(b"{'key': 1}"),
    "an empty body": with_body(b""),
    "a body of random bytes": with_body(random.Random(3).randbytes(100)),
    "a body in another encoding": with_body('{"ключ": 1}'.encode("utf-16")),
    "a body that is pickled": with_body(pickle.dumps({"key": "value"})),
    "a body that is a list": with_body(b'["key", "value"]'),
    "a body that is a list of pairs": with_body(b'[["key", "value"]]'),
    "a body that is an empty list": with_body(b"[]"),
    "a body that is a string": with_body(b'"key"'),
    "a body that is an empty string": with_body(b'""'),
    "a body that is a number": with_body(b"1"),
    "a body that is null": with_body(b"null"),
    "a body that is nested too deeply": with_body(b"[" * 100_000),
    "a body that ends too early": with_body(b'{"key": 1}', length=1000),
    "a body that begins beyond the end": with_body(b"", offset=2 * HEADER_SIZE, length=10_000),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_of_another_format_is_left_alone(
    file_store: type[SessionStore], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = new_session(file_store, {"key": "value"})
    file_of(file_store, key).write_bytes(CONTENTS[name](id_of(file_store, key)))
    assert_unreadable(file_store, key, caplog)


def test_a_request_that_holds_a_session_whose_file_is_damaged_meanwhile_stores_it_under_a_new_key(
    file_store: type[SessionStore],
) -> None:
    for content in CONTENTS.values():
        key = new_session(file_store, {"key": "value", "other": 1})
        store = file_store(key)
        store["key"] = "mine"
        path = file_of(file_store, key)
        path.write_bytes(damaged := content(id_of(file_store, key)))
        store.save()
        assert store.session_key != key
        assert stored(file_store, store.session_key) == {"key": "mine", "other": 1}
        assert path.read_bytes() == damaged


def test_a_session_stored_by_another_serializer_is_left_alone(
    file_store: type[SessionStore], caplog: pytest.LogCaptureFixture
) -> None:
    with override_settings(SESSION_SERIALIZER="tests.engines.test_bad_input.Reversed"):
        key = new_session(file_store, {"key": "value"})
        assert stored(file_store, key) == {"key": "value"}
    assert_unreadable(file_store, key, caplog)


class Reversed:
    """A serializer whose bytes no other serializer can read."""

    def dumps(self, obj: Any) -> bytes:
        return json.dumps(obj).encode()[::-1]

    def loads(self, data: bytes) -> Any:
        return json.loads(data[::-1])


def come_upon(parent: Parent, folder: str, key: str, kind: str) -> None:
    """Run every operation on a session whose file is not a regular file. It may hang, so it has its own process."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(LOG).addHandler(handler)
    logging.getLogger(LOG).propagate = False
    storage = storage_of(file.SessionStore)
    session_id = id_of(file.SessionStore, key)
    victim = new_session(file.SessionStore, SECRET)
    path = path_of(Path(folder), session_id)
    path.unlink()
    elsewhere = Path(folder).parent / "elsewhere"
    write_new(str(elsewhere), str(elsewhere) + ".new", json.dumps(SECRET).encode(), time.time() + 600)
    content = elsewhere.read_bytes()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a symlink to another session":
        path.symlink_to(path_of(Path(folder), id_of(file.SessionStore, victim)))
    elif kind == "a symlink to a file elsewhere":
        path.symlink_to(elsewhere)
    elif kind == "a symlink to nothing":
        path.symlink_to(Path(folder).parent / "nothing")
    elif kind == "a symlink to itself":
        path.symlink_to(path)
    with override_settings(ALLOWED_HOSTS=["*"]):
        parent.say("load")
        response = visit(writes, key)
        assert response is not None
        found, given = outcome(response)
        assert found == {}, "another's session"
        assert given not in (key, victim)
        assert stored(file.SessionStore, given) == {"visits": 1}
    if kind != "a symlink to nothing":  # the same as a missing file
        assert lines, "nothing was logged"

    def is_nothing(operation: Callable[[], Any]) -> bool:
        return unreadable(operation) or not operation()

    operations: dict[str, Callable[[], bool]] = {
        "get_session": lambda: is_nothing(lambda: storage.get_session(session_id, 60)),
        "exists": lambda: is_nothing(lambda: storage.exists(session_id)),
        "save": lambda: is_nothing(lambda: storage.apply(session_id, SessionMap({"key": 1}), 60)),
        "touch": lambda: is_nothing(lambda: storage.update_ttl(session_id, 60)),
        "move": lambda: storage.move(session_id, "0" * 64, 60) is False,
        "ids": lambda: session_id not in list(storage.ids()),
        "purge": lambda: sum(storage.purge(10)) >= 0,
    }
    for name, operation in operations.items():
        parent.say(name)
        assert operation()
    parent.say("create")
    assert stored(file.SessionStore, new_session(file.SessionStore, {"new": 1})) == {"new": 1}
    assert stored(file.SessionStore, victim) == SECRET, "another's session was changed"
    assert elsewhere.read_bytes() == content, "a file elsewhere was changed"
    assert not (Path(folder).parent / "nothing").exists()
    parent.say("the end")


@pytest.mark.parametrize(
    "kind",
    [
        "a folder",
        "a FIFO",
        "a symlink to another session",
        "a symlink to a file elsewhere",
        "a symlink to nothing",
        "a symlink to itself",
    ],
)
def test_a_special_file_under_a_sessions_name_is_not_a_session_and_blocks_nobody(
    file_store: type[SessionStore], kind: str
) -> None:
    key, folder = new_session(file_store, {"key": "value"}), str(folder_of_sessions())
    with Worker(folder, come_upon, folder, key, kind) as worker:
        doing = ""
        while doing != "the end":
            try:
                doing = worker.hear(timeout=10)
            except TimeoutError:
                pytest.fail(f"{doing}: it hangs")


def test_a_purge_removes_damaged_files_of_every_kind(file_store: type[SessionStore]) -> None:
    keys = [new_session(file_store, {"key": "value"}) for _ in range(4)]
    for key, content in zip(keys, (b"", b"GSF1", bytes(100)), strict=False):
        file_of(file_store, key).write_bytes(content)
    file_store.clear_expired()
    assert list(storage_of(file_store).ids()) == [id_of(file_store, keys[-1])]
    assert len(list(folder_of_sessions().glob("*/[0-9a-f]*"))) == 1


def test_a_shard_that_is_a_file_is_unavailable_only_for_its_sessions(file_store: type[SessionStore]) -> None:
    key = new_session(file_store, {"key": "value"})
    shard = file_of(file_store, key).parent
    shutil.rmtree(shard)
    shard.write_text("not a folder")
    with pytest.raises(StorageUnavailable):
        stored(file_store, key)


# Clocks.


@pytest.fixture
def clock() -> Iterator[Clock]:
    with moved_clock() as found:
        yield found


BOTH = pytest.mark.parametrize("hash_ids", [True], indirect=True)


@BOTH
@pytest.mark.parametrize("every", [True, False], ids=["save every request", ""])
@pytest.mark.parametrize("jump", [-1, -3600, -(10**8), -(10**9)])
def test_a_clock_that_goes_backwards_ends_no_session_and_breaks_nothing(
    store_class: type[SessionStore], clock: Clock, jump: float, every: bool
) -> None:
    with override_settings(SESSION_SAVE_EVERY_REQUEST=every):
        key = new_session(store_class, {"key": 1})
        clock.offset = jump
        for view, expected in ((reads, {"key": 1}), (writes, {"key": 1}), (reads, {"key": 1, "visits": 1})):
            response = visit(view, key)
            assert response is not None
            assert outcome(response)[0] == expected
        clock.offset += jump
        store_class(key).save()
        store_class.clear_expired()
        store = store_class(key)
        store.cycle_key()
        store.save()
        assert stored(store_class, store.session_key) == {"key": 1, "visits": 1}


@BOTH
def test_after_the_clock_went_backwards_a_session_lives_as_long_as_it_should(
    store_class: type[SessionStore], clock: Clock
) -> None:
    key = new_session(store_class, {"key": 1, "_session_expiry": 100})
    clock.offset = -10_000
    store = store_class(key)
    store["key"] = 2
    store.save()
    clock.offset += 99
    assert stored(store_class, key) is not None
    clock.offset += 2
    assert stored(store_class, key) is None


@BOTH
def test_a_touch_after_the_clock_went_backwards_is_not_delayed(store_class: type[SessionStore], clock: Clock) -> None:
    with override_settings(SESSION_SAVE_EVERY_REQUEST=True):
        key = new_session(store_class, {"key": 1, "_session_expiry": 100})
        clock.offset = -10_000
        assert visit(reads, key) is not None
        left = store_class(key).ttl_left
        assert left is not None
        assert 99 < left <= 100


@BOTH
@pytest.mark.parametrize("jump", [10**3, 10**8, 10**11])
def test_a_clock_that_jumps_forward_ends_sessions_and_breaks_nothing(
    store_class: type[SessionStore], clock: Clock, jump: float
) -> None:
    key = new_session(store_class, {"key": 1, "_session_expiry": 100})
    held = store_class(key)
    assert held["key"] == 1
    clock.offset = jump
    response = visit(writes, key)
    assert response is not None
    found, given = outcome(response)
    assert found == {}
    assert given not in (None, key)
    assert stored(store_class, given) == {"visits": 1}
    held["key"] = 2
    with pytest.raises(UpdateError):
        held.save()
    store_class.clear_expired()
    assert stored(store_class, given) == {"visits": 1}


# TTLs.


def lives(store_class: type[SessionStore], clock: Clock, expiry: Any) -> tuple[str, float | None]:
    store = store_class()
    store["key"] = 1
    store.set_expiry(expiry)
    store.save()
    assert store.session_key is not None
    return store.session_key, store_class(store.session_key).ttl_left


@BOTH
@pytest.mark.parametrize(
    ("asked", "stored_for"),
    [(0.001, 1), (0.5, 1), (1, 1), (1.0, 1), (1.5, 2), (2.000001, 3), (59.9, 60)],
)
def test_a_session_is_stored_for_whole_seconds_and_never_shorter_than_asked(
    store_class: type[SessionStore], clock: Clock, asked: float, stored_for: int
) -> None:
    key, left = lives(store_class, clock, asked)
    assert left is not None
    assert stored_for - 0.5 < left <= stored_for
    clock.offset = max(asked, stored_for - 0.5) - 0.4
    assert store_class().exists(key)
    clock.offset = stored_for + 0.1
    assert stored(store_class, key) is None


@BOTH
@pytest.mark.parametrize("asked", [timedelta(seconds=1.5), timedelta(seconds=10)])
def test_a_session_that_expires_at_a_date_lives_until_then(
    store_class: type[SessionStore], clock: Clock, asked: timedelta
) -> None:
    before = time.monotonic()
    _, left = lives(store_class, clock, asked)
    assert left is not None
    assert left >= asked.total_seconds() - (time.monotonic() - before) - 0.01


@BOTH
@pytest.mark.parametrize("asked", [-1, -0.5, -(10**9), timedelta(seconds=-5), timedelta(days=-400)])
def test_a_session_that_is_stored_expired_does_not_exist(
    store_class: type[SessionStore], clock: Clock, asked: Any
) -> None:
    store = store_class()
    store["key"] = 1
    store.set_expiry(asked)
    store.save()
    if asked == -0.5:  # rounds up to zero
        clock.offset = 0.01
    assert stored(store_class, store.session_key) is None
    response = visit(writes, store.session_key or "")
    assert response is not None
    assert outcome(response)[0] == {}


@BOTH
def test_an_expiry_of_zero_is_the_end_of_the_visit_and_stored_like_any_other(
    store_class: type[SessionStore], clock: Clock
) -> None:
    key, left = lives(store_class, clock, 0)
    assert left is not None
    assert 1209599 < left <= 1209600
    assert (stored(store_class, key) or {})["key"] == 1


@BOTH
@pytest.mark.parametrize("ttl", [0, -1, -60, -(10**9), -(10**12)])
def test_a_ttl_of_zero_or_below_ends_a_session_in_every_way(
    store_class: type[SessionStore], clock: Clock, ttl: int
) -> None:
    storage = store_class.get_storage()
    ids = [f"{number:064x}" for number in range(3)]
    assert storage.create(ids[0], SessionMap({"key": 1}), ttl)
    for session_id in ids[1:3]:
        assert storage.create(session_id, SessionMap({"key": 1}), 60)
    assert storage.update_ttl(ids[1], ttl)
    assert storage.apply(ids[2], SessionMap({"key": 1, "more": 2}), ttl)
    clock.offset = 0.01
    assert [storage.get_session(session_id, 60) for session_id in ids] == [None] * 3
    assert list(storage.ids()) == []


@BOTH
@pytest.mark.parametrize("ttl", [10**9, 10**12])
def test_a_very_long_ttl_works(store_class: type[SessionStore], clock: Clock, ttl: int) -> None:
    storage = store_class.get_storage()
    assert storage.create("0" * 64, SessionMap({"key": 1}), ttl)
    clock.offset = 10**9 - 60
    assert storage.exists("0" * 64)
    assert storage.update_ttl("0" * 64, ttl)
    assert sum(storage.purge(10)) == 0
