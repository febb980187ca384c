"""The part of StorageContract on the extensions, except ``purge`` and parallel calls."""

from gsession_django.core.session_map import SessionMap
from gsession_django.testing.case import ContractCase, needs
from gsession_django.testing.reading import MALFORMED_IDS


class Extensions(ContractCase):
    """``exists``, ``create``, ``apply``, ``move`` and ``ids``."""

    @needs("exists")
    def test_exists_says_whether_there_is_a_session(self) -> None:
        self.expect(True, "exists", self.put({}), because="a session without pairs is a session")
        self.expect(False, "exists", self.new_id(), because="there is no such session")
        self.expect(False, "exists", self.put({"key": 1}, ttl=0), because="the session has expired")

    @needs("create")
    def test_create_overwrites_no_session_but_an_expired_one(self) -> None:
        taken, expired = self.put({"key": 1}), self.put({"key": 1}, ttl=0)
        self.expect(False, "create", taken, SessionMap({"key": 2}), 60, because="the id is taken")
        self.holds(taken, {"key": 1}, "create() of an id that is taken")
        self.expect(True, "create", expired, SessionMap({"key": 2}), 60, because="the session of this id has expired")
        self.holds(expired, {"key": 2}, "create() of an id whose session had expired")

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
        self.expect(True, "apply", session_id, other, 60)
        self.expect(True, "apply", session_id, one, 60)
        wanted = {"cart": {"apple": 2, "plum": 1}, "keep": 1, "theirs": 1, "mine": 1}
        self.holds(session_id, wanted, "apply() by two requests that had read the same session")

    @needs("apply")
    def test_apply_without_a_change_changes_nothing(self) -> None:
        session_id = self.put({"key": 1})
        held = self.held(session_id)
        self.expect(True, "apply", session_id, self.held_with(session_id, "other", 2), 60)
        self.expect(True, "apply", session_id, held, 60)
        self.holds(session_id, {"key": 1, "other": 2}, "apply() of a change, and apply() by a request without one")

    @needs("apply")
    def test_apply_can_be_repeated_by_one_request(self) -> None:
        session_id = self.put({})
        held = self.held(session_id)
        for number in range(3):
            held[f"mine {number}"] = number
            self.expect(True, "apply", session_id, held, 60)
            held.saved()
            self.expect(True, "apply", session_id, self.held_with(session_id, f"other {number}", number), 60)
        wanted = {f"{who} {n}": n for who in ("mine", "other") for n in range(3)}
        self.holds(session_id, wanted, "apply() by two requests in turn, three times each")

    @needs("apply")
    def test_apply_of_a_cleared_session_drops_what_others_wrote_too(self) -> None:
        session_id = self.put({"key": 1})
        held = self.held(session_id)
        self.expect(True, "apply", session_id, self.held_with(session_id, "other", 2), 60)
        held.clear()
        held["new"] = 3
        self.expect(True, "apply", session_id, held, 60)
        self.holds(session_id, {"new": 3}, "apply() of a session that was cleared and then given a key")

    @needs("apply")
    def test_apply_brings_nothing_back(self) -> None:
        removed, expired = self.put({"key": 1}), self.put({"key": 1}, ttl=0)
        changed, cleared = self.held_with(removed, "key", 2), self.held(removed)
        cleared.clear()
        self.call("remove_all", removed)
        for session_id, gone in (removed, "was removed"), (expired, "has expired"):
            for session in (changed, cleared, SessionMap({"key": 1})):
                self.expect(False, "apply", session_id, session, 60, because=f"the session {gone}")
            self.holds(session_id, None, f"apply() of a session that {gone}")

    @needs("move")
    def test_move_gives_the_session_a_new_id(self) -> None:
        old, new = self.put({"key": {"nested": 1}}), self.new_id()
        self.expect(True, "move", old, new, 60)
        self.expect(True, "move", old, new, 60, because="this repeats a move that was done")
        self.holds(old, None, "move() to another id")
        self.holds(new, {"key": {"nested": 1}}, "move() to this id")

    @needs("move")
    def test_move_of_a_session_that_is_gone_stores_nothing(self) -> None:
        for old in (self.new_id(), self.put({"key": 1}, ttl=0), *MALFORMED_IDS):
            new = self.new_id()
            self.expect(False, "move", old, new, 60, because="there is no session of the first id")
            self.holds(new, None, "move() of a session that is gone to this id")

    @needs("move")
    def test_move_takes_no_id_from_another_session(self) -> None:
        old, taken = self.put({"key": 1}), self.put({"key": 2})
        self.expect(False, "move", old, taken, 60, because="the second id is taken")
        self.holds(taken, {"key": 2}, "move() of another session to this id")
        self.holds(old, {"key": 1}, "move() to an id that is taken")

    @needs("ids")
    def test_ids_are_those_of_the_live_sessions(self) -> None:
        live, expired = {self.put({}), self.put({"key": 1})}, self.put({"key": 1}, ttl=0)
        found, call = list(self.storage.ids()), self.named("ids")
        if not live <= set(found):
            self.wrong(call, found, f"the ids {shown_ids(live)} too", "these sessions live")
        if expired in found:
            self.wrong(call, found, f"the ids without {expired!r}", "that session has expired")
        if len(found) > len(set(found)):
            self.wrong(call, found, "each id once")


def shown_ids(ids: set[str]) -> str:
    return " and ".join(map(repr, sorted(ids)))
