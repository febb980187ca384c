"""The engine that keeps an index from users to sessions, if its storage can."""

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from django.contrib.auth import SESSION_KEY

from gsession_django.core.driving import UNABLE, Operation
from gsession_django.core.engine import Engine
from gsession_django.core.pairs import EXPIRY_KEY
from gsession_django.core.reading import Lifetimes
from gsession_django.core.saving import Saving
from gsession_django.core.session_map import SessionMap
from gsession_django.core.storage import Removed, StorageUnavailable
from gsession_django.signals import Ended, session_ended
from gsession_django.users.about import CLIENT, LISTED, SINCE, now

if TYPE_CHECKING:
    from gsession_django.core.store_base import StoreBase


class IndexedEngine(Engine):
    """Lists a session among those of its user before it is stored, and takes it out after it has ended."""

    __slots__ = ("hides_pairs", "needed", "store")

    def __init__(self, store: "type[StoreBase]") -> None:
        super().__init__(store)
        self.store = store
        self.hides_pairs = "sessions_of" in self.able
        self.needed = (EXPIRY_KEY, SESSION_KEY, SINCE, LISTED) if self.hides_pairs else (EXPIRY_KEY,)

    def before_save(self, session: SessionMap, ttl: int) -> bool:
        held = session.held_pairs
        if SESSION_KEY not in held:
            return SINCE in held and self._forget(session)
        if not self.hides_pairs or ttl <= 0 or (user := session.get(SESSION_KEY)) is None:
            return False
        signs_in = SINCE not in held or session.base(SESSION_KEY) != user
        if signs_in:
            session[SINCE] = now()
        if "add_to_user" in self.able:
            seconds = int(time.time())
            if signs_in or session.get(LISTED, 0) < seconds + ttl:
                session[LISTED] = seconds + 2 * ttl
                return True
        return signs_in

    def _forget(self, session: SessionMap) -> bool:
        """Remove what is known of a session that goes on without its user."""
        for key in (SINCE, LISTED, CLIENT):
            if key in session.held_pairs:
                del session[key]
        return True

    def will_create(self, session_id: str, session: SessionMap, ttl: int) -> Operation:
        if (user := self._user_of(session)) is not None:
            yield from self._add(user, session_id, ttl)

    def was_not_created(self, session_id: str, data: Mapping[str, Any]) -> Operation:
        if (user := data.get(SESSION_KEY)) is not None:
            yield from self._take_out(str(user), session_id)

    def create(self, session_id: str, session: SessionMap, ttl: int) -> Operation:
        yield from self.will_create(session_id, session, ttl)
        return (yield from super().create(session_id, session, ttl))

    def apply(self, session_id: str, save: Saving, ttl: int, lifetimes: Lifetimes) -> Operation:
        # Without a layer of its own where the list stays as it is: it is the call of each save.
        listed = save.session.cleared or SESSION_KEY in save.values or LISTED in save.values
        return (self._apply_and_list if listed else super().apply)(session_id, save, ttl, lifetimes)

    def _apply_and_list(self, session_id: str, save: Saving, ttl: int, lifetimes: Lifetimes) -> Operation:
        session, before = save.session, lifetimes.owner()
        user = self._user_of(session)
        if user is not None and (LISTED in save.values or SESSION_KEY in save.changed):
            yield from self._add(user, session_id, ttl)
        there = yield from super().apply(session_id, save, ttl, lifetimes)
        if not there and user is not None:
            yield from self._take_out(user, session_id)
        if before is not None and before != user:
            yield from self._take_out(before, session_id)
        return there

    def move(self, session_id: str, new_id: str, ttl: int, lifetimes: Lifetimes) -> Operation:
        if (user := lifetimes.owner()) is None:
            return (yield from super().move(session_id, new_id, ttl, lifetimes))
        yield from self._add(user, new_id, max(ttl, lifetimes.get_session_cookie_age()))
        moved = yield from super().move(session_id, new_id, ttl, lifetimes)
        if moved:
            yield from self._take_out(user, session_id)
        elif "new" not in self.able:  # an id that the storage made may be the one of another session
            yield from self._take_out(user, new_id)
        return moved

    def remove(self, session_id: str, user_id: str | None = None) -> Operation:
        if user_id is None:
            yield from super().remove(session_id)
        else:
            yield from self._alone(session_id, self._remove_of(user_id, session_id))

    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        for number in super().purge(batch_size, dry_run):
            if isinstance(number, Removed) and session_ended.has_listeners(self.store):
                for session_id in number.ids:
                    arguments: dict[str, Any] = {"session_id": session_id, "user_id": None}
                    session_ended.send_robust(self.store, reason=Ended.EXPIRED, **arguments)
            yield number

    def _remove_of(self, user_id: str, session_id: str) -> Operation:
        if (yield "remove_from_user", user_id, session_id, True) is UNABLE:
            yield from self.need("remove_all", session_id)

    def _user_of(self, session: SessionMap) -> str | None:
        user = session.get(SESSION_KEY) if SESSION_KEY in session.held_pairs else None
        return None if user is None else str(user)

    def _add(self, user_id: str, session_id: str, ttl: int) -> Operation:
        if ttl > 0:
            yield "add_to_user", user_id, session_id, 2 * ttl

    def _take_out(self, user_id: str, session_id: str) -> Operation:
        # An id too many does no harm. A 503 would keep the new key of a session from its visitor.
        with suppress(StorageUnavailable):
            yield "remove_from_user", user_id, session_id, False
