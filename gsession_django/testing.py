"""StorageContract: the tests that every storage must pass.

A storage author subclasses it, together with a test case of Django's, in a project of their own::

    from django.test import SimpleTestCase  # TransactionTestCase for a storage in the database
    from gsession_django.testing import StorageContract
    from mysite.sessions import SessionStore

    class MyStorageTests(StorageContract, SimpleTestCase):
        store_class = SessionStore

A storage in SQLite has to be tested in a file (``TEST["NAME"]`` in ``DATABASES``): of a database in memory, which is
Django's default for tests, threads lock tables for each other without waiting.

It runs under ``manage.py test`` and under pytest, and tests whichever methods the storage has; those that it lacks, and
the tests of them, are not there.
"""

import asyncio
import secrets
import threading
import time
import unittest
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.base import UpdateError
from django.db import connections

from gsession_django.engine import abilities, missing_twins
from gsession_django.operations import RESERVED_KEY
from gsession_django.session_map import EXPIRY_KEY, SessionMap
from gsession_django.storage import Storage
from gsession_django.store import SessionStore

F = TypeVar("F", bound=Callable[..., Any])

VALUES: dict[str, dict[str, Any]] = {
    "one pair": {"key": "value"},
    "several types": {"text": "a", "whole": -1, "broken": 1.5, "yes": True, "no": False, "list": [1, "two", None]},
    "None": {"nothing": None},
    "an empty text, list and dict": {"text": "", "list": [], "dict": {}},
    "unicode keys and values": {"ключ": "значение", "鍵": "値", "🔑": "🗝", "\u0000": "\u0000"},
    "quotes and spaces": {"a 'b' \"c\"": "\\ \n \t", "": "empty key", "a:b/c.d*e": "%s {0}"},
    "keys that look like attributes": {"__class__": 1, "_session": 2, "get": 3},
    "a megabyte": {"large": "x" * 1_000_000},
    "a thousand keys": {f"key {number}": number for number in range(1000)},
}
MALFORMED_IDS = [
    "",
    "1",
    ".",
    "..",
    "x" * 10_000,
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "ключ" * 8,
    "A" * 64,
    "a b\n*?[c]",
]
THREADS, ROUNDS = 8, 10


def needs(*methods: str) -> Callable[[F], F]:
    """Mark a test that only a storage with these methods has to pass."""

    def mark(test: F) -> F:
        test.needs = methods  # type: ignore[attr-defined]
        return test

    return mark


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"bottom": depth}
    for _ in range(depth):
        value = {"down": value, "list": [value]} if depth < 8 else {"down": value}
    return value


class StorageContract(unittest.TestCase if TYPE_CHECKING else object):  # type: ignore[misc]
    """Mix it into a test case and say which engine is tested.

    Attributes:
        store_class: the engine's SessionStore.
    """

    store_class: ClassVar[type[SessionStore]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "store_class"):
            return
        able = abilities(cls.store_class.storage_class)
        if not missing_twins(cls.store_class.storage_class):
            able |= {"async"}
        for name in [name for name in dir(cls) if name.startswith("test")]:
            if not set(getattr(getattr(cls, name), "needs", ())) <= able:
                setattr(cls, name, None)

    def setUp(self) -> None:
        super().setUp()
        self.storage: Storage = self.store_class.get_storage()
        self.able = abilities(self.store_class.storage_class)

    def advance(self, seconds: float) -> None:
        """Let time pass. Override it where the clock that the storage goes by can be moved."""
        time.sleep(seconds)

    # What the tests do to a storage, with whichever methods it has.

    def new_id(self) -> str:
        return self.storage.new(60) if "new" in self.able else secrets.token_hex(32)

    def put(self, data: Mapping[str, Any], ttl: int = 60, session_id: str | None = None) -> str:
        """Store a new session and return its id."""
        session_id = session_id or self.new_id()
        if "create" in self.able:
            self.assertTrue(self.storage.create(session_id, SessionMap(dict(data)), ttl), "create() of a new id")
            return session_id
        if "set_map" in self.able:
            per_key = "get" in self.able or "set_session" not in self.able
            self.storage.set_map(session_id, data or ({RESERVED_KEY: True} if per_key else {}), ttl)
        if "set_session" in self.able:
            self.storage.set_session(session_id, data, ttl)
        return session_id

    def read(self, session_id: str) -> dict[str, Any] | None:
        """Return all that is stored under an id; ``None`` when there is no session."""
        found = self.storage.get_session(session_id, 60, None)
        if found is None:
            return None
        partial = found.lacks(None) if isinstance(found, SessionMap) else not found and "get" in self.able
        data = dict(self.storage.get_map(session_id) if partial else found)
        data.pop(RESERVED_KEY, None)
        return data

    def held(self, session_id: str) -> SessionMap:
        """Return a session as a request holds it."""
        found = self.storage.get_session(session_id, 60, None)
        assert found is not None
        return found if isinstance(found, SessionMap) else SessionMap(found)

    def visitor(self, data: Mapping[str, Any], expiry: int | None = None) -> str:
        """Let a visitor have a session, and return its session key."""
        store = self.store_class()
        store.update(data)
        if expiry is not None:
            store.set_expiry(expiry)
        store.save()
        assert store.session_key is not None
        return store.session_key

    def reread(self, session_key: str) -> dict[str, Any]:
        """Return what the visitor's next request finds."""
        return dict(self.store_class(session_key).items())

    # Reading and writing.

    def test_an_unknown_session_is_none(self) -> None:
        self.assertIsNone(self.storage.get_session(self.new_id(), 60, None))

    def test_a_malformed_id_is_an_unknown_session(self) -> None:
        for session_id in MALFORMED_IDS:
            with self.subTest(session_id=session_id[:40]):
                self.assertIsNone(self.storage.get_session(session_id, 60, None))
                self.storage.remove_all(session_id)
                if "exists" in self.able:
                    self.assertFalse(self.storage.exists(session_id))
                if "apply" in self.able:
                    self.assertFalse(self.storage.apply(session_id, SessionMap({}), 60))

    def test_what_is_stored_is_read_back(self) -> None:
        for name, data in {**VALUES, "deep nesting": nested(50), "branches": nested(4)}.items():
            with self.subTest(name):
                self.assertEqual(self.read(self.put(data)), data)

    def test_an_empty_session_is_a_session(self) -> None:
        self.assertEqual(self.read(self.put({})), {})

    def test_sessions_do_not_mix(self) -> None:
        ids = [self.put({"number": number}) for number in range(20)]
        self.assertEqual([self.read(session_id) for session_id in ids], [{"number": n} for n in range(20)])

    def test_what_is_given_is_not_kept(self) -> None:
        data: dict[str, Any] = {"cart": {"apple": 1}, "list": [1]}
        session_id = self.put(data)
        data["cart"]["apple"] = 2
        data["list"].append(2)
        self.assertEqual(self.read(session_id), {"cart": {"apple": 1}, "list": [1]})

    def test_what_is_kept_is_not_handed_out(self) -> None:
        session_id = self.put({"cart": {"apple": 1}})
        found = self.read(session_id)
        assert found is not None
        found["cart"]["apple"] = 2
        self.assertEqual(self.read(session_id), {"cart": {"apple": 1}})

    def test_remove_all_removes_the_session_and_no_other(self) -> None:
        one, other = self.put({"one": 1}), self.put({"other": 1})
        self.storage.remove_all(one)
        self.storage.remove_all(one)
        self.assertIsNone(self.read(one))
        self.assertEqual(self.read(other), {"other": 1})

    @needs("set_session")
    def test_set_session_replaces_what_was_stored(self) -> None:
        if "get" in self.able:  # per key: there it renews the TTL and no more
            return
        session_id = self.put({"old": 1})
        self.storage.set_session(session_id, {"new": 2}, 60)
        self.assertEqual(self.read(session_id), {"new": 2})

    @needs("new")
    def test_new_makes_session_keys_that_differ(self) -> None:
        keys = {self.storage.new(60) for _ in range(50)}
        self.assertEqual(len(keys), 50)
        for key in keys:
            self.assertEqual(self.store_class(key).session_key, key, "not a session key: too short, or not cookie-safe")

    # Pairs.

    @needs("get")
    def test_get_returns_one_value(self) -> None:
        session_id = self.put({"cart": {"apple": 1}})
        self.assertEqual(self.storage.get(session_id, "cart"), {"apple": 1})
        self.storage.get(session_id, "cart")["apple"] = 2
        self.assertEqual(self.storage.get(session_id, "cart"), {"apple": 1})

    @needs("get")
    def test_get_of_what_is_not_there_is_none(self) -> None:
        self.assertIsNone(self.storage.get(self.put({"key": 1}), "other"))
        self.assertIsNone(self.storage.get(self.new_id(), "key"))

    @needs("get_map")
    def test_get_map_returns_all_pairs(self) -> None:
        data = VALUES["several types"]
        self.assertEqual(self.storage.get_map(self.put(data)), data)
        self.assertEqual(self.storage.get_map(self.new_id()), {})

    @needs("get_size")
    def test_get_size_counts_the_pairs(self) -> None:
        self.assertEqual(self.storage.get_size(self.put({"one": 1, "two": None})), 2)
        self.assertEqual(self.storage.get_size(self.new_id()), 0)

    @needs("set")
    def test_set_stores_one_pair_and_keeps_the_others(self) -> None:
        session_id = self.put({"one": 1})
        self.storage.set(session_id, "two", {"nested": []}, 60)
        self.assertEqual(self.read(session_id), {"one": 1, "two": {"nested": []}})

    @needs("set_map")
    def test_set_map_stores_pairs_and_keeps_the_others(self) -> None:
        session_id = self.put({"one": 1, "two": 2})
        self.storage.set_map(session_id, {"two": [2], "three": 3}, 60)
        self.assertEqual(self.read(session_id), {"one": 1, "two": [2], "three": 3})

    @needs("remove")
    def test_remove_removes_one_pair(self) -> None:
        session_id = self.put({"one": 1, "two": 2})
        self.storage.remove(session_id, "one")
        self.storage.remove(session_id, "nothing")
        self.storage.remove(self.new_id(), "one")
        self.assertEqual(self.read(session_id), {"two": 2})

    # The TTL.

    def test_a_session_is_gone_when_its_ttl_is_over(self) -> None:
        short, long = self.put({"key": 1}, ttl=1), self.put({"key": 1}, ttl=60)
        self.advance(1.2)
        self.assertIsNone(self.read(short))
        self.assertEqual(self.read(long), {"key": 1})

    def test_a_ttl_of_zero_or_below_is_over_at_once(self) -> None:
        for ttl in (0, -1, -(10**9)):
            with self.subTest(ttl=ttl):
                self.assertIsNone(self.read(self.put({"key": 1}, ttl=ttl)))

    def test_ttl_left_is_what_the_session_has_to_live(self) -> None:
        found = self.storage.get_session(self.put({"key": 1}, ttl=60), 60, None)
        if isinstance(found, SessionMap) and found.ttl_left is not None:
            self.assertGreater(found.ttl_left, 50)
            self.assertLessEqual(found.ttl_left, 60)

    def test_a_touch_renews_the_ttl_and_keeps_the_data(self) -> None:
        key = self.visitor({"key": {"nested": 1}}, expiry=1)
        with self.subTest("longer"):
            store = self.store_class(key)
            store.set_expiry(60)
            store.save()
            store.save()
            self.advance(1.2)
            self.assertEqual(self.reread(key)["key"], {"nested": 1})

    @needs("update_ttl")
    def test_update_ttl_renews_the_ttl(self) -> None:
        session_id = self.put({"key": 1}, ttl=1)
        self.assertIsNot(self.storage.update_ttl(session_id, 60), False)
        self.advance(1.2)
        self.assertEqual(self.read(session_id), {"key": 1})

    @needs("update_ttl")
    def test_update_ttl_brings_nothing_back(self) -> None:
        unknown, expired = self.new_id(), self.put({"key": 1}, ttl=0)
        for session_id in (unknown, expired):
            self.assertIsNot(self.storage.update_ttl(session_id, 60), True)
            self.assertIsNone(self.read(session_id))

    # The extensions.

    @needs("exists")
    def test_exists_says_whether_there_is_a_session(self) -> None:
        self.assertTrue(self.storage.exists(self.put({})))
        self.assertFalse(self.storage.exists(self.new_id()))
        self.assertFalse(self.storage.exists(self.put({"key": 1}, ttl=0)))

    @needs("create")
    def test_create_overwrites_no_session_but_an_expired_one(self) -> None:
        taken, expired = self.put({"key": 1}), self.put({"key": 1}, ttl=0)
        self.assertFalse(self.storage.create(taken, SessionMap({"key": 2}), 60))
        self.assertEqual(self.read(taken), {"key": 1})
        self.assertTrue(self.storage.create(expired, SessionMap({"key": 2}), 60))
        self.assertEqual(self.read(expired), {"key": 2})

    @needs("apply")
    def test_apply_keeps_what_others_wrote_meanwhile(self) -> None:
        session_id = self.put({"cart": {"apple": 1, "pear": 1}, "keep": 1, "drop": 1})
        one, other = self.held(session_id), self.held(session_id)
        other["cart"]["plum"] = 1
        del other["cart"]["pear"]
        other["theirs"] = 1
        one["cart"]["apple"] = 2
        one["mine"] = 1
        del one["drop"]
        self.assertTrue(self.storage.apply(session_id, other, 60))
        self.assertTrue(self.storage.apply(session_id, one, 60))
        expected = {"cart": {"apple": 2, "plum": 1}, "keep": 1, "theirs": 1, "mine": 1}
        self.assertEqual(self.read(session_id), expected)

    @needs("apply")
    def test_apply_without_a_change_changes_nothing(self) -> None:
        session_id = self.put({"key": 1})
        held = self.held(session_id)
        self.storage.apply(session_id, self._with(session_id, "other", 2), 60)
        self.assertTrue(self.storage.apply(session_id, held, 60))
        self.assertEqual(self.read(session_id), {"key": 1, "other": 2})

    @needs("apply")
    def test_apply_can_be_repeated_by_one_request(self) -> None:
        session_id = self.put({})
        held = self.held(session_id)
        for number in range(3):
            held[f"mine {number}"] = number
            self.assertTrue(self.storage.apply(session_id, held, 60))
            held.saved()
            self.storage.apply(session_id, self._with(session_id, f"other {number}", number), 60)
        found = self.read(session_id)
        self.assertEqual(found, {f"{who} {n}": n for who in ("mine", "other") for n in range(3)})

    @needs("apply")
    def test_apply_of_a_cleared_session_drops_what_others_wrote_too(self) -> None:
        session_id = self.put({"key": 1})
        held = self.held(session_id)
        self.storage.apply(session_id, self._with(session_id, "other", 2), 60)
        held.clear()
        held["new"] = 3
        self.assertTrue(self.storage.apply(session_id, held, 60))
        self.assertEqual(self.read(session_id), {"new": 3})

    @needs("apply")
    def test_apply_brings_nothing_back(self) -> None:
        removed = self.put({"key": 1})
        held = self._with(removed, "key", 2)
        self.storage.remove_all(removed)
        self.assertFalse(self.storage.apply(removed, held, 60))
        held.clear()
        self.assertFalse(self.storage.apply(removed, held, 60), "of a session that was cleared")
        self.assertIsNone(self.read(removed))
        expired = self.put({"key": 1}, ttl=0)
        self.assertFalse(self.storage.apply(expired, SessionMap({"key": 1}), 60))
        self.assertFalse(self.storage.apply(expired, held, 60), "of one that expired, and was cleared")
        self.assertIsNone(self.read(expired))

    @needs("apply")
    def test_apply_renews_the_ttl(self) -> None:
        session_id = self.put({"key": 1}, ttl=1)
        self.assertTrue(self.storage.apply(session_id, self._with(session_id, "key", 2), 60))
        self.advance(1.2)
        self.assertEqual(self.read(session_id), {"key": 2})

    @needs("apply")
    def test_apply_leaves_a_ttl_alone_that_another_request_set(self) -> None:
        session_id = self.put({"key": 1}, ttl=60)
        held = self._with(session_id, "key", 2)
        self.storage.apply(session_id, self._with(session_id, EXPIRY_KEY, 1), 1)
        self.assertTrue(self.storage.apply(session_id, held, 60))
        self.assertEqual(self.read(session_id), {"key": 2, EXPIRY_KEY: 1})
        self.advance(1.2)
        self.assertIsNone(self.read(session_id))

    @needs("move")
    def test_move_gives_the_session_a_new_id(self) -> None:
        old, new = self.put({"key": {"nested": 1}}, ttl=60), self.new_id()
        self.assertTrue(self.storage.move(old, new, 60))
        self.assertTrue(self.storage.move(old, new, 60), "a second try of a move that was done")
        self.assertIsNone(self.read(old))
        self.advance(1.2)
        self.assertEqual(self.read(new), {"key": {"nested": 1}})

    @needs("move")
    def test_move_of_a_session_that_is_gone_stores_nothing(self) -> None:
        for old in (self.new_id(), self.put({"key": 1}, ttl=0), *MALFORMED_IDS):
            new = self.new_id()
            self.assertFalse(self.storage.move(old, new, 60))
            self.assertIsNone(self.read(new))

    @needs("move")
    def test_move_takes_no_id_from_another_session(self) -> None:
        old, taken = self.put({"key": 1}), self.put({"key": 2})
        self.assertFalse(self.storage.move(old, taken, 60))
        self.assertEqual(self.read(taken), {"key": 2})

    @needs("purge")
    def test_purge_removes_expired_sessions_and_no_others(self) -> None:
        for _ in self.storage.purge(1000):
            pass
        live, expired = [self.put({"key": n}) for n in range(3)], [self.put({"key": n}, ttl=0) for n in range(5)]
        self.assertEqual(sum(self.storage.purge(1000, dry_run=True)), 5, "a dry run")
        steps = list(self.storage.purge(2))
        self.assertEqual(sum(steps), 5)
        self.assertLessEqual(max(steps), 2, "more than batch_size at once")
        self.assertEqual(sum(self.storage.purge(1000)), 0, "a second purge")
        self.assertEqual([self.read(session_id) for session_id in live], [{"key": n} for n in range(3)])
        self.assertEqual([self.read(session_id) for session_id in expired], [None] * 5)

    @needs("ids")
    def test_ids_are_those_of_the_live_sessions(self) -> None:
        live, expired = {self.put({}), self.put({"key": 1})}, self.put({"key": 1}, ttl=0)
        found = list(self.storage.ids())
        self.assertLessEqual(live, set(found))
        self.assertNotIn(expired, found)
        self.assertEqual(len(found), len(set(found)))

    def _with(self, session_id: str, key: str, value: Any) -> SessionMap:
        held = self.held(session_id)
        held[key] = value
        return held

    # As a Django session engine.

    def test_a_session_that_was_cleared_stays_cleared(self) -> None:
        key = self.visitor({"one": 1, "two": {"nested": 2}})
        store = self.store_class(key)
        store.clear()
        store["three"] = 3
        store.save()
        self.assertEqual(self.reread(key), {"three": 3})

    def test_a_session_that_was_emptied_is_still_a_session(self) -> None:
        key = self.visitor({"one": 1})
        for clear in (False, True):
            store = self.store_class(key)
            if clear:
                store.clear()
            else:
                del store["one"]
            store.save()
            self.assertTrue(self.store_class().exists(key))
            self.assertEqual(self.reread(key), {})
            store["one"] = 1
            store.save()
            self.assertEqual(self.reread(key), {"one": 1})

    def test_changes_made_in_place_are_saved(self) -> None:
        key = self.visitor({"cart": {"apple": {"count": 1}}, "list": [1]})
        store = self.store_class(key)
        store["cart"]["apple"]["count"] = 2
        store["list"].append(2)
        self.assertTrue(store.modified)
        store.save()
        self.assertEqual(self.reread(key), {"cart": {"apple": {"count": 2}}, "list": [1, 2]})

    def test_cycle_key_keeps_the_data_and_ends_the_old_key(self) -> None:
        old = self.visitor({"key": {"nested": 1}})
        store = self.store_class(old)
        store.cycle_key()
        store["more"] = 1
        store.save()
        assert store.session_key is not None
        self.assertNotEqual(store.session_key, old)
        self.assertEqual(self.reread(store.session_key), {"key": {"nested": 1}, "more": 1})
        self.assertFalse(store.exists(old))

    def test_parallel_writers_of_their_own_keys_lose_nothing(self) -> None:
        key = self.visitor({"start": 1})

        def write(store: SessionStore, writer: int, turn: int) -> None:
            store[f"{writer}-{turn}"] = turn

        self._in_parallel(key, write)
        self.assertEqual(len(self.reread(key)), 1 + THREADS * ROUNDS)

    def test_parallel_writers_of_one_dict_lose_nothing(self) -> None:
        key = self.visitor({"cart": {}})

        def write(store: SessionStore, writer: int, turn: int) -> None:
            store["cart"][f"{writer}-{turn}"] = turn

        self._in_parallel(key, write)
        self.assertEqual(len(self.reread(key)["cart"]), THREADS * ROUNDS)

    def _in_parallel(self, key: str, write: Callable[[SessionStore, int, int], None]) -> None:
        """Let requests overlap for certain: in each round all have read the session before one saves it."""
        barrier = threading.Barrier(THREADS, timeout=60)

        def work(writer: int) -> None:
            try:
                for turn in range(ROUNDS):
                    store = self.store_class(key)
                    store.get("start")
                    write(store, writer, turn)
                    barrier.wait()
                    store.save()
                    barrier.wait()
            except BaseException:
                barrier.abort()  # or the others would wait for it, and their errors hide this one
                raise
            finally:
                connections.close_all()  # a thread has connections of its own, if the sessions are in a database

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(work, range(THREADS)))

    def test_a_session_deleted_meanwhile_stays_deleted(self) -> None:
        for ending in ("save", "touch", "cycle"):
            with self.subTest(ending):
                key = self.visitor({"key": 1, SESSION_KEY: "1"})  # signed in, or cycle_key() makes a new session
                store = self.store_class(key)
                self.assertEqual(store["key"], 1)
                self.store_class(key).flush()
                if ending == "cycle":
                    store.cycle_key()
                if ending != "touch":
                    store["key"] = 2
                    self.assertRaises(UpdateError, store.save)
                elif "update_ttl" not in self.able or self.storage.update_ttl(self.new_id(), 60) is False:
                    self.assertRaises(UpdateError, store.save)
                else:
                    store.save()
                self.assertFalse(store.exists(key))
                self.assertEqual(self.reread(key), {})
                assert ending != "cycle" or not store.exists(store.session_key)

    # Async.

    @needs("async")
    def test_the_async_twins_do_what_the_others_do(self) -> None:
        asyncio.run(self._use_async())

    async def _use_async(self) -> None:
        store = self.store_class()
        await store.aset("cart", {"apple": 1})
        await store.asave()
        key = store.session_key
        assert key is not None
        requests = [self.store_class(key) for _ in range(THREADS)]
        for number, request in enumerate(requests):
            (await request.aget("cart"))[f"item {number}"] = number
        await asyncio.gather(*(request.asave() for request in requests))
        store = self.store_class(key)
        self.assertEqual(len(await store.aget("cart")), 1 + THREADS)
        self.assertEqual(await store.aget("nothing", 5), 5)
        await store.acycle_key()
        await store.asave()
        self.assertFalse(await store.aexists(key))
        self.assertTrue(await store.aexists(store.session_key))
        late = self.store_class(store.session_key)
        await late.aset("late", 1)
        await store.aflush()
        with self.assertRaises(UpdateError):
            await late.asave()
        self.assertEqual(dict(await self.store_class(late.session_key).aitems()), {})
