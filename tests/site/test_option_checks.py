"""A wrong name of an engine, or a wrong value of an option, is an error that explains itself, and not an exception."""

import sys
import types
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import pytest
from django.core.checks import CheckMessage, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.test import override_settings
from pytest_django import Settings

from gsession_django import SessionStore
from gsession_django.backends import file as file_engine
from gsession_django.backends import redis as redis_engine
from gsession_django.checks import _stores_in_use, check_deployment, check_settings
from gsession_django.core.options import AtLeast, fits, in_words
from tests.support.old_sites import OURS, old_site
from tests.support.storages import WholeMapStorage

if TYPE_CHECKING:
    from somewhere import Unknown  # type: ignore[import-not-found]

MEMORY, FILE = "gsession_django.backends.memory", OURS["file"]
Modules = Callable[..., str]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Modules:
    """Make an importable module with these attributes, and return its name."""

    def make(name: str = "engine_of_somebody", **names: Any) -> str:
        made = types.ModuleType(name)
        vars(made).update(names)
        monkeypatch.setitem(sys.modules, name, made)
        return name

    return make


@pytest.fixture
def raising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Make a module that runs this code when it is imported, and return its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(code: str) -> str:
        (tmp_path / "engine_that_raises.py").write_text(code)
        return "engine_that_raises"

    yield make
    sys.modules.pop("engine_that_raises", None)


def store_on(storage_class: Any, name: str) -> type[SessionStore]:
    return type("SessionStore", (SessionStore,), {"storage_class": storage_class, "__module__": name})


def errors() -> list[CheckMessage]:
    """Return the errors of all checks of this package, with those for deployment."""
    return [
        message
        for message in run_checks(tags=["gsession_django"], include_deployment_checks=True)
        if message.is_serious()
    ]


def only(check_id: str) -> CheckMessage:
    (message,) = errors()
    assert message.id == f"gsession_django.{check_id}"
    assert message.hint
    return message


# Names of engines.

NAMES: list[Any] = ["", ".sessions", "..", "a..b", ".", " ", "a\0b", "no.such", 5, None, True, b"x", ["x"], {}, object]
hashable = [name for name in NAMES if not isinstance(name, list | dict)]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_session_engine_that_is_no_module_is_an_error_that_names_it(settings: Settings, name: Any) -> None:
    settings.SESSION_ENGINE = name
    message = only("E005")
    assert message.msg.startswith(f"SESSION_ENGINE names the engine {name!r}, which cannot be imported: ")
    assert "'gsession_django.backends.file'" in str(message.hint)


@pytest.mark.parametrize("name", ["", ".sessions", 5])
def test_what_can_be_no_name_of_a_module_is_said_to_be_none(settings: Settings, name: Any) -> None:
    settings.SESSION_ENGINE = name
    assert only("E005").msg.endswith("it is not the dotted name of a module.")


@pytest.mark.parametrize("name", hashable, ids=repr)
def test_so_is_one_among_the_options(settings: Settings, name: Any) -> None:
    settings.GSESSION = {"ENGINES": {name: {"fsync": True}}}
    assert only("E005").msg.startswith(f'GSESSION["ENGINES"] names the engine {name!r}, which cannot be imported: ')


@pytest.mark.parametrize("name", [name for name in NAMES if name is not None], ids=repr)
def test_so_is_a_fallback(settings: Settings, name: Any) -> None:
    settings.GSESSION = {"FALLBACK_ENGINE": name}
    message = only("E018")
    assert message.msg.startswith(f'GSESSION["FALLBACK_ENGINE"] = {name!r} cannot be used. ')


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_fallback_of_an_engine_that_is_none_is_one_error(settings: Settings, name: Any) -> None:
    settings.SESSION_ENGINE = name
    settings.GSESSION = {"FALLBACK_ENGINE": "gsession_django.backends.file"}
    only("E005")


@pytest.mark.parametrize(
    "code", ["1 / 0", "raise SystemExit(3)", "def", "import no_such_module", "raise KeyError('x')"]
)
def test_so_is_a_module_that_raises_anything(settings: Settings, raising: Callable[[str], str], code: str) -> None:
    settings.SESSION_ENGINE = raising(code)
    assert "'engine_that_raises', which cannot be imported: " in only("E005").msg
    settings.SESSION_ENGINE = FILE
    settings.GSESSION = {"FALLBACK_ENGINE": "engine_that_raises", "ENGINES": {"engine_that_raises": {}}}
    assert {message.id for message in errors()} == {"gsession_django.E005", "gsession_django.E018"}


@pytest.mark.parametrize("name", ["", ".sessions", "no.such"])
@pytest.mark.parametrize(
    "command", [("purge_sessions", "--engine"), ("migrate_sessions", "--from"), ("migrate_sessions", "--to")]
)
def test_a_command_says_so_too(tmp_path: Path, command: tuple[str, str], name: str) -> None:
    more = ["--from", "django.contrib.sessions.backends.db"] if command[1] == "--to" else []
    with old_site(tmp_path), pytest.raises(CommandError, match="is not a session engine: "):
        call_command(command[0], *more, f"{command[1]}={name}")


@pytest.mark.parametrize("code", ["1 / 0", "raise SystemExit(3)"])
def test_a_command_survives_a_module_that_raises(raising: Callable[[str], str], code: str) -> None:
    with pytest.raises(CommandError, match="'engine_that_raises', which is not a session engine: "):
        call_command("purge_sessions", "--engine", raising(code))


# Engines that only import their SessionStore.


@pytest.mark.parametrize("store", [redis_engine.SessionStore, file_engine.SessionStore])
def test_options_of_a_module_that_only_imports_its_store_are_refused(
    tmp_path: Path, module: Modules, store: type[SessionStore]
) -> None:
    name = module("mysite_sessions", SessionStore=store)
    option: dict[str, Any] = {"prefix": "s:"} if store is redis_engine.SessionStore else {"fsync": True}
    with old_site(tmp_path, SESSION_ENGINE=name, GSESSION={"ENGINES": {name: option}}):
        message = only("E022")
        assert f"takes its SessionStore from {store.__module__!r}: they have no effect" in message.msg
        assert f'GSESSION["ENGINES"][{store.__module__!r}]' in str(message.hint)
        with pytest.raises(ImproperlyConfigured) as raised:
            store().create()
        assert f"'mysite_sessions' takes its SessionStore from {store.__module__!r}" in str(raised.value)
        with override_settings(GSESSION={"ENGINES": {name: {}, store.__module__: option}}):
            assert not errors()
            store().create()


def test_a_subclass_has_options_of_its_own(module: Modules, settings: Settings) -> None:
    class Store(file_engine.SessionStore):
        __module__ = "mysite_sessions"

    settings.SESSION_ENGINE = name = module("mysite_sessions", SessionStore=Store)
    settings.GSESSION = {"ENGINES": {name: {"hash_ids": False}}}
    assert not errors()
    assert Store()._engine.hash_ids is False


# Values of options.


@pytest.mark.parametrize(
    ("engine", "option", "value", "right"),
    [
        ("memory", "max_sessions", 0, "a whole number of at least 1"),
        ("memory", "max_sessions", -5, "a whole number of at least 1"),
        ("memory", "max_sessions", "100", "a whole number of at least 1"),
        ("memory", "max_sessions", True, "a whole number of at least 1"),
        ("memory", "max_sessions", 1.5, "a whole number of at least 1"),
        ("memory", "max_sessions", None, "a whole number of at least 1"),
        ("file", "fsync", "no", "True or False"),
        ("file", "fsync", 1, "True or False"),
        ("file", "fsync", None, "True or False"),
        ("file", "hash_ids", "False", "True or False"),
        ("memory", "hash_ids", 0, "True or False"),
        ("redis", "hash_ids", None, "True or False"),
        ("redis", "prefix", 5, "text or a function"),
        ("redis_hash", "prefix", b"s:", "text or a function"),
        ("redis", "wait_replicas", -1, "a whole number of at least 0"),
        ("redis", "wait_replicas", "1", "a whole number of at least 0"),
        ("redis_hash", "wait_replicas", True, "a whole number of at least 0"),
        ("redis", "wait_timeout", "1", "a number of at least 0"),
        ("redis", "wait_timeout", float("nan"), "a number of at least 0"),
        ("redis_hash", "wait_timeout", -1, "a number of at least 0"),
        ("database", "using", 5, "text or None"),
        ("database", "using", ["default"], "text or None"),
    ],
    ids=repr,
)
def test_a_value_that_is_none_is_an_error_that_says_what_would_be_right(
    tmp_path: Path, engine: str, option: str, value: Any, right: str
) -> None:
    name = f"gsession_django.backends.{engine}"
    with old_site(tmp_path, SESSION_ENGINE=FILE, GSESSION={"ENGINES": {name: {option: value}}}, DEBUG=True):
        message = only_of(check_settings(), "E023")
    assert f'GSESSION["ENGINES"][{name!r}] has the option {option!r} = {value!r}, which is not {right}' in message.msg
    assert str(message.hint).startswith(f"Give it {right}, as ")


def only_of(messages: list[CheckMessage], check_id: str) -> CheckMessage:
    (message,) = [message for message in messages if message.is_serious()]
    assert message.id == f"gsession_django.{check_id}"
    return message


@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("memory", {"max_sessions": 1, "hash_ids": True}),
        ("file", {"fsync": True, "hash_ids": False}),
        ("redis", {"prefix": "", "wait_replicas": 0, "wait_timeout": 1}),
        ("redis_hash", {"wait_replicas": 1, "wait_timeout": 0.5}),
        ("database", {"using": None}),
    ],
)
def test_what_is_right_is_no_error(tmp_path: Path, engine: str, options: dict[str, Any]) -> None:
    gsession = {"ENGINES": {f"gsession_django.backends.{engine}": options}}
    with old_site(tmp_path, SESSION_ENGINE=FILE, GSESSION=gsession, DEBUG=True):
        assert not [message for message in check_settings() if message.is_serious()]


class Readable(Protocol):
    def read(self) -> bytes: ...


@pytest.mark.parametrize(
    ("annotation", "right", "wrong", "words"),
    [
        (int, [5, -1], [True, "5", 5.0, None, float("nan")], "a whole number"),
        (float, [5, 1.5, float("inf")], [True, "1.5", float("nan")], "a number"),
        (str, ["", "x"], [b"x", None, 5], "text"),
        (bool, [True, False], [0, 1, "True", None], "True or False"),
        (str | None, ["x", None], [5], "text or None"),
        (Literal["a", 1], ["a", 1], ["b", True], "'a' or 1"),
        (Annotated[float, AtLeast(0.5)], [0.5, 3], [0.4, None], "a number of at least 0.5"),
        (Annotated[int, AtLeast(1)] | None, [1, None], [0], "a whole number of at least 1 or None"),
        (list[str], [["x"], []], ["x", ()], "a list"),
        (Mapping[str, int], [{}], [[]], "a Mapping"),
        (Callable[[], None], [print], ["print"], "a function"),
        (Path, [Path()], ["x"], "a Path"),
        (Decimal, [Decimal(1)], [1], "a Decimal"),
        (Any, [None, 5, "x"], [], "a Any"),
        (Readable, [None, 5], [], "a Readable"),
        ("Unresolved", [None, 5], [], "a Unresolved"),
        (None, [None], [0], "None"),
    ],
)
def test_annotations_say_what_an_option_may_be(annotation: Any, right: list[Any], wrong: list[Any], words: str) -> None:
    assert [value for value in right if not fits(value, annotation)] == []
    assert [value for value in wrong if fits(value, annotation)] == []
    assert not wrong or in_words(annotation) == words


class Annotated_(WholeMapStorage):
    def __init__(self, url: str, retries: Annotated[int, AtLeast(0)] = 3, **more: Any) -> None:
        super().__init__()


class Unresolved(WholeMapStorage):
    def __init__(self, url: "Unknown") -> None:
        super().__init__()


class Unsigned(WholeMapStorage):
    __signature__ = "url, retries"


def test_the_options_of_a_storage_of_a_sites_own_are_checked_by_its_annotations(
    module: Modules, settings: Settings
) -> None:
    settings.SESSION_ENGINE = name = module(SessionStore=store_on(Annotated_, "engine_of_somebody"))
    settings.GSESSION = {"ENGINES": {name: {"url": "x", "retries": -1, "anything": object()}}}
    assert "'retries' = -1, which is not a whole number of at least 0" in only("E023").msg
    settings.GSESSION = {"ENGINES": {name: {"url": "x", 5: 1}}}
    assert "has the option 5 = 1, which Annotated_ does not take" in only("E009").msg


def test_annotations_that_cannot_be_resolved_say_nothing(module: Modules, settings: Settings) -> None:
    settings.SESSION_ENGINE = name = module(SessionStore=store_on(Unresolved, "engine_of_somebody"))
    settings.GSESSION = {"ENGINES": {name: {"url": 5}}}
    assert not errors()


def test_a_storage_that_does_not_say_what_it_takes_is_an_error(module: Modules, settings: Settings) -> None:
    settings.SESSION_ENGINE = name = module(SessionStore=store_on(Unsigned, "engine_of_somebody"))
    settings.GSESSION = {"ENGINES": {name: {"url": 5}}}
    message = only("E025")
    assert (
        "Unsigned, the storage of the engine 'engine_of_somebody', does not show which options it takes" in message.msg
    )
    assert "{'url': 5}" in message.msg


# The rest of the settings.


@pytest.mark.parametrize("gsession", [None, 5, "x", [], {1}, object])
@pytest.mark.parametrize("engine", [*OURS.values(), MEMORY])
def test_a_setting_that_is_no_dictionary_is_an_error(tmp_path: Path, engine: str, gsession: Any) -> None:
    with old_site(tmp_path, SESSION_ENGINE=engine), override_settings(GSESSION=gsession):
        assert only_of(check_settings(), "E001").msg == f"GSESSION = {gsession!r} is not a dictionary."
        check_deployment()


@pytest.mark.parametrize("engines", [None, 5, "x", [FILE], {FILE: None}, {FILE: 5}, {5: 5}])
@pytest.mark.parametrize("engine", [*OURS.values(), MEMORY])
def test_options_that_are_no_dictionary_are_an_error(tmp_path: Path, engine: str, engines: Any) -> None:
    with old_site(tmp_path, SESSION_ENGINE=engine, DEBUG=True), override_settings(GSESSION={"ENGINES": engines}):
        assert "does not map engines to their options" in only_of(check_settings(), "E004").msg
        check_deployment()


class Failing(SessionStore):
    storage_class = WholeMapStorage

    @classmethod
    def check(cls) -> list[CheckMessage]:
        raise KeyError("MY_SETTING")

    @classmethod
    def check_deployment(cls) -> list[CheckMessage]:
        raise OSError("no route")


def test_a_check_of_an_engine_that_raises_is_an_error(module: Modules, settings: Settings) -> None:
    settings.SESSION_ENGINE = module(SessionStore=Failing)
    first, second = errors()
    assert {first.id, second.id} == {"gsession_django.E026"}
    said = f"{first.msg} {second.msg}"
    assert f"check() of the engine '{__name__}' raised KeyError: 'MY_SETTING'." in said
    assert f"check_deployment() of the engine '{__name__}' raised OSError: no route." in said


def test_an_engine_under_two_names_is_checked_once_for_deployment(module: Modules, settings: Settings) -> None:
    settings.SESSION_ENGINE = module(SessionStore=file_engine.SessionStore)
    settings.GSESSION = {"ENGINES": {FILE: {}}}
    assert list(_stores_in_use()) == [file_engine.SessionStore]


@pytest.mark.parametrize(
    "name", ["no.such.Serializer", "gsession_django.serializers.NoSerializer", "", ".x", 5, None, "tests.Missing"]
)
def test_a_serializer_that_cannot_be_used_is_one_error(settings: Settings, name: Any) -> None:
    settings.SESSION_SERIALIZER = name
    assert only("E024").msg.startswith(f"SESSION_SERIALIZER = {name!r} cannot be imported: ")


class Locked:
    def __init__(self) -> None:
        raise KeyError("KEY")


def test_so_is_one_that_cannot_be_made(settings: Settings) -> None:
    settings.SESSION_SERIALIZER = f"{__name__}.Locked"
    assert only("E024").msg.startswith(f"SESSION_SERIALIZER = '{__name__}.Locked' cannot be constructed: 'KEY'. Name")


def test_so_is_a_class_that_is_no_serializer(settings: Settings) -> None:
    settings.SESSION_SERIALIZER = "decimal.Decimal"
    assert "SESSION_SERIALIZER = 'decimal.Decimal' cannot be used: it has no dumps()" in only("E024").msg


def test_where_msgspec_is_missing_the_check_says_what_to_install(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    monkeypatch.delitem(sys.modules, "gsession_django.typed", raising=False)
    settings.SESSION_SERIALIZER = "gsession_django.serializers.TypedSerializer"
    assert only("E024").msg == (
        "SESSION_SERIALIZER = 'gsession_django.serializers.TypedSerializer' needs the package msgspec, which is not "
        'installed: pip install "gsession-django[typed]"'
    )
