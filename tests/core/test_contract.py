"""Every engine passes StorageContract, and a storage that breaks a rule fails it."""

import os
import re
import subprocess
import sys
import tempfile
import types
import unittest
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.contrib.sessions.backends.cache import SessionStore as DjangoStore
from django.core.exceptions import ImproperlyConfigured
from django.test import SimpleTestCase, override_settings

from gsession_django import SessionMap, SessionStore
from gsession_django.backends import file, memory
from gsession_django.testing import StorageContract
from tests.support.clock import moved_clock
from tests.support.storages import (
    AsyncPerKeyStorage,
    AsyncStorage,
    CompleteStorage,
    IndexedStorage,
    OwnIdsStorage,
    PairsOnlyStorage,
    PerKeyStorage,
    UserColumnStorage,
    WholeMapStorage,
    engine,
)


class EngineContract(StorageContract):
    def setUp(self) -> None:
        self.clock = self.enterContext(moved_clock())
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.enterContext(override_settings(SESSION_FILE_PATH=str(self.folder)))
        super().setUp()

    def advance(self, seconds: float) -> None:
        self.clock.offset += seconds


class MemoryTests(EngineContract, SimpleTestCase):
    store_class = memory.SessionStore


class FileTests(EngineContract, SimpleTestCase):
    store_class = file.SessionStore

    @contextmanager
    def outage(self) -> Iterator[None]:
        away = self.folder.rename(f"{self.folder}-away")
        try:
            yield
        finally:
            away.rename(self.folder)


class WholeMapTests(EngineContract, SimpleTestCase):
    store_class = engine(WholeMapStorage)


class PerKeyTests(EngineContract, SimpleTestCase):
    store_class = engine(PerKeyStorage)


class CompleteTests(EngineContract, SimpleTestCase):
    store_class = engine(CompleteStorage)


class IndexedTests(EngineContract, SimpleTestCase):
    store_class = engine(IndexedStorage)


class UserColumnTests(EngineContract, SimpleTestCase):
    store_class = engine(UserColumnStorage)


class OwnIdsTests(EngineContract, SimpleTestCase):
    store_class = engine(OwnIdsStorage)


class PairsOnlyTests(EngineContract, SimpleTestCase):
    store_class = engine(PairsOnlyStorage)


class AsyncTests(EngineContract, SimpleTestCase):
    store_class = engine(AsyncStorage)


class AsyncPerKeyTests(EngineContract, SimpleTestCase):
    store_class = engine(AsyncPerKeyStorage)


class EndsAtOnceStorage(CompleteStorage):
    """Its medium ends a session with a TTL of zero as it is stored."""

    def put(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        if ttl > 0:
            super().put(session_id, data, ttl)
        else:
            self.medium.rows.pop(session_id, None)

    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        return super().create(session_id, session, ttl) and ttl > 0


class EndsAtOnceTests(EngineContract, SimpleTestCase):
    store_class = engine(EndsAtOnceStorage)


class KnowsItsOwnIdsStorage(CompleteStorage):
    """Takes only ids that it has made."""

    hash_ids = False
    number = re.compile(r"made-here-[0-9]{8}")

    def put(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        if not self.number.fullmatch(session_id) or int(session_id[-8:]) > self.made:
            raise AssertionError(f"{session_id!r} is no id of this storage")
        super().put(session_id, data, ttl)


class KnowsItsOwnIdsTests(EngineContract, SimpleTestCase):
    store_class = engine(KnowsItsOwnIdsStorage)


def names_of(case: type[unittest.TestCase]) -> set[str]:
    return set(unittest.TestLoader().getTestCaseNames(case))


def test_a_subclass_tests_the_methods_of_its_storage() -> None:
    class MoreTests(WholeMapTests):
        store_class = engine(CompleteStorage)

    assert names_of(MoreTests) == names_of(CompleteTests)
    assert "test_apply_brings_nothing_back" in names_of(MoreTests) - names_of(WholeMapTests)


def test_a_test_that_an_author_removes_stays_removed() -> None:
    class Without(CompleteTests):
        test_apply_brings_nothing_back = None  # type: ignore[assignment]

    class StillWithout(Without):
        pass

    assert names_of(StillWithout) == names_of(CompleteTests) - {"test_apply_brings_nothing_back"}


def problem_of(case: type[unittest.TestCase], test: str = "test_an_unknown_session_is_none") -> str:
    """Run a test, and return its last sentence."""
    result = unittest.TestResult()
    unittest.TestSuite([case(test)]).run(result)
    ((_, problem),) = result.errors + result.failures
    return problem.strip().splitlines()[-1].partition(": ")[2]


def contract_test(store_class: Any = None) -> type[unittest.TestCase]:
    """Return a contract test without a name here, so pytest does not collect it."""
    return type(
        "MyTests", (StorageContract, SimpleTestCase), {} if store_class is None else {"store_class": store_class}
    )


IS_A_STORAGE = (
    "MyTests.store_class is the storage WholeMapStorage. Set it to the engine's SessionStore, which names "
    "WholeMapStorage as its storage_class."
)


@pytest.mark.parametrize(
    ("store_class", "says"),
    [
        (None, "MyTests.store_class is not set. Set it to the SessionStore in the engine's module."),
        *((storage, IS_A_STORAGE) for storage in (WholeMapStorage, WholeMapStorage())),
        (
            DjangoStore,
            (
                f"MyTests.store_class is {DjangoStore!r}. Set it to the engine's SessionStore, a subclass of "
                "gsession_django.SessionStore."
            ),
        ),
        (
            SessionStore,
            (
                "MyTests.store_class is SessionStore, whose storage_class is None. Set storage_class to the class of "
                "the storage, a subclass of gsession_django.Storage."
            ),
        ),
    ],
)
def test_a_wrong_store_class_is_reported_in_one_sentence(store_class: Any, says: str) -> None:
    assert problem_of(contract_test(store_class)) == says


def test_a_missing_call_of_set_up_is_reported_in_one_sentence() -> None:
    class MyTests(StorageContract, SimpleTestCase):
        store_class = memory.SessionStore

        def setUp(self) -> None:
            pass

    assert problem_of(MyTests) == "Call super().setUp() in MyTests.setUp()."


def test_the_mixin_comes_first() -> None:
    with pytest.raises(
        TypeError, match=r"^Name StorageContract first among the bases of MyTests, before the test case\.$"
    ):
        type("MyTests", (SimpleTestCase, StorageContract), {"store_class": memory.SessionStore})


def test_a_test_case_is_needed() -> None:
    class MyTests(StorageContract):
        store_class = memory.SessionStore

    with pytest.raises(
        ImproperlyConfigured, match=r"as in class MyTests\(StorageContract, django\.test\.SimpleTestCase\)"
    ):
        MyTests().test_an_unknown_session_is_none()


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("mysite.sesions", "which cannot be imported"),
        ("tests.support.clock", "which is not an engine"),
        ("tests.engine_imported", "which only imports the SessionStore"),
        ("gsession_django.backends.memory", "which is the engine of MemoryStorage"),
    ],
)
def test_options_that_do_not_reach_the_engine_are_refused(
    monkeypatch: pytest.MonkeyPatch, module: str, why: str
) -> None:
    class Larger(memory.MemoryStorage):
        pass

    store_class = engine(Larger)
    imported = types.ModuleType("tests.engine_imported")
    vars(imported)["SessionStore"] = store_class
    monkeypatch.setitem(sys.modules, imported.__name__, imported)
    with override_settings(GSESSION={"ENGINES": {module: {"max_sessions": 5}}}):
        assert problem_of(contract_test(store_class)) == (
            f'GSESSION["ENGINES"] has options under {module!r}, {why}. Put the options of Larger '
            "under 'tests.support.storages', the module that defines its SessionStore, or {} if it has none."
        )
    settings: tuple[dict[str, Any], ...] = (
        {},
        {file.__name__: {"fsync": True}},
        {module: {}, store_class.__module__: {}},
    )
    for fine in settings:
        with override_settings(GSESSION={"ENGINES": fine}):
            result = unittest.TestResult()
            contract_test(store_class)("test_an_unknown_session_is_none").run(result)
            assert result.wasSuccessful()


class ApplySaysNone(CompleteStorage):
    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        super().apply(session_id, session, ttl)
        return None  # type: ignore[return-value]


class Forgets(WholeMapStorage):
    def set_session(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        pass


def test_a_failure_names_the_method_its_result_and_the_right_one() -> None:
    problem = problem_of(contract_test(engine(ApplySaysNone)), "test_apply_without_a_change_changes_nothing")
    assert re.fullmatch(
        r"ApplySaysNone\.apply\('[^']+', SessionMap\({'key': 1, 'other': 2}\), 60\) returned None\. "
        r"It should return True\.",
        problem,
    )
    problem = problem_of(contract_test(engine(Forgets)), "test_set_session_replaces_what_was_stored")
    assert problem == (
        "After set_session(id, {'new': 2}, 60), Forgets.get_session() returned None. It should return {'new': 2}."
    )


def test_it_runs_under_djangos_test_runner() -> None:
    command = [
        sys.executable,
        "-m",
        "django",
        "test",
        "--settings=tests.settings",
        "tests.core.test_contract.MemoryTests",
    ]
    # The command imports the test by name from its working folder.
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ran = re.search(r"Ran (\d+) tests", done.stderr)
    assert ran is not None
    assert int(ran[1]) > 25
