"""Whose sessions: the part of StorageContract on the index from users to sessions."""

import secrets
from collections.abc import Collection
from typing import Final

from django.contrib.auth import SESSION_KEY

from gsession_django.testing.case import ContractCase, needs

# What comes before a part that is random, so that no other test has the same user.
_USERS: Final = (
    "",
    "7 ",
    " 7",
    "../../etc/passwd",
    "a/b\\c",
    "NUL\0",
    "ÄÖ 用户 🙂",
    "\ud800",
    "A" * 300,
    "%_*?[",
    "\n",
)


class Users(ContractCase):
    """``sessions_of``, ``add_to_user`` and ``remove_from_user``."""

    def new_user(self, name: str = "") -> str:
        """Return the id of a user who has no session."""
        return f"{secrets.randbits(40)}{name}"

    def signed_in(self, user_id: str, ttl: int = 60, session_id: str | None = None) -> str:
        """Store a new session in which a user is signed in, as the adapter does, and return its id."""
        session_id = session_id or self.new_id()
        self._add(user_id, session_id, ttl)
        return self.put({SESSION_KEY: user_id}, ttl, session_id)

    def _add(self, user_id: str, session_id: str, ttl: int = 60) -> None:
        if "add_to_user" in self.able:
            self.call("add_to_user", user_id, session_id, 2 * ttl)

    def _take_out(self, user_id: str, session_id: str) -> None:
        if "remove_from_user" in self.able:
            self.call("remove_from_user", user_id, session_id, False)

    def lists(self, user_id: str, wanted: Collection[str], after: str, gone: Collection[str] = ()) -> None:
        """Ask for the sessions of a user, of which those that are `gone` may be listed still."""
        found, prefix = set(self.call("sessions_of", user_id)), "" if self._runner is None else "a"
        if not set(wanted) <= found <= {*wanted, *gone}:
            call = f"After {after}, {type(self.storage).__name__}.{prefix}sessions_of({user_id!r})"
            self.wrong(call, sorted(found), f"the ids {sorted(wanted)}")

    @needs("sessions_of")
    def test_an_unknown_user_has_no_sessions(self) -> None:
        self.signed_in(self.new_user())
        self.put({"key": 1})
        for name in _USERS:
            self.lists(self.new_user(name), (), "sign-ins of others")

    @needs("sessions_of")
    def test_a_session_is_listed_among_those_of_its_user(self) -> None:
        user, other = self.new_user(), self.new_user()
        self.lists(user, (), "nothing")
        mine = {self.signed_in(user) for _ in range(3)}
        theirs = {self.signed_in(other)}
        self.lists(user, mine, "three sign-ins")
        self.lists(other, theirs, "a sign-in")

    @needs("sessions_of")
    def test_a_user_id_may_be_any_text(self) -> None:
        base = self.new_user()
        signed_in = {f"{base}{name}": self.signed_in(f"{base}{name}") for name in _USERS}
        for user, session_id in signed_in.items():
            self.lists(user, {session_id}, "a sign-in")
            self._take_out(user, session_id)
            self.call("remove_all", session_id)
            self.lists(user, (), "remove_all()", gone={session_id} if "remove_from_user" not in self.able else ())

    @needs("sessions_of", "apply")
    def test_a_session_joins_the_list_when_somebody_signs_in(self) -> None:
        user, other = self.new_user(), self.new_user()
        session_id = self.put({"cart": 1})
        parallel = self.held_with(session_id, "cart", 2)
        self._add(user, session_id)
        self.expect(True, "apply", session_id, self.held_with(session_id, SESSION_KEY, user), 60)
        self.lists(user, {session_id}, "apply() of a sign-in")
        self.expect(True, "apply", session_id, parallel, 60)
        self.lists(user, {session_id}, "apply() by a request that had read the session before the sign-in")
        cleared = self.held(session_id)
        cleared.clear()
        cleared[SESSION_KEY] = other
        self._add(other, session_id)
        self.expect(True, "apply", session_id, cleared, 60)
        self._take_out(user, session_id)
        self.lists(other, {session_id}, "apply() of a session that was cleared and has another user")
        self.lists(user, (), "apply() of a session that was cleared and has another user", gone={session_id})

    @needs("sessions_of", "move")
    def test_a_session_that_moves_stays_listed(self) -> None:
        user, new = self.new_user(), self.new_id()
        old = self.signed_in(user)
        self._add(user, new)
        self.expect(True, "move", old, new, 60)
        self.lists(user, {new}, "move()", gone={old})
        self._take_out(user, old)
        self.lists(user, {new}, "move()")

    @needs("sessions_of", "add_to_user")
    def test_a_session_may_be_listed_before_it_is_stored_and_again(self) -> None:
        user, session_id = self.new_user(), self.new_id()
        self._add(user, session_id)
        self.lists(user, (), "add_to_user()", gone={session_id})
        self.signed_in(user, session_id=session_id)
        self.lists(user, {session_id}, "add_to_user() and then a sign-in")
        self._add(user, session_id)
        found = list(self.call("sessions_of", user))
        if found != [session_id]:
            self.wrong(self.named("sessions_of", user), found, f"{session_id!r}, once", "it was added three times")

    @needs("sessions_of", "remove_from_user")
    def test_remove_from_user_takes_out_one_session_of_one_user(self) -> None:
        user, other = self.new_user(), self.new_user()
        first, second = self.signed_in(user), self.signed_in(user)
        self.call("remove_from_user", other, first, False)
        self.lists(user, {first, second}, "remove_from_user() of another user")
        for _ in range(2):  # the second time it is not there
            self.call("remove_from_user", user, first, False)
            self.lists(user, {second}, "remove_from_user()")
        self.holds(first, {SESSION_KEY: user}, "remove_from_user() of a session that goes on")

    @needs("sessions_of", "remove_from_user")
    def test_remove_from_user_removes_a_session_that_ends(self) -> None:
        user = self.new_user()
        ended, other = self.signed_in(user), self.signed_in(user)
        for _ in range(2):
            self.call("remove_from_user", user, ended, True)
            self.holds(ended, None, "remove_from_user() of a session that ends")
            self.lists(user, {other}, "remove_from_user() of a session that ends")
        self.holds(other, {SESSION_KEY: user}, "remove_from_user() of another session")

    @needs("sessions_of", "purge")
    def test_a_purge_takes_no_live_session_off_the_list(self) -> None:
        user = self.new_user()
        live, expired = self.signed_in(user), self.signed_in(user, ttl=0)
        for _ in self.storage.purge(1000):
            pass
        self.lists(user, {live}, "purge()", gone={expired})
