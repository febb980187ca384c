"""What Django asks of a session, as calls of Storage methods.

An operation calls the method that does all of it, if the storage has that method. Otherwise it is composed of several
calls, under a lock on the session's id in this process. It loses a write that another process makes between its last
read and the next call.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from gsession_django.core.driving import UNABLE, Operation
from gsession_django.core.pairs import EXPIRY_KEY
from gsession_django.core.reading import Lifetimes, Reader
from gsession_django.core.reserved import RESERVED_KEY
from gsession_django.core.saving import Saving
from gsession_django.core.session_map import SessionMap
from gsession_django.core.values import MISSING
from gsession_django.serializers import DecodeError


class Operations(Reader):
    """Reads and writes sessions by their ids."""

    __slots__ = ()

    def create(self, session_id: str, session: SessionMap, ttl: int) -> Operation:
        """Store a new session. Return ``False`` if the id is taken: only a storage that has ``create`` knows."""
        with session.saving() as save:
            try:
                stored = yield "create", session_id, session, ttl
            except DecodeError:  # the storage has found a session that it cannot read
                return False
            if stored is UNABLE:
                data = session.as_dict()
                yield from self._write(session_id, self._pairs(data), set(), data, ttl)
                stored = True
            if stored:
                session.saved(save)
                session.ttl_left = ttl
            return stored

    def apply(self, session_id: str, save: Saving, ttl: int, lifetimes: Lifetimes) -> Operation:
        """Store what the request changed in a session. Return ``False`` if the session is gone.

        Args:
            session_id: the session's id.
            save: the save under way.
            ttl: how long the session lives from now on, in seconds.
            lifetimes: how long sessions of this site live.

        Raises:
            DecodeError: the stored session cannot be read, so nothing can be merged with it. Nothing was stored.
        """
        session = save.session
        # A composed move copies the session and then removes it. No other request may save it in between.
        there = (yield "apply", session_id, session, ttl) if "move" in self.able else UNABLE
        if there is UNABLE:
            there = yield from self._alone(session_id, self._apply(session_id, session, ttl, lifetimes))
        if there:
            session.saved(save)
            session.ttl_left = ttl
        return there

    def _apply(self, session_id: str, session: SessionMap, ttl: int, lifetimes: Lifetimes) -> Operation:
        there = yield "apply", session_id, session, ttl
        if there is UNABLE:
            there = yield from self._compose_apply(session_id, session, ttl, lifetimes)
        return there

    def _compose_apply(self, session_id: str, session: SessionMap, ttl: int, lifetimes: Lifetimes) -> Operation:
        current: SessionMap | None = yield from self.load(session_id, lifetimes)
        if current is None:
            return False
        changed, removed = session.changed, session.removed
        by_pairs = current.partial
        if by_pairs and (session.cleared or (removed and "remove" not in self.able)):
            # All keys must be known to clear the session, or to write it anew if the storage has no remove().
            current.learn((yield from self._all_pairs(session_id)), complete=True)
        if current.partial:
            # Only a dict merges with the stored value. Of any other values the last one saved wins.
            for key, value in changed.items():
                stored = (yield from self._one_value(session_id, key)) if isinstance(value, dict) else None
                changed[key] = session.merged_value(key, MISSING if stored is None or stored is UNABLE else stored)
            whole = session.as_dict() | changed
            expiry = yield from self._one_value(session_id, EXPIRY_KEY)
            known: Mapping[str, Any] = {} if expiry is None or expiry is UNABLE else {EXPIRY_KEY: expiry}
        else:
            if session.cleared:
                removed = current.held_pairs.keys() - changed.keys()
            whole = session.merged_onto(current)
            changed = {key: whole[key] for key in changed}
            known = current
        if not session.renews_ttl(known):
            ttl = lifetimes.ttl_of(known.get(EXPIRY_KEY))
        if removed and not changed and (current.partial or not whole):
            changed = self._pairs({})
        if removed and "remove" not in self.able and (by_pairs or "set_session" not in self.able):
            yield from self.need("remove_all", session_id)
            changed, removed = self._pairs(whole), set()
        yield from self._write(session_id, changed, removed, whole, ttl)
        if removed and by_pairs and "remove" not in self.able:  # it raised Disabled just now
            return (yield from self._compose_apply(session_id, session, ttl, lifetimes))
        return True

    def touch(self, session_id: str, save: Saving, ttl: int, lifetimes: Lifetimes) -> Operation:
        """Renew the TTL of a session that did not change. Return ``False`` if it is gone."""
        session = save.session
        if ttl <= 0:  # It ends by itself. If it has not ended, another request has prolonged it.
            return (yield from self.exists(session_id, lifetimes))
        try:
            there = yield "update_ttl", session_id, ttl
            if there is UNABLE and "apply" in self.able:
                there = yield "apply", session_id, session, ttl
                if there is not UNABLE:
                    session.saved(save)
            if there is UNABLE:
                there = yield from self._alone(session_id, self._compose_touch(session_id, ttl, lifetimes))
        except DecodeError as error:
            self.log_unreadable(session_id, error)
            return True
        session.ttl_left = ttl
        return there is not False

    def _compose_touch(self, session_id: str, ttl: int, lifetimes: Lifetimes) -> Operation:
        by_pairs = "set_session" not in self.able
        current = yield from (self.load_all if by_pairs else self.load)(session_id, lifetimes)
        if current is None:
            return False
        data = current.as_dict()
        yield from self._write(session_id, self._pairs(data) if by_pairs else {}, set(), data, ttl)
        return True

    def move(self, session_id: str, new_id: str, ttl: int, lifetimes: Lifetimes) -> Operation:
        """Give the stored session a new id. Return ``False`` if it is gone."""
        moved = yield "move", session_id, new_id, ttl
        if moved is UNABLE:
            moved = yield from self._alone(session_id, self._compose_move(session_id, new_id, lifetimes))
        return moved

    def _compose_move(self, session_id: str, new_id: str, lifetimes: Lifetimes) -> Operation:
        """Copy the session, and again while others have saved it meanwhile. Then remove the old one."""
        copied = yield from self.load_all(session_id, lifetimes)
        if copied is None:
            return False
        ttl = lifetimes.ttl_of(copied.get(EXPIRY_KEY))
        if not (yield from self.create(new_id, SessionMap(copied.as_dict()), ttl)):
            return False
        while (current := (yield from self.load_all(session_id, lifetimes))) is not None:
            meanwhile = SessionMap(copied.as_dict())
            for key in copied.held_pairs.keys() - current.held_pairs.keys():
                del meanwhile[key]
            meanwhile.update(current.as_dict())
            if not meanwhile.has_changes():
                yield from self.need("remove_all", session_id)
                return True
            # No lock is needed: nobody else knows the new id yet.
            yield from self._apply(new_id, meanwhile, lifetimes.ttl_of(current.get(EXPIRY_KEY)), lifetimes)
            copied = current
        yield from self.need("remove_all", new_id)  # another request has ended the session
        return False

    def remove(self, session_id: str, user_id: str | None = None) -> Operation:
        """Remove a session; `user_id` is whose it is, where that is known."""
        yield from self._alone(session_id, self.need("remove_all", session_id))

    def _pairs(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the pairs to store: at least one where the medium would forget a session without pairs."""
        return data or ({RESERVED_KEY: True} if self._needs_a_pair() else {})

    def _write(
        self,
        session_id: str,
        changed: dict[str, Any],
        removed: AbstractSet[str],
        whole: dict[str, Any],
        ttl: int,
    ) -> Operation:
        """Store a session with the methods of gsession: first the changed pairs, then all that is known."""
        stored = False
        if changed:
            stored = (yield "set_map", session_id, changed, ttl) is not UNABLE
            if not stored:
                for key, value in changed.items():
                    stored = (yield "set", session_id, key, value, ttl) is not UNABLE
        for key in removed:
            yield "remove", session_id, key
        if (yield "set_session", session_id, whole, ttl) is UNABLE and not stored:
            yield from self.need("set_map", session_id, self._pairs(whole), ttl)

    def _alone(self, session_id: str, operation: Operation) -> Operation:
        """Carry out an operation under the lock of the id, in this process."""
        if (turn := self.locks.acquire(session_id)) is not None:
            try:
                yield turn
            except BaseException:
                self.locks.give_up(turn)
                raise
        try:
            return (yield from operation)
        finally:
            self.locks.release(session_id)
