"""The engine that keeps an index from users to sessions, if its storage can."""

import time

from django.contrib.auth import SESSION_KEY

from gsession_django.core.driving import Operation
from gsession_django.core.engine import Engine
from gsession_django.core.reading import Lifetimes
from gsession_django.core.saving import Saving
from gsession_django.core.session_map import SessionMap
from gsession_django.users.about import LISTED, SINCE


class IndexedEngine(Engine):
    """Lists a session among those of its user before it is stored, and takes it out after it has ended."""

    __slots__ = ()

    def before_save(self, session: SessionMap, ttl: int) -> bool:
        held = session.held_pairs
        if SESSION_KEY not in held or "sessions_of" not in self.able or (user := session.get(SESSION_KEY)) is None:
            return False
        signs_in = SINCE not in held or session.base(SESSION_KEY) != user
        if signs_in:
            session[SINCE] = time.time_ns() // 1000
        if "add_to_user" in self.able:
            now = int(time.time())
            if signs_in or session.get(LISTED, 0) < now + ttl:
                session[LISTED] = now + 2 * ttl
                return True
        return signs_in

    def create(self, session_id: str, session: SessionMap, ttl: int) -> Operation:
        if SESSION_KEY in session.held_pairs and (user := session.get(SESSION_KEY)) is not None:
            yield from self._add(str(user), session_id, ttl)
        return (yield from super().create(session_id, session, ttl))

    def apply(self, session_id: str, save: Saving, ttl: int, lifetimes: Lifetimes) -> Operation:
        # Without a layer of its own where the list stays as it is: it is the call of each save.
        listed = save.session.cleared or SESSION_KEY in save.values or LISTED in save.values
        return (self._apply_and_list if listed else super().apply)(session_id, save, ttl, lifetimes)

    def _apply_and_list(self, session_id: str, save: Saving, ttl: int, lifetimes: Lifetimes) -> Operation:
        session, before = save.session, lifetimes.owner()
        user = session.get(SESSION_KEY) if SESSION_KEY in session.held_pairs else None
        if user is not None and (LISTED in save.changed or SESSION_KEY in save.changed):
            yield from self._add(str(user), session_id, ttl)
        there = yield from super().apply(session_id, save, ttl, lifetimes)
        if not there and user is not None:
            yield from self._take_out(str(user), session_id)
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
        if user_id is None or "remove_from_user" not in self.able:
            yield from super().remove(session_id)
        else:
            yield from self._alone(session_id, self.need("remove_from_user", user_id, session_id, True))

    def _add(self, user_id: str, session_id: str, ttl: int) -> Operation:
        yield "add_to_user", user_id, session_id, 2 * ttl

    def _take_out(self, user_id: str, session_id: str) -> Operation:
        yield "remove_from_user", user_id, session_id, False
