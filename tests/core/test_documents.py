"""A session as bytes: JSON, the places of its large values, and the stamp of a write."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.contrib.sessions.backends.base import UpdateError
from django.test import override_settings
from django.utils.safestring import SafeString
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gsession_django import SessionMap
from gsession_django.core.documents import LARGE, decode_pairs, encode_pairs, stamp_of
from gsession_django.core.values import Encoded, Part
from gsession_django.serializers import DecodeError, encode
from tests.support.engines import engine, new_session, stored
from tests.support.redis_servers import shared

SMALL = {"user": 1, "language": "en"}
BIG = {"lines": [{"name": 'a "thing", or: two}', "price": "9.90"}] * 100}
TEXT = 'a text, {"with": "quotes"}\n' * 100

_small = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=5,
)
_values = st.one_of(
    _small,
    st.text(min_size=1).map(lambda text: text * LARGE),
    _small.map(lambda value: [value] * (LARGE // 2)),
    _small.map(lambda value: {"a": [value] * (LARGE // 2)}),
    st.just(0),
)
_sessions = st.dictionaries(st.text(), _values, max_size=8)


def as_json(session: Any) -> bytes:
    return json.dumps(session, separators=(",", ":")).encode()


def read(data: bytes) -> dict[str, Any]:
    return SessionMap(decode_pairs(data)).as_dict()


def parts(data: bytes) -> set[str]:
    return {key for key, value in decode_pairs(data).items() if type(value) is Part}


@examples(max_examples=30, deadline=None)
@given(_sessions, st.data())
def test_a_session_is_its_json_with_white_space_behind_it(session: dict[str, Any], data: st.DataObject) -> None:
    known = data.draw(st.sets(st.sampled_from(sorted(session))) if session else st.just(set()))
    written = encode_pairs(session, {key: encode(session[key]) for key in known})
    assert written.rstrip(b" \t\n\r") == as_json(session)
    assert as_json(read(written)) == as_json(session)
    assert (stamp_of(written) is not None) == (len(as_json(session)) > LARGE)


@examples(max_examples=30, deadline=None)
@given(_sessions, st.dictionaries(st.text(), _small, max_size=3))
def test_a_session_that_was_read_is_written_again_with_its_changes(old: dict[str, Any], new: dict[str, Any]) -> None:
    session = SessionMap(decode_pairs(encode_pairs(old, {})))
    session.update(new)
    with session.saving():
        assert session.encoded().rstrip(b" \t\n\r") == as_json(old | new)


def test_large_values_are_not_decoded_before_they_are_used() -> None:
    data = encode_pairs({**SMALL, "big": BIG, "text": TEXT, "last": {}}, {})
    assert parts(data) == {"big", "text"}
    session = SessionMap(decode_pairs(data))
    assert session["text"] == TEXT
    session["language"] = "de"
    with session.saving():
        again = session.encoded()
    assert parts(again) == {"big", "text"}
    assert read(again) == {**SMALL, "language": "de", "big": BIG, "text": TEXT, "last": {}}


def test_a_large_value_that_nobody_uses_is_stored_again_whether_or_not_it_can_be_read() -> None:
    session = SessionMap(decode_pairs(encode_pairs({**SMALL, "big": BIG}, {}).replace(b'"name"', b'"name:', 1)))
    session["language"] = "de"
    with session.saving():
        assert b'"name:' in session.encoded()


def test_a_large_value_replaced_unread_merges_by_its_old_value() -> None:
    session = SessionMap(decode_pairs(encode_pairs({**SMALL, "big": BIG}, {})))
    session["big"] = BIG
    assert not session.has_changes()
    session["big"] = {}
    assert session.changed == {"big": {}}
    assert session.base("big") == BIG


def test_two_writes_of_one_session_have_different_stamps() -> None:
    one, other = (stamp_of(encode_pairs({"text": TEXT}, {})) for _ in range(2))
    assert one != other


def test_any_json_reader_reads_it() -> None:
    assert json.loads(encode_pairs({**SMALL, "big": BIG}, {})) == {**SMALL, "big": BIG}


def test_a_session_that_another_program_wrote_has_neither_places_nor_a_stamp() -> None:
    data = as_json(json.loads(encode_pairs({**SMALL, "big": BIG}, {})))
    assert stamp_of(data) is None
    assert parts(data) == set()
    assert read(data) == {**SMALL, "big": BIG}


def test_white_space_of_another_program_is_not_taken_for_a_stamp() -> None:
    document = as_json({**SMALL, "big": BIG})
    for blanks in (b" " * 52, b"\n" + b" " * 99, b"\t" * 52, b"\r\n" * 500, b" " * 18 + b"\t\t" + b" " * 32):
        assert stamp_of(document + blanks) is None
        assert read(document + blanks) == {**SMALL, "big": BIG}


@pytest.mark.parametrize(
    "changes",
    [
        {b'"language":"en"': b'"language":"de"'},
        {b'"language":"en"': b'"language":"french"'},
        {b'"user":1,': b""},
        {b'"user":1,': b'"user":1,"new":0,'},
        {b'"user":1,"language":"en"': b'"user":1,"lang":1,"no":2'},
        {b'"text"': b'"none"'},
        {b'"text":"': b'"t":1,"text":"', b"with": b""},
        # Same length, but a large value is elsewhere.
        {b'{"lines":[': b'{"lines":[1,', b"with": b"wi"},
        {b'"user":1,': b'"user":100,', b"with": b"wi"},
    ],
)
def test_a_document_that_was_changed_before_its_white_space_is_read_as_it_is(changes: dict[bytes, bytes]) -> None:
    data = encode_pairs({**SMALL, "big": BIG, "zero": 0, "text": TEXT}, {})
    for old, new in changes.items():
        assert old in data
        data = data.replace(old, new, 1)
    assert read(data) == json.loads(data)


@pytest.mark.parametrize("name", [b"123456", b"[1,23]", b"{wrong"])
def test_another_document_of_the_same_size_is_read_as_it_is(name: bytes) -> None:
    data = encode_pairs({"a": 1, "text": TEXT, "zero": 0}, {})
    size = data.rindex(b"}") + 1
    other = b'{"a":"x' + name + b":"  # where it was: {"a":1,"text":
    other += b"y" * (size - len(other) - 2) + b'"}'
    assert read(other + data[size:]) == json.loads(other)


@pytest.mark.parametrize("more", [b" ", b"\r", b"    ", b"\n\n\n\n", b"\r" * 40])
def test_white_space_that_somebody_else_has_added_does_no_harm(more: bytes) -> None:
    data = encode_pairs({**SMALL, "text": TEXT}, {})
    size = data.rindex(b"}") + 1
    assert read(data[:size] + more + data[size:]) == {**SMALL, "text": TEXT}


def test_a_document_without_its_end_cannot_be_read() -> None:
    data = encode_pairs({**SMALL, "big": BIG}, {})
    with pytest.raises(DecodeError):
        decode_pairs(data[: len(data) // 2])
    with pytest.raises(DecodeError):
        decode_pairs(data[10:])


def test_keys_that_are_not_text_become_text_as_in_json() -> None:
    session = SessionMap(decode_pairs(encode_pairs({"big": BIG, "text": TEXT}, {})))
    values: dict[Any, Any] = {1: "one", "1": "two", SafeString("safe"): 0}
    session.update(values)
    with session.saving():
        assert read(session.encoded()) == {"big": BIG, "text": TEXT, "1": "two", "safe": 0}
    two_of_a_name: dict[Any, Any] = {1: TEXT, "1": 0}
    assert read(encode_pairs(two_of_a_name, {})) == {"1": 0}


def test_a_key_may_have_any_length() -> None:
    session = {"k" * 65533: TEXT, "k" * 65534: TEXT, "k" * 70000: TEXT}
    assert read(encode_pairs(session, {})) == session


@pytest.mark.parametrize(
    "serializer", ["gsession_django.serializers.TypedSerializer", "tests.core.test_any_serializer.Encrypting"]
)
def test_bytes_of_another_serializer_have_no_white_space_behind_them(serializer: str) -> None:
    data = encode_pairs({**SMALL, "big": BIG}, {})
    with override_settings(SESSION_SERIALIZER=serializer):
        written = encode_pairs({**SMALL, "big": BIG}, {})
        assert written == written.strip()
        assert stamp_of(written) is None
        assert read(written) == {**SMALL, "big": BIG}
    with override_settings(SESSION_SERIALIZER="gsession_django.serializers.TypedSerializer"):
        assert read(data) == {**SMALL, "big": BIG}


def test_an_unreadable_value_in_the_sites_own_storage_spoils_no_other() -> None:
    session = SessionMap({**SMALL, "odd": Encoded(b"{")})
    session["new"] = TEXT
    with session.saving():
        assert read(session.encoded()) == {**SMALL, "new": TEXT}


@pytest.mark.parametrize("name", ["file", "sqlite", "redis"])
def test_requests_that_overlap_in_a_large_session_lose_nothing(name: str, tmp_path: Path) -> None:
    with engine(name, tmp_path) as store_class:
        key = new_session(store_class, {**SMALL, "big": BIG, "text": TEXT})
        one, other = store_class(key), store_class(key)
        one["big"]["one"] = 1
        other["big"]["other"] = 2
        other["user"] = 3
        one.save()
        other.save()
        expected = {**SMALL, "user": 3, "big": {**BIG, "one": 1, "other": 2}, "text": TEXT}
        assert stored(store_class, key) == expected


def test_a_large_session_that_another_program_writes_meanwhile_is_merged(tmp_path: Path) -> None:
    with engine("redis", tmp_path) as store_class, shared().client() as client:
        store = store_class(new_session(store_class, {**SMALL, "text": TEXT}))
        (name,) = client.keys(f"*{store.session_id}*")
        store["language"] = "de"
        client.set(name, as_json({**SMALL, "text": TEXT, "theirs": 1}), keepttl=True)
        store.save()
        assert stored(store_class, store.session_key) == {**SMALL, "language": "de", "text": TEXT, "theirs": 1}
        other = store_class(store.session_key)
        other["language"] = "fr"
        client.unlink(name)
        with pytest.raises(UpdateError):
            other.save()
