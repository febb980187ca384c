"""The system checks of the settings about users' sessions."""

from typing import Any

import pytest
from django.core.checks import CheckMessage
from django.test import override_settings

from gsession_django.user_checks import check_settings


def messages(**given: Any) -> list[CheckMessage]:
    with override_settings(SESSION_ENGINE="gsession_django.backends.memory", GSESSION=given):
        return check_settings()


def ids(**given: Any) -> list[str | None]:
    return [message.id for message in messages(**given)]


@pytest.mark.parametrize("key", ["ANONYMOUS_AGE", "MAX_SESSIONS_PER_USER"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True])
def test_a_number_has_to_be_whole_and_positive(key: str, value: Any) -> None:
    (message,) = messages(**{key: value})
    assert message.id == "gsession_django.E029"
    assert f"GSESSION[{key!r}] = {value!r}" in message.msg


@pytest.mark.parametrize("key", ["REFUSE_SIGN_IN", "RECORD_CLIENT"])
def test_a_switch_is_true_or_false(key: str) -> None:
    assert ids(**{key: "yes"}) == ["gsession_django.E030"]


def test_a_sign_in_cannot_be_refused_without_a_limit() -> None:
    assert ids(REFUSE_SIGN_IN=True) == ["gsession_django.E031"]


def test_a_limit_needs_an_engine_that_lists_sessions() -> None:
    for engine in ("tests.support.engine_that_keeps_pairs", "django.contrib.sessions.backends.db"):
        with override_settings(SESSION_ENGINE=engine, GSESSION={"MAX_SESSIONS_PER_USER": 3}):
            assert [message.id for message in check_settings()] == ["gsession_django.E032"]


def test_what_is_right_passes() -> None:
    assert ids() == []
    assert ids(ANONYMOUS_AGE=600, MAX_SESSIONS_PER_USER=3, REFUSE_SIGN_IN=True, RECORD_CLIENT=True) == []
    with override_settings(GSESSION="wrong"):
        assert check_settings() == []
