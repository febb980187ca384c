"""The storage of the test site, without the site."""

import tempfile
from pathlib import Path

import pytest
from django.test import SimpleTestCase, override_settings

from gsession_django import StorageUnavailable
from gsession_django.testing import StorageContract
from testproject.sessions import SessionStore, SQLiteStorage

pytestmark = pytest.mark.once


class TestContract(StorageContract, SimpleTestCase):
    store_class = SessionStore

    def setUp(self) -> None:
        folder = self.enterContext(tempfile.TemporaryDirectory())
        options = {"testproject.sessions": {"path": f"{folder}/sessions.sqlite3"}}
        self.enterContext(override_settings(GSESSION={"ENGINES": options}))
        super().setUp()


def test_the_storage_opens_nothing_before_the_first_call(tmp_path: Path) -> None:
    SQLiteStorage(path=str(tmp_path / "sessions.sqlite3"))
    assert not list(tmp_path.iterdir())


def test_file_that_cannot_be_opened_is_not_an_empty_session(tmp_path: Path) -> None:
    storage = SQLiteStorage(path=str(tmp_path / "missing" / "sessions.sqlite3"))
    with pytest.raises(StorageUnavailable, match="unable to open database file"):
        storage.get_session("id", 60)
    with pytest.raises(StorageUnavailable):
        storage.set_session("id", {}, 60)
    with pytest.raises(StorageUnavailable):
        storage.remove_all("id")


def test_purge_removes_expired_sessions_and_counts_each_batch(tmp_path: Path) -> None:
    storage = SQLiteStorage(path=str(tmp_path / "sessions.sqlite3"))
    for number in range(5):
        storage.set_session(f"expired{number}", {}, 0)
    storage.set_session("live", {"key": 1}, 60)
    assert sum(storage.purge(2, dry_run=True)) == 5
    assert list(storage.purge(2)) == [2, 2, 1]
    assert sum(storage.purge(2)) == 0
    assert storage.get_session("live", 60) == {"key": 1}
