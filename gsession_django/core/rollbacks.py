"""StoreWithRollbacks: how a session is written again after the site's transaction was rolled back."""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, Literal

from django.contrib.sessions.backends.base import CreateError

from gsession_django.core.driving import Operation
from gsession_django.core.loading import LoadingStore
from gsession_django.core.pairs import EXPIRY_KEY
from gsession_django.core.saving import Saving
from gsession_django.core.transactions import Write


class StoreWithRollbacks(LoadingStore):
    """Notes each write of :class:`gsession_django.SessionStore` that can still be rolled back."""

    was_moved = False
    # How the session has ended, if this request knows: by its own delete(), or before its cycle_key().
    _gone: Literal["deleted", "moved"] | None = None
    # The next save, if `modified` has begun it: it has encoded the values to compare them.
    _prepared: Saving | None = None
    # The writes, in order, whose transaction was not committed yet at the last look.
    _writes: Sequence[Write] = ()

    def _note(self, save: Saving | None, repeat: Callable[..., Operation] | None = None, *arguments: Any) -> None:
        """Note a write that can still be rolled back, and how it is written again."""
        if (transaction := self._engine.storage.transaction()) is None:
            return
        if save is not None and self._writes and self._writes[-1].transaction is transaction:
            last = self._writes[-1].save
            if last is not None and last.session is save.session:
                last.include(save)
                return
        self._writes = [*self._writes, Write(transaction, save, repeat, arguments)]

    @property
    def undone(self) -> bool:
        """Whether a write of this request was rolled back, and has not been written again yet."""
        return bool(self._writes) and any(write.transaction.rolled_back for write in self._writes)

    def settle(self) -> None:
        """Write again what was rolled back, except changes of the session: ``save()`` stores those."""
        self._run(self._settle())

    async def asettle(self) -> None:
        await self._arun(self._settle())

    def _settle(self) -> Operation:
        writes = [write for write in self._writes if not write.transaction.committed]
        # The rollback of a write undoes all later writes too.
        pending = list(takewhile(lambda write: not write.transaction.rolled_back, writes))
        undone = writes[len(pending) :]
        for write in reversed(undone):
            if write.save is not None and write.save.session is self.__dict__.get("_session_cache"):
                write.save.session.restore(write.save)
                self._prepared = None
        self._writes = writes
        for write in undone:
            if write.repeat is not None:
                yield from write.repeat(self, write.transaction.certain, *write.arguments)
            self._writes = [other for other in self._writes if other is not write]

    # Creating, removing and moving again.

    def _created_at(self, key: str) -> Operation:
        """Finish the creation of a session under a given key."""
        self._gone = None
        yield from self._engine.was_created(key, self._id_of(key))
        self._note(None, StoreWithRollbacks._create_again, key, True)

    def _create_again(self, certain: bool, key: str, given: bool) -> Operation:
        if not certain:  # it may have been committed, and have ended since
            return
        session = self._get_session(no_load=True)
        ttl = self.ttl_of(session.get(EXPIRY_KEY))
        there = yield from self._engine.create(self._id_of(key), session, ttl)
        if given:
            if not there:
                raise CreateError
            yield from self._created_at(key)
        elif there:
            self._note(None, StoreWithRollbacks._create_again, key, False)

    def _remove(self, key: str, user: str | None = None) -> Operation:
        yield from self._engine.leave(key, self._id_of(key), self)
        yield from self._engine.remove(self._id_of(key), user)
        self._note(None, StoreWithRollbacks._remove_again, key, user)

    def _remove_again(self, certain: bool, key: str, user: str | None) -> Operation:
        return self._remove(key, user)

    def _move_again(self, certain: bool, old_key: str, new_key: str, anonymous: bool) -> Operation:
        engine, old_id, new_id = self._engine, self._id_of(old_key), self._id_of(new_key)
        ttl = self.ttl_of(self._get_session(no_load=True).get(EXPIRY_KEY))
        yield from engine.leave(old_key, old_id, self, unseen=True)
        moved = yield from engine.move(old_id, new_id, ttl, self)
        if moved:
            self._note(None, StoreWithRollbacks._move_again, old_key, new_key, anonymous)
        elif anonymous and certain:
            yield from self._create_again(True, new_key, False)
        else:
            self._gone, self.was_moved = "moved", False
