"""Merging with serializers whose bytes differ each time, or that keep types, compares decoded values."""

import json
import pickle
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.contrib.auth.models import Group, Permission
from django.core import signing
from django.test import override_settings
from django.utils.safestring import SafeString

from gsession_django import SessionStore
from gsession_django.core.values import alike
from tests.support.engines import EACH_ENGINE, engine, new_session, stored

_fernet = Fernet(Fernet.generate_key())
_count = iter(range(10**9))


class Encrypting:
    def dumps(self, obj: Any) -> bytes:
        return _fernet.encrypt(json.dumps(obj).encode())

    def loads(self, data: bytes) -> Any:
        return json.loads(_fernet.decrypt(data))


class Signing:
    """Signs with another timestamp each time; the real one counts seconds."""

    class Signer(signing.TimestampSigner):
        def timestamp(self) -> str:
            return signing.b62_encode(10**9 + next(_count))

    def dumps(self, obj: Any) -> bytes:
        return self.Signer().sign(json.dumps(obj)).encode()

    def loads(self, data: bytes) -> Any:
        return json.loads(self.Signer().unsign(data.decode()))


class Pickling:
    def dumps(self, obj: Any) -> bytes:
        return pickle.dumps(obj)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


class Thing:
    """Has no ``__eq__``."""

    def __init__(self, name: str) -> None:
        self.name = name


class Colour(StrEnum):
    RED = "red"


def serializer(name: str) -> Any:
    return override_settings(SESSION_SERIALIZER=f"{__name__}.{name}")


@pytest.fixture(params=EACH_ENGINE)
def store_class(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[SessionStore]]:
    with engine(request.param, tmp_path) as found:
        yield found


@pytest.fixture(params=["Encrypting", "Signing", "Pickling"])
def any_bytes(request: pytest.FixtureRequest, store_class: type[SessionStore]) -> Iterator[type[SessionStore]]:
    with serializer(request.param):
        yield store_class


@pytest.fixture
def pickling(store_class: type[SessionStore]) -> Iterator[type[SessionStore]]:
    with serializer("Pickling"):
        yield store_class


class TestBytesThatDifferEachTime:
    def test_reading_changes_nothing(self, any_bytes: type[SessionStore]) -> None:
        store = any_bytes(new_session(any_bytes, {"cart": {"apple": 1}, "list": [1.0, None], "text": "a"}))
        assert (store["cart"], store["list"], store["text"]) == ({"apple": 1}, [1.0, None], "a")
        assert not store.modified
        assert not store._session.has_changes()

    def test_a_value_that_was_changed_in_place_is_changed(self, any_bytes: type[SessionStore]) -> None:
        store = any_bytes(new_session(any_bytes, {"cart": {"apple": 1}}))
        store["cart"]["apple"] = True
        assert store.modified
        store.save()
        assert repr(stored(any_bytes, store.session_key)) == "{'cart': {'apple': True}}"
        assert not store._session.altered()

    def test_items_of_one_dict_merge(self, any_bytes: type[SessionStore]) -> None:
        key = new_session(any_bytes, {"cart": {"apple": 1, "fig": {"n": 1}}})
        one, other = any_bytes(key), any_bytes(key)
        one["cart"]["pear"] = 1
        other["cart"]["apple"] = 7
        other["cart"]["fig"]["n"] = 2
        other.save()
        one.save()
        assert stored(any_bytes, key) == {"cart": {"apple": 7, "pear": 1, "fig": {"n": 2}}}

    def test_a_value_that_was_only_read_is_not_overwritten(self, any_bytes: type[SessionStore]) -> None:
        key = new_session(any_bytes, {"cart": {"apple": 1}})
        one, other = any_bytes(key), any_bytes(key)
        assert one["cart"] == {"apple": 1}
        one["seen"] = True
        other["cart"] = {"apple": 9}
        other.save()
        one.save()
        assert stored(any_bytes, key) == {"cart": {"apple": 9}, "seen": True}

    def test_a_value_set_to_itself_is_not_overwritten(self, any_bytes: type[SessionStore]) -> None:
        key = new_session(any_bytes, {"cart": {"apple": 1}})
        one, other = any_bytes(key), any_bytes(key)
        one["cart"] = {"apple": 1}
        other["cart"] = {"apple": 9}
        other.save()
        one.save()
        assert stored(any_bytes, key) == {"cart": {"apple": 9}}

    def test_a_save_renews_the_ttl_that_set_expiry_has_given(self, any_bytes: type[SessionStore]) -> None:
        store = any_bytes()
        store.set_expiry(1000)
        store["a"] = 1
        store.save()
        storage = any_bytes.get_storage()
        assert storage.update_ttl(str(store.session_id), 50)
        request = any_bytes(store.session_key)
        request["a"] = 2
        request.save()
        left = any_bytes(store.session_key).ttl_left
        assert left is not None
        assert left > 900


class TestObjects:
    def test_reading_changes_nothing(self, pickling: type[SessionStore]) -> None:
        data = {"thing": [Thing("a")], "permission": Permission(id=1, name="p"), "colour": Colour.RED}
        store = pickling(new_session(pickling, data))
        permission = store["permission"]
        permission._state.fields_cache["group"] = Group(id=2)  # as reading a relation leaves it
        assert store["thing"][0].name == "a"
        assert store["colour"] is Colour.RED
        assert not store.modified

    def test_a_changed_model_is_saved_if_the_site_asks_for_it(self, pickling: type[SessionStore]) -> None:
        """Models compare primary keys, so nobody sees a change in place, as on Django."""
        store = pickling(new_session(pickling, {"permission": Permission(id=1, name="old")}))
        store["permission"].name = "new"
        store.modified = True
        store.save()
        assert (stored(pickling, store.session_key) or {})["permission"].name == "new"
        store = pickling(store.session_key)
        store["permission"] = Permission(id=1, name="newer")
        store.save()
        assert (stored(pickling, store.session_key) or {})["permission"].name == "newer"

    def test_an_object_without_eq_that_was_changed_in_place_is_saved(self, pickling: type[SessionStore]) -> None:
        store = pickling(new_session(pickling, {"thing": Thing("a")}))
        store["thing"].name = "b"
        assert store.modified
        store.save()
        assert (stored(pickling, store.session_key) or {})["thing"].name == "b"

    @pytest.mark.parametrize(
        "cart",
        [
            OrderedDict(apple=1),
            Counter(apple=1),
            defaultdict(int, {"apple": 1}),
        ],
        ids=lambda cart: type(cart).__name__,
    )
    def test_a_dict_subclass_stays_one_when_it_is_merged(self, pickling: type[SessionStore], cart: Any) -> None:
        key = new_session(pickling, {"cart": cart})
        one, other = pickling(key), pickling(key)
        one["cart"]["pear"] = 1
        other["cart"]["plum"] = 1
        other.save()
        one.save()
        found = (stored(pickling, key) or {})["cart"]
        assert found == {"apple": 1, "pear": 1, "plum": 1}
        assert type(found) is type(cart)
        assert getattr(found, "default_factory", None) is getattr(cart, "default_factory", None)


class TestSavesThatTheSiteAsksFor:
    def test_store_changes_that_the_eq_of_an_object_ignores(self, pickling: type[SessionStore]) -> None:
        store = pickling(new_session(pickling, {"permission": Permission(id=1, name="old")}))
        store["permission"].name = "new"
        store.save()
        assert (stored(pickling, store.session_key) or {})["permission"].name == "new"


class TestKeys:
    @pytest.mark.parametrize("name", ["Pickling", None], ids=["pickle", "JSON"])
    @pytest.mark.parametrize("key", [Colour.RED, SafeString("red")], ids=["StrEnum", "SafeString"])
    def test_a_subclass_of_str_works_and_merges(
        self, store_class: type[SessionStore], name: str | None, key: str
    ) -> None:
        with override_settings(**({"SESSION_SERIALIZER": f"{__name__}.{name}"} if name else {})):
            session_key = new_session(store_class, {key: {"apple": 1}})
            one, other = store_class(session_key), store_class(session_key)
            one[key] = {**one[key], "pear": 1}
            other[key]["plum"] = 1
            other.save()
            one.save()
            assert stored(store_class, session_key) == {"red": {"apple": 1, "pear": 1, "plum": 1}}
            del one[key]
            one.save()
            assert stored(store_class, session_key) == {}

    def test_a_key_that_is_not_text_merges_or_is_an_error_in_words(self, pickling: type[Any]) -> None:
        if pickling.__module__.endswith("redis_hash"):
            store = pickling()
            store["block", 7] = 1
            with pytest.raises(TypeError, match=r"\('block', 7\) is not text.*redis_hash'.*Use text, or the engine"):
                store.save()
            return
        data: Any = {("block", 7): {"apple": 1}, 5: 1}
        key = new_session(pickling, data)
        one, other = pickling(key), pickling(key)
        one["block", 7]["pear"] = 1
        del one[5]
        other["block", 7]["plum"] = 1
        other.save()
        one.save()
        found: Any = stored(pickling, key)
        assert found == {("block", 7): {"apple": 1, "pear": 1, "plum": 1}}

    def test_a_number_as_key_finds_the_text_that_was_stored_for_it(self, store_class: type[SessionStore]) -> None:
        store: Any = store_class()
        store[5] = 1
        store.save()
        one, other = store_class(store.session_key), store_class(store.session_key)
        assert one["5"] == other["5"] == 1
        other["theirs"] = 1
        other.save()
        numbers: Any = one
        numbers[5] = 2
        one.save()
        assert stored(store_class, store.session_key) == {"5": 2, "theirs": 1}

    def test_a_number_that_was_saved_and_removed_is_gone(self, store_class: type[SessionStore]) -> None:
        store: Any = store_class()
        store[5], store["other"] = {"apple": 1}, 1
        store.save()
        store[5]["pear"] = 1
        store.save()
        assert stored(store_class, store.session_key) == {"5": {"apple": 1, "pear": 1}, "other": 1}
        del store[5]
        store.save()
        assert stored(store_class, store.session_key) == {"other": 1}


@pytest.mark.parametrize("assigned", [{"new": 1}, {"apple": 1, "new": 1}], ids=["another", "with what was there"])
def test_a_large_dict_that_is_assigned_unread_merges_like_a_small_one(
    store_class: type[SessionStore], assigned: dict[str, Any]
) -> None:
    large = {"text": "x" * 20_000}
    key = new_session(store_class, {"cart": {"apple": 1, **large}})
    one, other = store_class(key), store_class(key)
    one["seen"], other["seen"] = 1, 1  # both have read the session
    one["cart"] = {**assigned, **large}
    other["cart"]["theirs"] = 1
    other.save()
    one.save()
    found = (stored(store_class, key) or {})["cart"]
    assert {name for name in found if name in ("new", "theirs")} == {"new", "theirs"}
    one = store_class(key)
    one["cart"] = {"only": 1}
    one.save()
    assert (stored(store_class, key) or {})["cart"] == {"only": 1}, "nobody else changed it"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *((1, True), (1, 1.0), (0.0, -0.0), ("1", 1), ([1], (1,)), ({}, OrderedDict()), ([1], [1, 2])),
        *(({"a": 1}, {"b": 1}), ({"a": [1]}, {"a": [True]}), (Thing("a"), Thing("b")), ({1}, {2})),
    ],
)
def test_different_values_differ(one: Any, other: Any) -> None:
    assert not alike(one, other)
    assert not alike(other, one, trusting=True)


def test_equal_values_do_not_differ() -> None:
    nan = float("nan")
    value = {"a": [1, (2.5, nan)], "b": {1, 2}, "c": Thing("a"), "d": Colour.RED, "e": defaultdict(int, {"f": 1})}
    assert alike(value, pickle.loads(pickle.dumps(value)))
    loop: list[Any] = []
    loop.append(loop)
    assert not alike(loop, pickle.loads(pickle.dumps(loop)))  # nothing that ends
