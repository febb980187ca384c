"""encode and decode follow SESSION_SERIALIZER."""

import pickle
from typing import Any

import pytest
from django.contrib.sessions.serializers import JSONSerializer
from pytest_django import Settings

from gsession_django import Storage
from gsession_django.serializers import DecodeError, decode, encode


class PickleSerializer:
    def dumps(self, obj: Any) -> bytes:
        return pickle.dumps(obj)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


ODD = {2: None, True: (1, {"\ud800": -0.0}), 1.5: float("inf"), None: "\x00</é"}


@pytest.mark.parametrize("value", [{}, {"a": [1, None, "ü"]}, "text", 5, None, [1.5]])
def test_the_bytes_are_those_of_the_serializer(value: Any) -> None:
    assert encode(value) == JSONSerializer().dumps(value)
    assert decode(encode(value)) == value


def test_odd_keys_and_values_come_back_as_from_djangos() -> None:
    assert encode(ODD) == JSONSerializer().dumps(ODD)


def test_utf_8_of_another_program_is_read() -> None:
    assert decode('{"name":"José","é":"😀"}'.encode()) == {"name": "José", "é": "😀"}


def test_a_value_that_contains_itself_raises_djangos_error() -> None:
    circle: list[Any] = []
    circle.append(circle)
    for dumps in (JSONSerializer().dumps, encode):
        with pytest.raises(ValueError, match="Circular reference"):
            dumps(circle)


def test_it_follows_the_setting(settings: Settings) -> None:
    assert encode(1) == b"1"
    settings.SESSION_SERIALIZER = "tests.core.test_serializers.PickleSerializer"
    assert encode({1: {2}}) == pickle.dumps({1: {2}})
    assert decode(pickle.dumps({1: {2}})) == {1: {2}}


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"\x80\x04."])
@pytest.mark.parametrize(
    "name", ["django.contrib.sessions.serializers.JSONSerializer", "tests.core.test_serializers.PickleSerializer"]
)
def test_bytes_that_cannot_be_decoded_raise_one_kind_of_error(settings: Settings, name: str, data: bytes) -> None:
    settings.SESSION_SERIALIZER = name
    with pytest.raises(DecodeError, match=f"SESSION_SERIALIZER = '{name}' cannot read it"):
        decode(data)


def test_a_value_that_cannot_be_encoded_raises_the_serializers_error() -> None:
    with pytest.raises(TypeError):
        encode(object())


def test_storages_use_this_pair() -> None:
    assert Storage.encode is encode
    assert Storage.decode is decode
