"""The part of StorageContract on the storage as a Django session engine, as visitors meet it."""

import threading
from collections.abc import Callable
from typing import Final

from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.base import UpdateError

from gsession_django.core.store import SessionStore
from gsession_django.testing.case import ContractCase
from gsession_django.testing.threads import TIMEOUT, in_threads

THREADS: Final = 8
_ROUNDS: Final = 5


class Visitors(ContractCase):
    """The storage as a Django session engine."""

    def test_a_session_that_was_cleared_stays_cleared(self) -> None:
        key = self.visitor({"one": 1, "two": {"nested": 2}})
        store = self.store_class(key)
        store.clear()
        store["three"] = 3
        store.save()
        self.finds(key, {"three": 3}, "clear(), a new key and save()")

    def test_a_session_that_was_emptied_is_still_a_session(self) -> None:
        key = self.visitor({"one": 1})
        for clear in (False, True):
            store = self.store_class(key)
            if clear:
                store.clear()
            else:
                del store["one"]
            store.save()
            if not self.store_class().exists(key):
                self.wrong("After save() of an empty session, SessionStore.exists()", False, "True")
            self.finds(key, {}, "save() of an empty session")
            store["one"] = 1
            store.save()
            self.finds(key, {"one": 1}, "save() of a session that had been saved empty")

    def test_changes_made_in_place_are_saved(self) -> None:
        key = self.visitor({"cart": {"apple": {"count": 1}}, "list": [1]})
        store = self.store_class(key)
        store["cart"]["apple"]["count"] = 2
        store["list"].append(2)
        self.assertTrue(store.modified, "SessionStore.modified should be True: the request changed values in place.")
        store.save()
        self.finds(key, {"cart": {"apple": {"count": 2}}, "list": [1, 2]}, "save() of values changed in place")

    def test_cycle_key_keeps_the_data_and_ends_the_old_key(self) -> None:
        old = self.visitor({"key": {"nested": 1}})
        store = self.store_class(old)
        store.cycle_key()
        store["more"] = 1
        store.save()
        self.assertNotEqual(store.session_key, old, "cycle_key() should give the session a new key.")
        self.finds(store.session_key, {"key": {"nested": 1}, "more": 1}, "cycle_key() and save()")
        if store.exists(old):
            self.wrong("After cycle_key(), SessionStore.exists() of the old key", True, "False")

    def test_parallel_writers_of_their_own_keys_lose_nothing(self) -> None:
        key = self.visitor({"start": 1})

        def write(store: SessionStore, writer: int, turn: int) -> None:
            store[f"{writer}-{turn}"] = turn

        self._in_parallel(key, write)
        self._kept(len(self.reread(key)) - 1, "a key of its own")

    def test_parallel_writers_of_one_dict_lose_nothing(self) -> None:
        key = self.visitor({"cart": {}})

        def write(store: SessionStore, writer: int, turn: int) -> None:
            store["cart"][f"{writer}-{turn}"] = turn

        self._in_parallel(key, write)
        self._kept(len(self.reread(key)["cart"]), "an item of one dict")

    def _kept(self, count: int, each: str) -> None:
        wanted = THREADS * _ROUNDS
        self.assertEqual(
            count,
            wanted,
            f"{wanted} requests, {THREADS} at a time, each saved {each}. The session should have {wanted}, and has "
            f"{count}.",
        )

    def _in_parallel(self, key: str, write: Callable[[SessionStore, int, int], None]) -> None:
        """Make requests overlap: in each round every one reads the session before the first one saves it."""
        barrier = threading.Barrier(THREADS, timeout=3 * TIMEOUT)

        def work(writer: int) -> None:
            for turn in range(_ROUNDS):
                store = self.store_class(key)
                store.get("start")
                write(store, writer, turn)
                barrier.wait()
                store.save()
                barrier.wait()

        in_threads(THREADS, work, barrier)

    def test_a_session_deleted_meanwhile_stays_deleted(self) -> None:
        for ending in ("save", "touch", "cycle"):
            with self.subTest(ending):
                # Signed in: for anybody else cycle_key() would make a new session.
                key = self.visitor({"key": 1, SESSION_KEY: "1"})
                store = self.store_class(key)
                self.assertEqual(store["key"], 1)
                self.store_class(key).flush()
                if ending == "cycle":
                    store.cycle_key()
                if ending != "touch":
                    store["key"] = 2
                try:
                    store.save()
                    raised = False
                except UpdateError:
                    raised = True
                says = "update_ttl" not in self.able or self.storage.update_ttl(self.new_id(), 60) is False
                if ending != "touch" or says:
                    self.assertTrue(raised, "save() of a session that was deleted meanwhile should raise UpdateError.")
                for gone in (key, store.session_key):
                    if gone is not None and store.exists(gone):
                        self.wrong(f"After flush() and a {ending}, SessionStore.exists()", True, "False")
                self.finds(key, {}, f"flush() by one request and a {ending} by another")
