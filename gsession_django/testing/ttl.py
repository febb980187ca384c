"""The part of StorageContract on TTLs: when a session ends."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final

from gsession_django.core.pairs import EXPIRY_KEY
from gsession_django.core.session_map import SessionMap
from gsession_django.testing.case import ContractCase, needs

WAIT: Final = 1.2
"""Seconds after which a session with a TTL of 1 is over."""
_LATER: Final = f" and a wait of {WAIT} seconds"

Case = Iterator[None]
"""Prepares sessions, yields, and looks at them after the wait."""


class TimeToLive(ContractCase):
    """TTLs."""

    def test_a_session_ends_with_its_ttl_and_not_before(self) -> None:
        """All cases that need a wait share this one."""
        prepared: list[tuple[str, Callable[[], AbstractContextManager[None]], Case]] = []
        for name, way in self.ways():
            with way():
                for case in self._cases():
                    next(case)
                    prepared.append((name, way, case))
        self.advance(WAIT)
        for name, way, case in prepared:
            with self.subTest(case.__name__.removeprefix("_"), by=name), way():  # type: ignore[attr-defined]
                next(case, None)

    def _cases(self) -> Iterator[Case]:
        yield self._session()
        if self._runner is None:
            yield self._touch()
        if "update_ttl" in self.able:
            yield self._update_ttl()
        if "apply" in self.able:
            yield self._apply()
            yield self._apply_beside_set_expiry()
        if "move" in self.able:
            yield self._move()
            yield self._move_with_set_expiry()

    def _session(self) -> Case:
        short, long = self.put({"key": 1}, ttl=1), self.put({"key": 1}, ttl=60)
        yield
        self.holds(short, None, f"storing a session with a TTL of 1{_LATER}")
        self.holds(long, {"key": 1}, f"storing a session with a TTL of 60{_LATER}")

    def _touch(self) -> Case:
        key = self.visitor({"key": {"nested": 1}}, expiry=1)
        store = self.store_class(key)
        store.set_expiry(60)
        store.save()
        store.save()
        yield
        self.finds(key, {"key": {"nested": 1}, EXPIRY_KEY: 60}, f"set_expiry(60), save() twice{_LATER}")

    def _update_ttl(self) -> Case:
        session_id = self.put({"key": 1}, ttl=1)
        call = self.named("update_ttl", session_id, 60)
        if (found := self.call("update_ttl", session_id, 60)) is False:
            self.wrong(call, found, "True or None", "the session exists")
        yield
        self.holds(session_id, {"key": 1}, f"{call}{_LATER}")

    def _apply(self) -> Case:
        session_id = self.put({"key": 1}, ttl=1)
        self.expect(True, "apply", session_id, self.held_with(session_id, "key", 2), 60)
        yield
        self.holds(session_id, {"key": 2}, f"apply() with a TTL of 60{_LATER}")

    def _apply_beside_set_expiry(self) -> Case:
        session_id = self.put({"key": 1}, ttl=60)
        held = self.held_with(session_id, "key", 2)
        self.expect(True, "apply", session_id, self.held_with(session_id, EXPIRY_KEY, 1), 1)
        self.expect(True, "apply", session_id, held, 60)
        after = "apply() with a TTL of 60 by a request that had not seen another request's set_expiry(1)"
        self.holds(session_id, {"key": 2, EXPIRY_KEY: 1}, after)
        yield
        self.holds(session_id, None, f"{after}{_LATER}")

    def _move(self) -> Case:
        old, new = self.put({"key": 1}, ttl=60), self.new_id()
        self.expect(True, "move", old, new, 60)
        yield
        self.holds(new, {"key": 1}, f"move() of a session with a TTL of 60{_LATER}")

    def _move_with_set_expiry(self) -> Case:
        old, new = self.put({EXPIRY_KEY: 1}, ttl=1), self.new_id()
        self.expect(True, "move", old, new, 60)
        yield
        after = "move() with a TTL of 60 of a session with set_expiry(1)"
        self.holds(new, None, f"{after}{_LATER}")

    def test_a_ttl_of_zero_or_below_is_over_at_once(self) -> None:
        for ttl in (0, -1, -(10**9)):
            with self.subTest(ttl=ttl):
                self.holds(self.put({"key": 1}, ttl=ttl), None, f"storing a session with a TTL of {ttl}")

    def test_ttl_left_is_what_the_session_has_to_live(self) -> None:
        session_id = self.put({"key": 1}, ttl=30)
        self._has_left(session_id, 30)
        if "update_ttl" in self.able:
            self.call("update_ttl", session_id, 300)
            self._has_left(session_id, 300)

    def _has_left(self, session_id: str, ttl: int) -> None:
        found = self.found(session_id)
        left = found.ttl_left if isinstance(found, SessionMap) else None
        if left is not None and not ttl - 10 < left <= ttl:
            because = f"the last TTL that the session got is {ttl}, and the argument of get_session() does not count"
            self.wrong(self.named("get_session", session_id, 60, None) + ".ttl_left", left, f"about {ttl}", because)

    @needs("update_ttl")
    def test_update_ttl_brings_nothing_back(self) -> None:
        unknown, expired = self.new_id(), self.put({"key": 1}, ttl=0)
        for session_id in (unknown, expired):
            if found := self.call("update_ttl", session_id, 60):
                self.wrong(self.named("update_ttl", session_id, 60), found, "False or None", "the session is gone")
            self.holds(session_id, None, "update_ttl() of a session that is gone")
