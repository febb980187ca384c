"""System checks find wrong settings before a visitor does."""

import os
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks
from django.http import HttpRequest, HttpResponse
from pytest_django import Settings

from gsession_django import SessionStore, Storage
from gsession_django.checks import check_settings
from tests.support.storages import AsyncStorage, IncapableStorage, WholeMapStorage

MEMORY = "gsession_django.backends.memory"


class Half(WholeMapStorage):
    async def aget_session(self, *args: Any) -> Any:
        raise AssertionError("never called")


class AnyOption(WholeMapStorage):
    def __init__(self, **options: Any) -> None:
        super().__init__()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Storage]], str]:
    """Make an importable engine with a storage, and return its module's name."""

    def make(storage_class: type[Storage]) -> str:
        engine = types.ModuleType(f"engine_on_{storage_class.__name__}")
        store = type("SessionStore", (SessionStore,), {"storage_class": storage_class, "__module__": engine.__name__})
        vars(engine)["SessionStore"] = store
        monkeypatch.setitem(sys.modules, engine.__name__, engine)
        return engine.__name__

    return make


def only(messages: list[CheckMessage]) -> CheckMessage:
    assert len(messages) == 1, messages
    return messages[0]


def test_the_defaults_are_in_order(settings: Settings) -> None:
    for name in ("file", "memory"):
        settings.SESSION_ENGINE = f"gsession_django.backends.{name}"
        settings.DEBUG = True
        assert check_settings() == []


def test_they_run_with_djangos(settings: Settings) -> None:
    settings.GSESSION = 5
    assert "gsession_django.E001" in {message.id for message in run_checks()}


@pytest.mark.parametrize(
    "engine", ["django.contrib.sessions.backends.db", "django.contrib.sessions.backends.signed_cookies"]
)
def test_an_engine_of_djangos_is_none_of_our_business(settings: Settings, engine: str) -> None:
    settings.SESSION_ENGINE = engine
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "django.contrib.sessions"]
    assert check_settings() == []


@pytest.mark.parametrize(
    ("gsession", "check_id", "says"),
    [
        ([], "E001", "GSESSION = [] is not a dictionary"),
        ({"ENGINE": {}}, "E002", "GSESSION['ENGINE'] is unknown"),
        ({"TOUCH_INTERVAL": "10"}, "E003", "GSESSION[\"TOUCH_INTERVAL\"] = '10' is not a number of seconds"),
        ({"TOUCH_INTERVAL": -1}, "E003", "= -1 is not"),
        ({"TOUCH_INTERVAL": None}, "E003", "= None is not"),
        ({"TOUCH_INTERVAL": True}, "E003", "= True is not"),
        ({"TOUCH_INTERVAL": float("nan")}, "E003", "= nan is not"),
        ({"ENGINES": ["x"]}, "E004", "GSESSION[\"ENGINES\"] = ['x'] does not map"),
        ({"ENGINES": {MEMORY: None}}, "E004", "does not map engines to their options"),
        (
            {"ENGINES": {"no.such.engine": {}}},
            "E005",
            "names the engine 'no.such.engine', which cannot be imported: No module",
        ),
        ({"ENGINES": {"django.contrib.sessions.backends.file": {}}}, "E006", "is not an engine of gsession_django"),
        (
            {"ENGINES": {"gsession_django.core.conf": {}}},
            "E006",
            "names 'gsession_django.core.conf', which is not an engine",
        ),
        ({"ENGINES": {"gsession_django": {}}}, "E006", "is not an engine"),
        ({"ENGINES": {MEMORY: {"max": 5}}}, "E009", "has the option 'max' = 5, which MemoryStorage does not take"),
    ],
)
def test_what_is_wrong_in_gsession_is_named(settings: Settings, gsession: Any, check_id: str, says: str) -> None:
    settings.DEBUG = True
    settings.GSESSION = gsession
    message = only(check_settings())
    assert message.id == f"gsession_django.{check_id}"
    assert says in message.msg
    assert message.hint


def takes_one(request: HttpRequest) -> HttpResponse:
    raise AssertionError("never called")


def takes_two(request: HttpRequest, exception: Exception) -> HttpResponse:
    raise AssertionError("never called")


async def takes_more(request: HttpRequest, *more: Any) -> HttpResponse:
    raise AssertionError("never called")


@pytest.mark.parametrize(
    ("unavailable", "check_id", "says"),
    [
        ("no.such.view", "E027", "does not name a view: ModuleNotFoundError: No module named 'no'"),
        ("no_module", "E027", "= 'no_module' does not name a view: ImportError"),
        (f"{__name__}.no_view", "E027", 'does not define a "no_view"'),
        (
            f"{__name__}.MEMORY",
            "E027",
            "does not name a view: TypeError: 'gsession_django.backends.memory' cannot be called",
        ),
        (5, "E027", "= 5 does not name a view"),
        (f"{__name__}.takes_one", "E028", "cannot be called with a request and an exception: too many positional"),
        ("django.views.View", "E028", "cannot be called with a request and an exception"),
    ],
)
def test_the_view_for_an_outage_is_one(settings: Settings, unavailable: Any, check_id: str, says: str) -> None:
    settings.GSESSION = {"UNAVAILABLE": unavailable}
    message = only(check_settings())
    assert message.id == f"gsession_django.{check_id}"
    assert says in message.msg
    assert message.hint


@pytest.mark.parametrize("unavailable", [f"{__name__}.takes_two", f"{__name__}.takes_more", "builtins.max", None])
def test_a_view_for_an_outage_that_is_in_order(settings: Settings, unavailable: str | None) -> None:
    """The check leaves a function without a signature alone."""
    settings.GSESSION = {"UNAVAILABLE": unavailable}
    assert check_settings() == []


def test_the_hints_say_what_would_be_right(settings: Settings) -> None:
    settings.DEBUG = True
    settings.GSESSION = {"ENGINES": {MEMORY: {"max": 5}}}
    assert only(check_settings()).hint == "The options of this engine are 'max_sessions', 'hash_ids'."
    settings.GSESSION = {"ENGINE": {}}
    assert (
        only(check_settings()).hint
        == "The keys of GSESSION are 'ENGINES', 'TOUCH_INTERVAL', 'FALLBACK_ENGINE', 'UNAVAILABLE', "
        "'ANONYMOUS_AGE', 'MAX_SESSIONS_PER_USER', 'REFUSE_SIGN_IN', 'RECORD_CLIENT', 'INTERRUPTED'."
    )


def test_a_session_engine_that_cannot_be_imported(settings: Settings) -> None:
    settings.SESSION_ENGINE = "no.such"
    assert only(check_settings()).msg.startswith("SESSION_ENGINE names the engine 'no.such', which cannot be imported")


def test_a_storage_that_cannot_hold_a_session(settings: Settings, module: Callable[..., str]) -> None:
    settings.SESSION_ENGINE = module(IncapableStorage)
    message = only(check_settings())
    assert message.id == "gsession_django.E007"
    assert "it lacks get_session, remove_all, set_session (or set_map, or create and apply)" in message.msg


def test_twins_that_are_missing(settings: Settings, module: Callable[..., str]) -> None:
    settings.SESSION_ENGINE = module(Half)
    message = only(check_settings())
    assert message.id == "gsession_django.W002"
    assert "has some async methods but not aset_session, aremove_all" in message.msg.replace(
        "aremove_all, aset_session", "aset_session, aremove_all"
    )
    settings.SESSION_ENGINE = module(AsyncStorage)
    assert check_settings() == []


class OverridesOne(AsyncStorage):
    def get_session(self, *args: Any) -> Any:
        return super().get_session(*args)


class Counting:
    """A mixin that overrides one method."""

    def remove_all(self, session_id: str) -> None:
        super().remove_all(session_id)  # type: ignore[misc]


class CountingStorage(Counting, AsyncStorage):
    pass


class FromBelow(OverridesOne):
    """Inherits the mistake of its base."""


@pytest.mark.parametrize(
    ("storage_class", "method"),
    [(OverridesOne, "get_session"), (FromBelow, "get_session"), (CountingStorage, "remove_all")],
)
def test_an_override_that_async_requests_go_past(
    settings: Settings, module: Callable[..., str], storage_class: type[Storage], method: str
) -> None:
    settings.SESSION_ENGINE = name = module(storage_class)
    message = only(check_settings())
    assert message.id == "gsession_django.E021"
    assert message.msg == (
        f"{storage_class.__name__}, the storage of the engine {name!r}, overrides {method}() and inherits a{method}() "
        "from AsyncStorage: async requests bypass the override."
    )
    assert message.hint == f"Override a{method}() in the same class."


class OverridesBoth(OverridesOne):
    async def aget_session(self, *args: Any) -> Any:
        return self.get_session(*args)


class Twins:
    """A mixin with native twins for any storage."""

    async def aget_session(self, *args: Any) -> Any:
        return self.get_session(*args)  # type: ignore[attr-defined]

    async def aset_session(self, *args: Any) -> Any:
        return self.set_session(*args)  # type: ignore[attr-defined]

    async def aremove_all(self, *args: Any) -> Any:
        return self.remove_all(*args)  # type: ignore[attr-defined]


class WithMixin(Twins, WholeMapStorage):
    pass


class WithMixinBehind(WholeMapStorage, Twins):
    pass


class OverridesTheTwin(AsyncStorage):
    async def aget_session(self, *args: Any) -> Any:
        return await super().aget_session(*args)


@pytest.mark.parametrize("storage_class", [OverridesBoth, WithMixin, WithMixinBehind, OverridesTheTwin])
def test_twins_that_go_past_nothing(
    settings: Settings, module: Callable[..., str], storage_class: type[Storage]
) -> None:
    settings.SESSION_ENGINE = module(storage_class)
    assert check_settings() == []


def test_a_storage_may_take_any_option(settings: Settings, module: Callable[..., str]) -> None:
    settings.GSESSION = {"ENGINES": {module(AnyOption): {"whatever": 1}}}
    assert check_settings() == []


class OneOption(WholeMapStorage):
    def __init__(self, url: str) -> None:
        super().__init__()


def test_an_option_that_is_missing(settings: Settings, module: Callable[..., str]) -> None:
    settings.SESSION_ENGINE = name = module(OneOption)
    message = only(check_settings())
    assert message.id == "gsession_django.E011"
    assert f"GSESSION[\"ENGINES\"]['{name}'] lacks the option 'url'" in message.msg
    settings.GSESSION = {"ENGINES": {name: {"url": "somewhere"}}}
    assert check_settings() == []


class WholeMapsOnly:
    """A serializer that takes no single value."""

    def dumps(self, obj: dict[str, Any]) -> bytes:
        return ";".join(f"{key}={value}" for key, value in obj.items()).encode()

    def loads(self, data: bytes) -> Any:
        return dict(pair.split("=") for pair in data.decode().split(";"))


class Stringly:
    def dumps(self, obj: Any) -> bytes:
        return str(obj).encode()

    def loads(self, data: bytes) -> Any:
        return data.decode()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("WholeMapsOnly", "cannot take the single value 'text': AttributeError"),
        ("Stringly", "value 1: it gives back '1'"),
    ],
)
def test_a_serializer_that_cannot_take_single_values(settings: Settings, name: str, says: str) -> None:
    settings.SESSION_SERIALIZER = f"tests.site.test_checks.{name}"
    message = only(check_settings())
    assert message.id == "gsession_django.E010"
    assert f"SESSION_SERIALIZER = 'tests.site.test_checks.{name}'" in message.msg
    assert says in message.msg


def test_memory_is_warned_of_in_production(settings: Settings) -> None:
    settings.SESSION_ENGINE = MEMORY
    settings.DEBUG = False
    message = only(check_settings())
    assert message.id == "gsession_django.W001"
    assert "DEBUG is False" in message.msg


def test_a_folder_that_is_not_there(settings: Settings, tmp_path: Any) -> None:
    settings.SESSION_FILE_PATH = tmp_path / "missing"
    message = only(check_settings())
    assert message.id == "gsession_django.E008"
    assert f"SESSION_FILE_PATH = '{tmp_path}/missing': this folder does not exist" in message.msg
    settings.SESSION_FILE_PATH = tmp_path
    assert check_settings() == []


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_to(settings: Settings, tmp_path: Any, mode: int) -> None:
    settings.SESSION_FILE_PATH = tmp_path
    tmp_path.chmod(mode)
    message = only(check_settings())
    assert message.id == "gsession_django.E034"
    assert f"SESSION_FILE_PATH = '{tmp_path}' is open to others" in message.msg
    assert f"its mode is {mode:o}" in message.msg
    for harmless in (0o700, 0o755, 0o1777):
        tmp_path.chmod(harmless)
        assert check_settings() == []


def test_a_folder_of_another_user(settings: Settings, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.SESSION_FILE_PATH = tmp_path
    owner = 12345
    status = os.stat_result((0o40700, 0, 0, 2, owner, owner, 0, 0, 0, 0))
    monkeypatch.setattr(os, "stat", lambda path, **kwargs: status)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    message = only(check_settings())
    assert message.id == "gsession_django.E034"
    assert f"it belongs to the user {owner}, and this process runs as the user {owner + 1}" in message.msg
    for fine in (owner, 0):  # root may run a command for the site
        monkeypatch.setattr(os, "geteuid", lambda fine=fine: fine)
        assert check_settings() == []
