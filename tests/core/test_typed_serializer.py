"""TypedSerializer brings back the types that JSON does not have."""

import decimal
import json
import math
import subprocess
import sys
import threading
from collections import Counter, OrderedDict, namedtuple
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.serializers import JSONSerializer
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.utils.functional import SimpleLazyObject
from django.utils.module_loading import import_string
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pytest_django import Settings

from gsession_django import typed as typed_module
from gsession_django.redis.commands import Batch
from gsession_django.serializers import TypedSerializer, decode, encode
from tests.support.old_sites import DJANGOS, OURS, old_site

NAME = "gsession_django.serializers.TypedSerializer"
BERLIN = ZoneInfo("Europe/Berlin")

dumps, loads = TypedSerializer().dumps, TypedSerializer().loads
many = examples(max_examples=100, deadline=None, database=None)


def again(value: Any) -> Any:
    return loads(dumps(value))


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal and of the same types, at any depth."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(pair, twin) for pair, twin in zip(one.items(), other.items(), strict=True)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set | frozenset):
        return sorted(map(kinds, one), key=repr) == sorted(map(kinds, other), key=repr)
    return bool(kinds(one) == kinds(other))


def kinds(value: Any) -> Any:
    """Return the type of a value and the details that equality ignores."""
    if isinstance(value, tuple | frozenset):
        return type(value), *sorted(map(kinds, value), key=repr)
    if isinstance(value, float | Decimal):
        return type(value), repr(value)
    if isinstance(value, datetime | time):
        return type(value), value.replace(tzinfo=None), value.fold, repr(value.tzinfo)
    return type(value), value


def can_be_a_key(value: Any) -> bool:
    return not (isinstance(value, Decimal) and value.is_snan())


# Values that come back.

zones = st.none() | st.timezones() | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
texts = st.text(st.characters(codec=None))  # half of a surrogate pair too
plain = st.none() | st.booleans() | st.integers() | st.floats() | texts
typed = (
    st.datetimes(timezones=zones, allow_imaginary=True)
    | st.dates()
    | st.times(timezones=zones)
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
    | st.binary()
)
keys = plain | typed.filter(can_be_a_key) | st.tuples(texts, st.integers()) | st.frozensets(texts | st.integers())
values = st.recursive(
    plain | typed | st.frozensets(keys) | st.sets(keys),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(texts, inner) | st.dictionaries(keys, inner)
    ),
    max_leaves=15,
)
json_values = st.recursive(
    plain, lambda inner: st.lists(inner) | st.dictionaries(texts | st.integers(), inner), max_leaves=15
)


@many
@given(values)
def test_a_value_comes_back_and_makes_the_same_bytes(value: Any) -> None:
    data = dumps(value)
    back = loads(data)
    assert same(back, value)
    assert dumps(back) == data


@many
@given(json_values)
def test_bytes_of_djangos_serializer_are_read_as_it_reads_them(value: Any) -> None:
    data = JSONSerializer().dumps(value)
    assert same(loads(data), JSONSerializer().loads(data))


@pytest.mark.parametrize("value", [float("nan"), [float("inf"), "\ud800"], {1: -0.0, None: 10**30, 2: 1e22}], ids=repr)
def test_values_of_djangos_serializer_beyond_json_are_read_too(value: Any) -> None:
    data = JSONSerializer().dumps(value)
    assert same(loads(data), JSONSerializer().loads(data))


@many
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=15))
def test_djangos_serializer_reads_json_values(value: Any) -> None:
    assert json.loads(dumps(value)) == JSONSerializer().loads(JSONSerializer().dumps(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN),
        datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
        datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN),  # there is no such time
        datetime(2026, 1, 1, tzinfo=UTC, fold=1),
        datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=-3, seconds=7, microseconds=1))),
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        datetime.fromisoformat("2026-10-25T02:30").replace(fold=1),
        time(2, 30, tzinfo=BERLIN, fold=1),
        timedelta.min,
        timedelta.max,
        Decimal("1.10"),
        Decimal("-0"),
        Decimal("1E+999999"),
        Decimal("sNaN123"),
        Decimal("Infinity"),
        10**400,
        float("nan"),
        float("-inf"),
        -0.0,
        {(1, "a"): {frozenset({1}): set()}},
        {1: "one", "1": "text", 1.5: None, None: b"\x00"},
        [(), {}, [], set(), frozenset(), b"", ""],
        {"\ud800": {10**30: "\udfff", "ü": UUID(int=5)}},
        ["\ud800", (10**30, "\ud800")],
        {"\ud800": ["\udfff"]},
    ],
    ids=repr,
)
def test_the_edges_of_the_types_come_back(value: Any) -> None:
    assert same(again(value), value)


@pytest.mark.parametrize(
    "value",
    [
        {"$date": "2026-11-26"},
        {"$decimal": 5},
        {"__type__": "set", "value": [1]},
        "\xc1",
        b"\xc1",
        [b"\xc1\x93", "2026-11-26", "1.5"],
        {"a": {"$set": [1]}, "when": date(2026, 11, 26)},
    ],
    ids=repr,
)
def test_no_value_of_the_user_is_mistaken_for_a_type(value: Any) -> None:
    assert same(again(value), value)


class Color(StrEnum):
    RED = "red"


class OldColor(str, Enum):  # noqa: UP042
    RED = "red"


class Number(IntEnum):
    ONE = 1


class Price(Decimal):
    pass


class Moment(datetime):
    pass


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (mark_safe("<b>"), "<b>"),
        (gettext_lazy("Yes"), "Yes"),
        ([Color.RED, OldColor.RED, Number.ONE], ["red", "red", 1]),
        ({Color.RED: 1, OldColor.RED: 2}, {"red": 2}),
        ({mark_safe("a"): 1, gettext_lazy("Yes"): 2}, {"a": 1, "Yes": 2}),
        ({Number.ONE: 1}, {1: 1}),
        (Point(1, 2), (1, 2)),
        (OrderedDict(b=1, a=OrderedDict(c=(1,))), {"b": 1, "a": {"c": (1,)}}),
        (Counter("aab"), {"a": 2, "b": 1}),
        (Price("1.50"), Decimal("1.50")),
        (Moment(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
        ({gettext_lazy("Yes"), "Yes"}, {"Yes"}),
    ],
    ids=repr,
)
def test_the_base_of_a_subclass_comes_back(value: Any, expected: Any) -> None:
    assert same(again(value), expected)
    assert dumps(value) == dumps(expected)


class FrozenDate(date):
    pass


class FrozenDatetime(datetime):
    def date(self) -> FrozenDate:
        return FrozenDate(self.year, self.month, self.day)


class FrozenTime(time):
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (FrozenDatetime(2026, 1, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, 2, tzinfo=UTC)),
        (FrozenDatetime(2026, 1, 1, 2, tzinfo=BERLIN, fold=1), datetime(2026, 1, 1, 2, tzinfo=BERLIN, fold=1)),
        (FrozenDatetime.fromisoformat("2026-01-01"), datetime.fromisoformat("2026-01-01")),
        (FrozenDate(2026, 1, 1), date(2026, 1, 1)),
        (FrozenTime(2, 30), time(2, 30)),
    ],
    ids=repr,
)
def test_the_base_comes_back_under_a_frozen_clock(monkeypatch: pytest.MonkeyPatch, value: Any, expected: Any) -> None:
    """Replace the classes by subclasses in every module, as freezegun does."""
    for name, frozen in {"date": FrozenDate, "datetime": FrozenDatetime, "time": FrozenTime}.items():
        monkeypatch.setattr(typed_module, name, frozen)
    assert same(again(value), expected)
    assert same(again(expected), expected)


class HalfAnHour(tzinfo):
    def utcoffset(self, dt: datetime | None) -> timedelta | None:
        return None if dt is None else timedelta(minutes=30)

    def dst(self, dt: datetime | None) -> None:
        return None

    def tzname(self, dt: datetime | None) -> str:
        return "half an hour"


def test_a_tzinfo_of_another_kind_becomes_the_offset_that_it_had() -> None:
    value = datetime(2026, 1, 1, tzinfo=HalfAnHour())
    assert again(value) == value
    assert again(value).tzinfo == timezone(timedelta(minutes=30))


# Equal values make equal bytes.


def test_a_set_is_written_in_one_order_whatever_order_it_was_filled_in() -> None:
    one, other = {0, 8}, {8, 0}
    assert list(one) != list(other)
    assert dumps(one) == dumps(other)
    program = "from gsession_django.typed import TypedSerializer as T; print(T().dumps({'abcdefg', 'h', (1, 'x')}))"
    outputs = {
        subprocess.check_output([sys.executable, "-c", program], env={"PYTHONHASHSEED": seed, "PYTHONPATH": path})
        for seed in ("1", "2")
        for path in [str(Path(__file__).parents[2])]
    }
    assert len(outputs) == 1


def test_a_dict_keeps_its_order() -> None:
    value = {"b": 1, "a": date(2026, 1, 1), 3: None}
    assert list(again(value)) == ["b", "a", 3]


def test_json_values_are_stored_as_json_and_no_others() -> None:
    assert dumps({"cart": [1, None, "ü"]}) == '{"cart":[1,null,"ü"]}'.encode()
    assert dumps(date(2026, 11, 26))[:1] == b"\xc1"


# Values that cannot be written.


@dataclass
class Dataclass:
    value: int = 1


class Plain(Enum):
    A = 1


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (User(pk=1), "django.contrib.auth.models.User"),
        (SimpleLazyObject(AnonymousUser), "django.utils.functional.SimpleLazyObject"),
        (Dataclass(), "tests.core.test_typed_serializer.Dataclass"),
        (Plain.A, "tests.core.test_typed_serializer.Plain"),
        (bytearray(b"x"), "builtins.bytearray"),
        ({}.keys(), "builtins.dict_keys"),
        (1j, "builtins.complex"),
        (time(1, tzinfo=HalfAnHour()), "tests.core.test_typed_serializer.HalfAnHour"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize(
    "around", [lambda value: value, lambda value: [(value,)], lambda value: {"a": {5: value}}], ids=["", "[]", "{}"]
)
def test_a_value_that_cannot_be_written_raises_an_error_that_names_the_type(
    value: Any, name: str, around: Callable[[Any], Any]
) -> None:
    with pytest.raises(TypeError, match=rf"TypedSerializer cannot store a {name}\. Store a value to make it from"):
        dumps(around(value))


def nested(depth: int, innermost: Any) -> Any:
    for _ in range(depth):
        innermost = [innermost]
    return innermost


def test_a_value_that_contains_itself_raises_djangos_error() -> None:
    circle: list[Any] = []
    circle.append({"a": (circle,)})
    for write in (JSONSerializer().dumps, dumps):
        with pytest.raises(ValueError, match="Circular reference"):
            write(circle)


@pytest.mark.parametrize("innermost", [1, date(2026, 1, 1)])
def test_nesting_is_limited_by_the_interpreter_alone(innermost: Any) -> None:
    assert again(nested(500, innermost)) == nested(500, innermost)
    with pytest.raises(RecursionError):
        dumps(nested(200_000, innermost))


def test_long_values_come_back() -> None:
    value = {"text": "ü" * 1_000_000, "items": list(range(100_000)), "bytes": bytes(1_000_000)}
    assert again(value) == value


def test_another_thread_may_change_a_value_while_it_is_written() -> None:
    value: dict[str, Any] = {"when": date(2026, 1, 1)}
    ends = threading.Event()

    def change() -> None:
        number = 0
        while not ends.is_set():
            value[f"{number % 100}"] = number
            value.pop(f"{(number + 50) % 100}", None)
            number += 1

    thread = threading.Thread(target=change)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(2000):
            assert again(value)["when"] == value["when"]
    finally:
        ends.set()
        thread.join()
        sys.setswitchinterval(before)


# Bytes that cannot be read.


def packed(code: int, content: bytes) -> bytes:
    return b"\xc1\xc7" + bytes([len(content), code]) + content


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b"\x80\x04.",
        b"[1,]",
        b"1 2",
        b"{'a':1}",
        b"\xc1",
        b"\xc1\x01\x01",
        b"\xc1\x92\x01",
        b"\xc1\xa1\xff",
        packed(0, b"one"),
        packed(2, b"1,5"),
        packed(2, b"\xff"),
        packed(3, b"123"),
        packed(4, b"yesterday"),
        packed(4, b"2026-01-01[Nowhere/Land]"),
        packed(4, b"2026-01-01[../../etc/passwd]"),
        packed(4, b"2026-01-01]"),
        packed(5, b"2026-02-30"),
        packed(6, b"25:00"),
        packed(7, b"\x92\x01\x02"),
        packed(7, b"\x93\x01\x02\xa1a"),
        packed(8, b"\xa3abc"),
        packed(8, b"\x93\x01"),
        packed(9, b"\x92\x01\x01"),
        packed(9, b"\x91\x90"),
        packed(10, b"\x81\x01\x02"),
        packed(11, b"\x91\x91\x01"),
        packed(11, b"\x91\xa2ab"),
        packed(11, b"\x01"),
        packed(12, b""),
        packed(77, b"x"),
    ],
    ids=repr,
)
def test_bytes_that_were_not_written_here_raise_an_error(data: bytes) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011  (whichever: the package makes a DecodeError of each)
        loads(data)


@many
@given(values, st.data())
def test_damaged_bytes_are_an_error_or_a_value_never_a_crash(value: Any, data: st.DataObject) -> None:
    damaged = bytearray(b"\xc1" + dumps([value, b""])[1:])
    at = data.draw(st.integers(1, len(damaged) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    with suppress(Exception):
        dumps(loads(bytes(damaged)))


def test_an_unknown_extension_type_is_named() -> None:
    with pytest.raises(ValueError, match="TypedSerializer does not write the extension type 77"):
        loads(packed(77, b"x"))


def test_no_decimal_context_turns_a_wrong_number_into_nan() -> None:
    with decimal.localcontext() as context:
        context.traps[decimal.InvalidOperation] = False
        assert math.isnan(loads(packed(2, b"NaN")))
        with pytest.raises(ValueError, match="'one' is not a Decimal"):
            loads(packed(2, b"one"))


# In a site.

SESSION: dict[str, Any] = {
    "seen": datetime(2026, 11, 26, 14, tzinfo=BERLIN),
    "price": Decimal("19.90"),
    "order": UUID(int=5),
    "ids": {3, 1, 2},
    "pair": (1, b"\x00"),
    "cart": {5: Decimal("1.10"), "note": None},
}


@pytest.mark.parametrize("engine", [*OURS.values(), "gsession_django.backends.memory", *DJANGOS.values()])
def test_every_engine_keeps_the_types(tmp_path: Path, engine: str) -> None:
    with old_site(tmp_path, SESSION_SERIALIZER=NAME):
        store = import_module(engine).SessionStore
        session = store()
        session.update(SESSION)
        session.save()
        session = store(session.session_key)
        assert same(dict(session.items()), SESSION)
        session["cart"][6] = date(2026, 1, 1)
        session.modified = True
        session.save()
        expected = {**SESSION, "cart": {**SESSION["cart"], 6: date(2026, 1, 1)}}
        assert same(dict(store(session.session_key).items()), expected)


@pytest.mark.parametrize("engine", OURS.values())
def test_dicts_with_keys_that_are_not_text_merge(tmp_path: Path, engine: str) -> None:
    with old_site(tmp_path, SESSION_SERIALIZER=NAME):
        store = import_module(engine).SessionStore
        first = store()
        first["cart"] = {1: Decimal(1)}
        first.save()
        one, other = store(first.session_key), store(first.session_key)
        one["cart"][2], other["cart"][3] = Decimal(2), Decimal(3)
        one.save()
        other.save()
        assert store(first.session_key)["cart"] == {1: Decimal(1), 2: Decimal(2), 3: Decimal(3)}


@pytest.mark.parametrize("engine", OURS.values())
def test_a_site_that_changes_to_it_signs_nobody_out(tmp_path: Path, engine: str) -> None:
    with old_site(tmp_path):
        store = import_module(engine).SessionStore
        session = store()
        session.update({"user": "1", "cart": {"ä": [1, None, 2.5]}, "$set": {"$date": "now"}})
        session.save()
        with override_settings(SESSION_SERIALIZER=NAME):
            session = store(session.session_key)
            assert dict(session.items()) == {"user": "1", "cart": {"ä": [1, None, 2.5]}, "$set": {"$date": "now"}}
            assert not session.modified
            session["when"] = date(2026, 1, 1)
            session.save()
            assert store(session.session_key)["when"] == date(2026, 1, 1)
            assert store(session.session_key)["cart"] == {"ä": [1, None, 2.5]}


def test_text_in_redis_hash_stays_text_that_everybody_can_read(tmp_path: Path) -> None:
    with old_site(tmp_path, SESSION_SERIALIZER=NAME):
        store = import_module(OURS["redis_hash"]).SessionStore
        session = store()
        session.update({"hash": "a" * 64, "when": date(2026, 1, 1)})
        session.save()
        storage: Any = store.get_storage()
        (stored,) = storage.client.send(Batch(("HMGET", storage._key(session.session_id), "hash")))
        assert stored == [b"a" * 64]


def test_the_name_in_the_settings_is_a_class_that_may_be_made_for_each_call(settings: Settings) -> None:
    settings.SESSION_SERIALIZER = NAME
    assert import_string(NAME) is TypedSerializer
    assert encode({1}) == dumps({1})
    assert decode(encode({1})) == {1}


# Without msgspec.


def without_msgspec(program: str) -> str:
    hide = "import sys; sys.modules['msgspec'] = None\n"
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", hide + program],
        env={"PYTHONPATH": root, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


def test_the_package_needs_no_msgspec() -> None:
    engines = ", ".join(["gsession_django.checks", *OURS.values()])
    assert without_msgspec(f"import django; django.setup(); import {engines}; print('imported')") == "imported\n"


def test_naming_it_without_msgspec_is_an_error_that_says_what_to_install() -> None:
    uses = [
        "from gsession_django.serializers import encode; encode(1)",
        "from gsession_django.backends.memory import SessionStore as S; s = S(); s['a'] = []; s.save()",
        "from django.contrib.sessions.backends.signed_cookies import SessionStore as S; S('x').load()",
    ]
    said = without_msgspec(
        f"import django; django.setup()\nfrom django.conf import settings; settings.SESSION_SERIALIZER = {NAME!r}\n"
        + "".join(f"try:\n    {use}\nexcept Exception as e:\n    print(type(e).__name__, e)\n" for use in uses)
    )
    error = (
        f"{ImproperlyConfigured.__name__} SESSION_SERIALIZER = '{NAME}' needs the package msgspec, which is not "
        'installed: pip install "gsession-django[typed]"'
    )
    assert said.splitlines() == [error] * len(uses)


def test_other_names_of_the_module_are_as_unknown_as_ever() -> None:
    with pytest.raises(ImportError, match="does not define"):
        import_string("gsession_django.serializers.NoSerializer")
