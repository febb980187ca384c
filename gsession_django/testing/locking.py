"""One at a time: the part of StorageContract on ``lock`` and ``unlock``."""

from collections.abc import Callable, Iterator
from typing import Any, Final

from gsession_django.testing.case import ContractCase, needs
from gsession_django.testing.threads import in_threads
from gsession_django.testing.visitors import THREADS

# Seconds after which a lock is free again, and those that a test lets pass.
_SHORT: Final = 0.2
_WAIT: Final = 0.3


class Locking(ContractCase):
    """``lock`` and ``unlock``."""

    @needs("lock", "unlock")
    def test_a_lock_has_one_holder_at_a_time(self) -> None:
        session_id, other_id = self.new_id(), self.put({"key": 1})
        for locked in (session_id, other_id):
            self.expect(True, "lock", locked, "mine", 60.0, because="nobody has it")
            self.expect(False, "lock", locked, "theirs", 60.0, because="another token has it")
        self.call("unlock", session_id, "mine")
        self.expect(True, "lock", session_id, "theirs", 60.0, because="it was unlocked")
        self.expect(False, "lock", other_id, "theirs", 60.0, because="the lock of another session was unlocked")

    @needs("lock", "unlock")
    def test_only_its_holder_frees_a_lock(self) -> None:
        session_id = self.new_id()
        self.call("unlock", session_id, "theirs")
        self.expect(True, "lock", session_id, "mine", 60.0, because="nobody has it")
        self.call("unlock", session_id, "theirs")
        self.expect(False, "lock", session_id, "theirs", 60.0, because="unlock() with another token frees nothing")
        for _ in range(2):
            self.call("unlock", session_id, "mine")
        self.expect(True, "lock", session_id, "theirs", 60.0, because="its holder has freed it")

    @needs("lock", "unlock")
    def test_a_lock_is_free_after_its_seconds_unless_it_was_renewed(self) -> None:
        """All that has to wait, so that there is one wait."""
        prepared: list[tuple[Callable[[], Any], Iterator[None]]] = []
        for _, way in self.ways():
            with way():
                next(case := self._expiry())
                prepared.append((way, case))
        self.advance(_WAIT)
        for way, case in prepared:
            with way():
                next(case, None)

    def _expiry(self) -> Iterator[None]:
        dead, renewed = self.new_id(), self.new_id()
        for session_id in (dead, renewed):
            self.expect(True, "lock", session_id, "mine", _SHORT, because="nobody has it")
        self.expect(True, "lock", renewed, "mine", 60.0, because="the same token renews the lock")
        yield
        self.expect(False, "lock", renewed, "theirs", 60.0, because="the lock was renewed")
        self.expect(True, "lock", dead, "theirs", 60.0, because="the seconds of its holder are over")
        self.call("unlock", dead, "mine")
        self.expect(False, "lock", dead, "mine", 60.0, because="another token has it by now")

    @needs("lock", "unlock", "purge")
    def test_a_purge_frees_no_lock(self) -> None:
        session_id = self.new_id()
        self.expect(True, "lock", session_id, "mine", 60.0, because="nobody has it")
        for _ in self.storage.purge(1000):
            pass
        self.expect(False, "lock", session_id, "theirs", 60.0, because="another token has it, a purge or not")

    @needs("lock", "unlock")
    def test_of_those_who_ask_at_once_one_gets_the_lock(self) -> None:
        for _ in range(3):
            session_id = self.new_id()
            got: list[str] = []
            for round_ in range(2):  # of a lock that nobody has had, and of one that was freed

                def ask(number: int, session_id: str = session_id, got: list[str] = got, turn: int = round_) -> None:
                    token = f"{turn}-{number}"
                    if self.storage.lock(session_id, token, 60.0):
                        got.append(token)

                in_threads(THREADS, ask)
                if len(got) != 1:
                    self.fail(f"{THREADS} threads called lock() at once, and {len(got)} got it. One should.")
                self.storage.unlock(session_id, got.pop())
