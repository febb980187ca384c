"""The part of StorageContract on the eleven methods: a storage returns stored data, whole and under its id only."""

from typing import Any, Final

from django.contrib.sessions.serializers import JSONSerializer
from django.test.utils import override_settings

from gsession_django.core.session_map import SessionMap
from gsession_django.serializers import DecodeError
from gsession_django.testing.case import ContractCase, needs, shown

VALUES: Final[dict[str, dict[str, Any]]] = {
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
MALFORMED_IDS: Final = [
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


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"bottom": depth}
    for _ in range(depth):
        value = {"down": value, "list": [value]} if depth < 8 else {"down": value}
    return value


class AnotherSerializer(JSONSerializer):
    """Cannot read any stored session, as after a mistake in the settings."""

    def loads(self, data: bytes) -> Any:
        raise ValueError("another serializer wrote this")


class Reading(ContractCase):
    """Whole sessions."""

    def test_an_unknown_session_is_none(self) -> None:
        self.expect(None, "get_session", self.new_id(), 60, None, because="there is no session of this id")

    def test_a_malformed_id_is_an_unknown_session(self) -> None:
        wanted: dict[str, tuple[Any, ...]] = {
            "exists": (False,),
            "get": (None, "key"),
            "get_map": ({},),
            "get_size": (0,),
            "apply": (False, SessionMap({"key": 1}), 60),
        }
        because = "no session has this id"
        for session_id in MALFORMED_IDS:
            with self.subTest(session_id=session_id[:40]):
                self.expect(None, "get_session", session_id, 60, None, because=because)
                for method, (result, *args) in wanted.items():
                    if method in self.able:
                        self.expect(result, method, session_id, *args, because=because)
                if "update_ttl" in self.able and (found := self.call("update_ttl", session_id, 60)):
                    self.wrong(self.named("update_ttl", session_id, 60), found, "False or None", because)
                if "remove" in self.able:
                    self.call("remove", session_id, "key")
                self.call("remove_all", session_id)

    def test_what_is_stored_is_read_back(self) -> None:
        for name, data in {**VALUES, "deep nesting": nested(50), "branches": nested(4)}.items():
            with self.subTest(name):
                self.holds(self.put(data), data, f"storing {name}")

    def test_an_empty_session_is_a_session(self) -> None:
        self.holds(self.put({}), {}, "storing a session without pairs")

    def test_what_cannot_be_read_is_there_and_stays(self) -> None:
        session_id = self.put({"key": "value"})
        changed = SessionMap({})
        changed["new"] = 1
        wanted: dict[str, tuple[bool, tuple[Any, ...]]] = {
            "get_session": (True, (session_id, 60, None)),
            "exists": (True, (session_id,)),
            "create": (False, (session_id, SessionMap({"new": 1}), 60)),
            "apply": (True, (session_id, changed, 60)),
        }
        with override_settings(SESSION_SERIALIZER=f"{__name__}.{AnotherSerializer.__name__}"):
            for method, (there, args) in wanted.items():
                if method not in self.able:
                    continue
                call = self.named(method, *args)
                try:
                    found = self.call(method, *args)
                except DecodeError:
                    continue
                if (found not in (None, False)) is not there:
                    because = "the session exists, but SESSION_SERIALIZER cannot read it"
                    result = "the session" if method == "get_session" else there
                    self.wrong(call, found, f"{result}, or let DecodeError through", because)
        if (self.read(session_id) or {}).get("key") != "value":
            after = "calls with a SESSION_SERIALIZER that cannot read the session, and with the right one again"
            self.holds(session_id, {"key": "value"}, after)

    def test_sessions_do_not_mix(self) -> None:
        ids = [self.put({"number": number}) for number in range(20)]
        for number, session_id in enumerate(ids):
            self.holds(session_id, {"number": number}, "storing 20 sessions")

    def test_what_is_given_is_not_kept(self) -> None:
        data: dict[str, Any] = {"cart": {"apple": 1}, "list": [1]}
        session_id = self.put(data)
        data["cart"]["apple"] = 2
        data["list"].append(2)
        after = "the caller changed the objects that it had given to the storage"
        self.holds(session_id, {"cart": {"apple": 1}, "list": [1]}, after)

    def test_what_is_kept_is_not_handed_out(self) -> None:
        session_id = self.put({"cart": {"apple": 1}})
        found = self.read(session_id)
        assert found is not None
        found["cart"]["apple"] = 2
        self.holds(session_id, {"cart": {"apple": 1}}, "the caller changed the objects that the storage had returned")

    def test_remove_all_removes_the_session_and_no_other(self) -> None:
        one, other = self.put({"one": 1}), self.put({"other": 1})
        self.call("remove_all", one)
        self.call("remove_all", one)
        self.holds(one, None, "remove_all() of this session")
        self.holds(other, {"other": 1}, "remove_all() of another session")

    @needs("set_session")
    def test_set_session_replaces_what_was_stored(self) -> None:
        if "get" in self.able:  # a per-key storage only renews the TTL here
            return
        session_id = self.put({"old": 1})
        self.call("set_session", session_id, {"new": 2}, 60)
        self.holds(session_id, {"new": 2}, "set_session(id, {'new': 2}, 60)")

    @needs("new")
    def test_new_makes_session_keys_that_differ(self) -> None:
        keys = [self.call("new", 60) for _ in range(50)]
        for key in keys:
            if self.store_class(key).session_key != key:
                wanted = "at least 8 characters, all of them letters, digits or one of !#$%&'*+-.^_`|~:"
                self.wrong(self.named("new", 60), key, wanted)
        if len(set(keys)) < 50:
            self.wrong(f"50 calls of {self.named('new', 60)}", keys, "a different key each time")


class Pairs(ContractCase):
    """Single pairs."""

    @needs("get")
    def test_get_returns_one_value(self) -> None:
        session_id = self.put({"cart": {"apple": 1}})
        self.expect({"apple": 1}, "get", session_id, "cart")
        self.call("get", session_id, "cart")["apple"] = 2
        self.expect({"apple": 1}, "get", session_id, "cart", because="the caller changed only its own copy")

    @needs("get")
    def test_get_of_what_is_not_there_is_none(self) -> None:
        self.expect(None, "get", self.put({"key": 1}), "other", because="the session has no such key")
        self.expect(None, "get", self.new_id(), "key", because="there is no such session")

    @needs("get_map")
    def test_get_map_returns_all_pairs(self) -> None:
        data = VALUES["several types"]
        self.expect(data, "get_map", self.put(data))
        self.expect({}, "get_map", self.new_id(), because="there is no such session")

    @needs("get_size")
    def test_get_size_counts_the_pairs(self) -> None:
        self.expect(2, "get_size", self.put({"one": 1, "two": None}), because="the session has two pairs, one is None")
        self.expect(0, "get_size", self.new_id(), because="there is no such session")

    @needs("set")
    def test_set_stores_one_pair_and_keeps_the_others(self) -> None:
        session_id = self.put({"one": 1})
        self.call("set", session_id, "two", {"nested": []}, 60)
        self.holds(session_id, {"one": 1, "two": {"nested": []}}, "set(id, 'two', {'nested': []}, 60)")

    @needs("set_map")
    def test_set_map_stores_pairs_and_keeps_the_others(self) -> None:
        session_id = self.put({"one": 1, "two": 2})
        changes = {"two": [2], "three": 3}
        self.call("set_map", session_id, changes, 60)
        self.holds(session_id, {"one": 1, **changes}, f"set_map(id, {shown(changes)}, 60)")

    @needs("remove")
    def test_remove_removes_one_pair(self) -> None:
        session_id = self.put({"one": 1, "two": 2})
        self.call("remove", session_id, "one")
        self.call("remove", session_id, "nothing")
        self.call("remove", self.new_id(), "one")
        self.holds(session_id, {"two": 2}, "remove(id, 'one') and remove(id, 'nothing')")
