"""StorageContract: every engine keeps it, and a storage that breaks a rule fails it."""

import os
import re
import subprocess
import sys
import tempfile

from django.test import SimpleTestCase, override_settings

from gsession_django.backends import file, memory
from gsession_django.testing import StorageContract
from tests.clock import moved_clock
from tests.storages import (
    AsyncPerKeyStorage,
    AsyncStorage,
    CompleteStorage,
    OwnIdsStorage,
    PairsOnlyStorage,
    PerKeyStorage,
    WholeMapStorage,
    engine,
)


class EngineContract(StorageContract):
    def setUp(self) -> None:
        self.clock = self.enterContext(moved_clock())
        self.enterContext(override_settings(SESSION_FILE_PATH=self.enterContext(tempfile.TemporaryDirectory())))
        super().setUp()

    def advance(self, seconds: float) -> None:
        self.clock.offset += seconds


class MemoryTests(EngineContract, SimpleTestCase):
    store_class = memory.SessionStore


class FileTests(EngineContract, SimpleTestCase):
    store_class = file.SessionStore


class WholeMapTests(EngineContract, SimpleTestCase):
    store_class = engine(WholeMapStorage)


class PerKeyTests(EngineContract, SimpleTestCase):
    store_class = engine(PerKeyStorage)


class CompleteTests(EngineContract, SimpleTestCase):
    store_class = engine(CompleteStorage)


class OwnIdsTests(EngineContract, SimpleTestCase):
    store_class = engine(OwnIdsStorage)


class PairsOnlyTests(EngineContract, SimpleTestCase):
    store_class = engine(PairsOnlyStorage)


class AsyncTests(EngineContract, SimpleTestCase):
    store_class = engine(AsyncStorage)


class AsyncPerKeyTests(EngineContract, SimpleTestCase):
    store_class = engine(AsyncPerKeyStorage)


def test_it_runs_under_djangos_test_runner() -> None:
    command = [sys.executable, "-m", "django", "test", "--settings=tests.settings", "tests.test_contract.MemoryTests"]
    # The name of a test is imported from where the command is run.
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ran = re.search(r"Ran (\d+) tests", done.stderr)
    assert ran is not None
    assert int(ran[1]) > 25
