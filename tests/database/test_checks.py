"""The checks of the database engine."""

from pathlib import Path
from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks
from django.test.utils import override_settings

from tests.support.databases import ENGINE, connected, database, options_for, sqlite_entry


def found(deploy: bool = True) -> list[CheckMessage]:
    return run_checks(tags=["gsession_django"], include_deployment_checks=deploy)


def test_a_database_with_the_table_is_in_order() -> None:
    with database("sqlite") as alias, override_settings(**options_for(alias)):
        assert found() == []


def test_an_unknown_alias_is_an_error_that_names_the_known_ones() -> None:
    with override_settings(**options_for("nowhere")):
        (message,) = found()
    assert message.id == "gsession_django.E016"
    assert f'GSESSION["ENGINES"][{ENGINE!r}]["using"] = \'nowhere\' is not in DATABASES' in message.msg
    assert "'default'" in str(message.hint)


def test_a_missing_table_is_an_error_at_deployment_that_says_how_to_create_it(tmp_path: Path) -> None:
    with connected(sqlite_entry(tmp_path)) as alias, override_settings(**options_for(alias)):
        assert found(deploy=False) == []
        (message,) = found()
    assert message.id == "gsession_django.E017"
    assert f"manage.py migrate gsession_django --database {alias}." in str(message.hint)


def test_a_database_that_cannot_be_asked_is_a_warning(tmp_path: Path) -> None:
    with connected(sqlite_entry(tmp_path / "missing")) as alias, override_settings(**options_for(alias)):
        (message,) = found()
    assert message.id == "gsession_django.W007"
    assert f"DATABASES[{alias!r}]" in message.msg


@pytest.mark.parametrize(
    ("gsession", "check_id"), [([], "E001"), ({"ENGINES": ["x"]}, "E004"), ({"ENGINES": {ENGINE: ["x"]}}, "E004")]
)
def test_settings_that_cannot_hold_the_option_are_an_error_and_no_exception(gsession: Any, check_id: str) -> None:
    with override_settings(SESSION_ENGINE=ENGINE, GSESSION=gsession):
        assert found(deploy=False)[0].id == found()[0].id == f"gsession_django.{check_id}"
