"""StorageContract fails each storage here, which breaks one rule on purpose."""

import asyncio
import copy
import os
import socket
import threading
import time
import unittest
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, ClassVar
from unittest import mock

import pytest
from django.contrib.auth import SESSION_KEY

from gsession_django import SessionMap, StorageUnavailable
from gsession_django.core.abilities import abilities
from gsession_django.serializers import DecodeError
from gsession_django.testing import StorageContract
from tests.core.test_contract import EngineContract
from tests.support.storages import (
    AsyncStorage,
    CompleteStorage,
    IndexedStorage,
    OwnIdsStorage,
    PerKeyStorage,
    Recorded,
    Row,
    UserColumnStorage,
    WholeMapStorage,
    engine,
)

BROKEN: list[tuple[str, type[Recorded]]] = []


def breaks(rule: str) -> Any:
    """Mark a storage that breaks the rule of the contract's `test_<rule>`."""

    def mark(storage_class: type[Recorded]) -> type[Recorded]:
        BROKEN.append((f"test_{rule}", storage_class))
        return storage_class

    return mark


@breaks("an_unknown_session_is_none")
class UnknownIsEmpty(WholeMapStorage):
    def get_session(self, *args: Any) -> dict[str, Any]:
        return super().get_session(*args) or {}


@breaks("a_malformed_id_is_an_unknown_session")
class MalformedRaises(WholeMapStorage):
    def get_session(self, session_id: str, *args: Any) -> dict[str, Any] | None:
        if not session_id.isalnum():
            raise StorageUnavailable(session_id)
        return super().get_session(session_id, *args)


@breaks("what_is_stored_is_read_back")
class DropsNone(WholeMapStorage):
    def put(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        super().put(session_id, {key: value for key, value in data.items() if value is not None}, ttl)


@breaks("what_is_stored_is_read_back")
class Truncates(WholeMapStorage):
    def put(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        cut = {key: value[:65535] if isinstance(value, str) else value for key, value in data.items()}
        super().put(session_id, cut, ttl)


@breaks("what_is_stored_is_read_back")
class FoldsKeys(WholeMapStorage):
    def put(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        super().put(session_id, {key.encode("ascii", "ignore").decode(): value for key, value in data.items()}, ttl)


@breaks("what_cannot_be_read_is_there_and_stays")
class UnreadableIsNone(WholeMapStorage):
    def get_session(self, *args: Any) -> dict[str, Any] | None:
        try:
            return super().get_session(*args)
        except DecodeError:
            return None


@breaks("what_cannot_be_read_is_there_and_stays")
class UnreadableIsFree(CompleteStorage):
    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        try:
            self.pairs(session_id)
        except DecodeError:
            self.remove_all(session_id)
        return super().create(session_id, session, ttl)


@breaks("what_cannot_be_read_is_there_and_stays")
class UnreadableIsGone(CompleteStorage):
    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        try:
            return super().apply(session_id, session, ttl)
        except DecodeError:
            return False


@breaks("what_cannot_be_read_is_there_and_stays")
class UnreadableIsEmpty(CompleteStorage):
    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        try:
            return super().apply(session_id, session, ttl)
        except DecodeError:
            self.put(session_id, session.as_dict(), ttl)
            return True


@breaks("an_empty_session_is_a_session")
class EmptyIsNone(WholeMapStorage):
    def get_session(self, *args: Any) -> dict[str, Any] | None:
        return super().get_session(*args) or None


@breaks("sessions_do_not_mix")
class ShortIds(WholeMapStorage):
    def put(self, session_id: str, *args: Any) -> None:
        super().put(session_id[:1], *args)

    def pairs(self, session_id: str) -> dict[str, Any] | None:
        return super().pairs(session_id[:1])


class Keeping(WholeMapStorage):
    """Keeps objects, not bytes."""

    def put(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        super().put(session_id, {}, ttl)
        self.medium.rows[session_id].pairs = data  # type: ignore[assignment]


@breaks("what_is_given_is_not_kept")
class KeepsWhatItIsGiven(Keeping):
    def pairs(self, session_id: str) -> dict[str, Any] | None:
        row = self.medium.live(session_id)
        return None if row is None else copy.deepcopy(dict(row.pairs))


@breaks("what_is_kept_is_not_handed_out")
class HandsOutWhatItKeeps(Keeping):
    def put(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        super().put(session_id, copy.deepcopy(dict(data)), ttl)

    def pairs(self, session_id: str) -> dict[str, Any] | None:
        row = self.medium.live(session_id)
        return None if row is None else dict(row.pairs)


@breaks("remove_all_removes_the_session_and_no_other")
class RemovesNothing(WholeMapStorage):
    def remove_all(self, session_id: str) -> None:
        pass


@breaks("remove_all_removes_the_session_and_no_other")
class RemovesEverything(WholeMapStorage):
    def remove_all(self, session_id: str) -> None:
        self.medium.rows.clear()


@breaks("set_session_replaces_what_was_stored")
@breaks("a_session_that_was_cleared_stays_cleared")
class SetSessionAdds(WholeMapStorage):
    def set_session(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        super().set_session(session_id, (self.pairs(session_id) or {}) | dict(data), ttl)


@breaks("new_makes_session_keys_that_differ")
class SameKey(OwnIdsStorage):
    def new(self, ttl: int) -> str:
        return "always-the-same"


@breaks("new_makes_session_keys_that_differ")
class ShortKey(OwnIdsStorage):
    def new(self, ttl: int) -> str:
        return super().new(ttl)[-5:]


@breaks("get_returns_one_value")
class GetReturnsAnother(PerKeyStorage):
    def get(self, session_id: str, key: str) -> Any:
        return super().get(session_id, key[:-1])


@breaks("get_of_what_is_not_there_is_none")
class GetRaises(PerKeyStorage):
    def get(self, session_id: str, key: str) -> Any:
        return (self.pairs(session_id) or {})[key]


@breaks("get_map_returns_all_pairs")
class GetMapOfNoneIsNone(PerKeyStorage):
    def get_map(self, session_id: str) -> dict[str, Any]:
        return self.pairs(session_id)  # type: ignore[return-value]


@breaks("get_size_counts_the_pairs")
class GetSizeSkipsNone(PerKeyStorage):
    def get_size(self, session_id: str) -> int:
        return sum(value is not None for value in (self.pairs(session_id) or {}).values())


@breaks("set_stores_one_pair_and_keeps_the_others")
class SetReplacesAll(PerKeyStorage):
    def set(self, session_id: str, key: str, value: Any, ttl: int) -> None:
        self.put(session_id, {key: value}, ttl)


@breaks("set_map_stores_pairs_and_keeps_the_others")
@breaks("parallel_writers_of_their_own_keys_lose_nothing")
class SetMapReplacesAll(PerKeyStorage):
    def set_map(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        self.put(session_id, data, ttl)


@breaks("remove_removes_one_pair")
class RemoveRaises(PerKeyStorage):
    def remove(self, session_id: str, key: str) -> None:
        del self.medium.rows[session_id].pairs[key]


@breaks("a_session_ends_with_its_ttl_and_not_before")
class NeverExpires(WholeMapStorage):
    def put(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        super().put(session_id, data, ttl * 1000)


@breaks("a_ttl_of_zero_or_below_is_over_at_once")
class ZeroIsForEver(WholeMapStorage):
    def put(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        super().put(session_id, data, ttl or 60)


@breaks("a_ttl_of_zero_or_below_is_over_at_once")
class BelowZeroRaises(WholeMapStorage):
    def put(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        if ttl < 0:
            raise OverflowError(ttl)
        super().put(session_id, data, ttl)


@breaks("ttl_left_is_what_the_session_has_to_live")
class TellsWhenItExpires(CompleteStorage):
    def get_session(self, *args: Any) -> SessionMap | None:  # type: ignore[override]
        found = super().get_session(*args)
        if found is not None:
            found.ttl_left = self.medium.rows[args[0]].expires
        return found


@breaks("ttl_left_is_what_the_session_has_to_live")
class TellsTheArgument(CompleteStorage):
    def get_session(self, session_id: str, ttl: int, data: Any = None) -> SessionMap | None:  # type: ignore[override]
        found = super().get_session(session_id, ttl)
        if found is not None:
            found.ttl_left = ttl
        return found


@breaks("a_session_ends_with_its_ttl_and_not_before")
class KeepsTheFirstTtl(WholeMapStorage):
    def set_session(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        row = self.medium.live(session_id)
        super().set_session(session_id, data, ttl)
        if row is not None:
            self.medium.rows[session_id].expires = row.expires


@breaks("a_session_ends_with_its_ttl_and_not_before")
class TouchDoesNothing(CompleteStorage):
    def update_ttl(self, session_id: str, ttl: int) -> bool:  # type: ignore[override]
        return self.medium.live(session_id) is not None


@breaks("a_session_ends_with_its_ttl_and_not_before")
class TouchSaysGone(CompleteStorage):
    def update_ttl(self, session_id: str, ttl: int) -> bool:  # type: ignore[override]
        super().update_ttl(session_id, ttl)
        return False


@breaks("update_ttl_brings_nothing_back")
class TouchRevives(PerKeyStorage):
    def update_ttl(self, session_id: str, ttl: int) -> None:
        self.medium.rows.setdefault(session_id, Row(0))
        self.medium.rows[session_id].expires = 10**12


@breaks("exists_says_whether_there_is_a_session")
class ExpiredExists(CompleteStorage):
    def exists(self, session_id: str) -> bool:
        return session_id in self.medium.rows


@breaks("create_overwrites_no_session_but_an_expired_one")
class CreateOverwrites(CompleteStorage):
    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        self.put(session_id, session.as_dict(), ttl)
        return True


@breaks("create_overwrites_no_session_but_an_expired_one")
class CreateSeesTheDead(CompleteStorage):
    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        return session_id not in self.medium.rows and super().create(session_id, session, ttl)


class Overwriting(CompleteStorage):
    """Overwrites the stored session with the request's copy, as Django's engines do."""

    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        if self.medium.live(session_id) is None:
            return False
        self.put(session_id, session.as_dict(), ttl)
        return True


breaks("apply_keeps_what_others_wrote_meanwhile")(Overwriting)
breaks("apply_without_a_change_changes_nothing")(Overwriting)
breaks("apply_can_be_repeated_by_one_request")(Overwriting)
breaks("parallel_writers_of_one_dict_lose_nothing")(Overwriting)
breaks("a_session_ends_with_its_ttl_and_not_before")(Overwriting)


@breaks("apply_keeps_what_others_wrote_meanwhile")
@breaks("parallel_writers_of_one_dict_lose_nothing")
class MergesKeysOnly(CompleteStorage):
    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        current = self.pairs(session_id)
        if current is None:
            return False
        kept = {key: value for key, value in current.items() if key not in session.removed}
        self.put(session_id, kept | session.changed, ttl)
        return True


@breaks("apply_of_a_cleared_session_drops_what_others_wrote_too")
class ClearsOnlyWhatItKnows(CompleteStorage):
    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        cleared, session.cleared = session.cleared, False
        try:
            return super().apply(session_id, session, ttl)
        finally:
            session.cleared = cleared


@breaks("apply_brings_nothing_back")
@breaks("a_session_deleted_meanwhile_stays_deleted")
class ApplyRevives(CompleteStorage):
    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        self.put(session_id, session.merged_onto(self.pairs(session_id) or {}), ttl)
        return True


@breaks("a_session_ends_with_its_ttl_and_not_before")
class ApplyKeepsTheTtl(CompleteStorage):
    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        row = self.medium.live(session_id)
        done = super().apply(session_id, session, ttl)
        if row is not None:
            self.medium.rows[session_id].expires = row.expires
        return done


@breaks("move_gives_the_session_a_new_id")
@breaks("cycle_key_keeps_the_data_and_ends_the_old_key")
class MoveKeepsTheOld(CompleteStorage):
    def move(self, session_id: str, new_id: str, ttl: int) -> bool:
        row = self.medium.live(session_id)
        if row is None:
            return False
        self.medium.rows[new_id] = copy.deepcopy(row)
        return True


@breaks("a_session_ends_with_its_ttl_and_not_before")
class MoveLosesTheTtl(CompleteStorage):
    def move(self, session_id: str, new_id: str, ttl: int) -> bool:
        moved = super().move(session_id, new_id, ttl)
        if moved:
            self.medium.rows[new_id].expires = time.time() + 1
        return moved


@breaks("a_session_ends_with_its_ttl_and_not_before")
class MoveRenews(CompleteStorage):
    def move(self, session_id: str, new_id: str, ttl: int) -> bool:
        moved = super().move(session_id, new_id, ttl)
        if moved:
            self.medium.rows[new_id].expires = time.time() + ttl
        return moved


@breaks("move_of_a_session_that_is_gone_stores_nothing")
class MoveMakesOne(CompleteStorage):
    def move(self, session_id: str, new_id: str, ttl: int) -> bool:
        row = self.medium.rows.pop(session_id, None)
        self.put(new_id, {}, ttl)
        return row is not None


@breaks("move_takes_no_id_from_another_session")
class MoveOverwrites(CompleteStorage):
    def move(self, session_id: str, new_id: str, ttl: int) -> bool:
        if self.medium.live(session_id) is None:
            return self.medium.live(new_id) is not None
        self.medium.rows[new_id] = self.medium.rows.pop(session_id)
        return True


@breaks("purge_removes_expired_sessions_and_no_others")
class PurgesAll(CompleteStorage):
    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        yield len(self.medium.rows)
        self.medium.rows.clear()


@breaks("purge_removes_expired_sessions_and_no_others")
class PurgesInADryRun(CompleteStorage):
    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        return super().purge(batch_size)


@breaks("purge_removes_expired_sessions_and_no_others")
class PurgesInOneStep(CompleteStorage):
    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        yield sum(super().purge(batch_size, dry_run))


@breaks("ids_are_those_of_the_live_sessions")
class IdsOfTheDeadToo(CompleteStorage):
    def ids(self) -> Iterator[str]:
        yield from list(self.medium.rows)


@breaks("a_session_that_was_emptied_is_still_a_session")
class ForgetsEmptySessions(WholeMapStorage):
    def set_session(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        super().set_session(session_id, data, ttl)
        if not data:
            del self.medium.rows[session_id]


@breaks("changes_made_in_place_are_saved")
class ComparesByIdentity(CompleteStorage):
    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        for key in list(session._snapshots):
            session._snapshots.pop(key)
        return super().apply(session_id, session, ttl)


# Objects that are held, and sessions that were seen before.


@breaks("purge_removes_nothing_that_was_stored_after_it_looked")
@breaks("purge_holds_nothing_between_two_batches")
class PurgesWhatItSaw(CompleteStorage):
    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        dead = [session_id for session_id in list(self.medium.rows) if self.medium.live(session_id) is None]
        for start in range(0, len(dead), batch_size):
            batch = dead[start : start + batch_size]
            for session_id in () if dry_run else batch:
                self.medium.rows.pop(session_id, None)
            yield len(batch)


@breaks("purge_removes_nothing_that_was_stored_after_it_looked")
class PurgesWhatItSawInTheBatch(CompleteStorage):
    """Looks for expired sessions at each batch, but not again as it removes."""

    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        if dry_run:
            yield sum(self.medium.live(session_id) is None for session_id in list(self.medium.rows))
            return
        while True:
            dead = [session_id for session_id in list(self.medium.rows) if self.medium.live(session_id) is None]
            for session_id in dead[:batch_size]:
                self.medium.rows.pop(session_id, None)
            yield len(dead[:batch_size])
            if len(dead) <= batch_size:
                return


class PurgesUnder(CompleteStorage):
    """Holds a lock from the first batch to the last."""

    make_lock: ClassVar[Any]

    def __init__(self) -> None:
        super().__init__()
        self.purging = self.make_lock()

    def put(self, *args: Any) -> None:
        if not self.purging.acquire(timeout=0.2):
            raise StorageUnavailable("locked")
        self.purging.release()
        super().put(*args)

    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        with self.purging:
            yield from super().purge(batch_size, dry_run)


@breaks("purge_holds_nothing_between_two_batches")
class PurgesUnderALock(PurgesUnder):
    make_lock = threading.Lock


@breaks("purge_holds_nothing_between_two_batches")
class PurgesUnderALockOfTheThread(PurgesUnder):
    make_lock = threading.RLock


@breaks("parallel_calls_of_apply_lose_nothing")
class AppliesWithoutALock(CompleteStorage):
    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        current = self.pairs(session_id)
        if current is None:
            return False
        self.put(session_id, session.merged_onto(current), ttl)
        return True


@breaks("parallel_calls_of_apply_lose_nothing")
class AppliesPairsWithoutALock(CompleteStorage):
    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        if self.medium.live(session_id) is None:
            return False
        for key, value in session.changed.items():
            stored = self.get(session_id, key)
            self._set(session_id, {key: value if stored is None else session.merged_value(key, stored)}, ttl)
        return True


class AsksFirst(AsyncStorage):
    """Talks with a server on a connection that belongs to an event loop."""

    loop: asyncio.AbstractEventLoop | None = None

    def connect(self) -> None:
        raise NotImplementedError

    async def aget_session(self, session_id: str, ttl: int, data: Any = None) -> SessionMap | None:
        self.connect()
        await asyncio.sleep(0)
        if self.loop is not asyncio.get_running_loop():  # what asyncio says of its streams
            raise RuntimeError("got Future attached to a different loop")
        return self.get_session(session_id, ttl, data)


@breaks("event_loops_one_after_the_other_share_no_connection")
@breaks("event_loops_at_once_share_no_connection")
class OneConnectionForAllLoops(AsksFirst):
    def connect(self) -> None:
        self.loop = self.loop or asyncio.get_running_loop()


@breaks("event_loops_at_once_share_no_connection")
class OneConnectionForTheLastLoop(AsksFirst):
    """Connects again when another event loop calls it."""

    def connect(self) -> None:
        self.loop = asyncio.get_running_loop()


@breaks("a_forked_process_and_its_parent_both_go_on")
class RefusesChildren(CompleteStorage):
    def __init__(self) -> None:
        super().__init__()
        self.process: int | None = None

    def get_session(self, *args: Any) -> SessionMap | None:  # type: ignore[override]
        self.process = self.process or os.getpid()
        if self.process != os.getpid():
            raise StorageUnavailable("this connection is another process's")
        return super().get_session(*args)


def echo(peer: socket.socket) -> None:
    with peer, suppress(OSError):
        while data := peer.recv(100):
            peer.sendall(data)


@breaks("a_forked_process_and_its_parent_both_go_on")
class SharesASocketWithItsChild(CompleteStorage):
    """Asks a server over one connection, on which two processes get each other's replies."""

    def __init__(self) -> None:
        super().__init__()
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(2)
        threading.Thread(target=echo, args=(theirs,), daemon=True).start()

    def __del__(self) -> None:
        self.socket.close()

    def get_session(self, session_id: str, *args: Any) -> SessionMap | None:  # type: ignore[override]
        self.socket.sendall(f"{session_id:100}".encode())
        answer = b""
        while len(answer) < 100:
            if not (part := self.socket.recv(100 - len(answer))):
                raise StorageUnavailable("the connection has ended")
            answer += part
        return super().get_session(answer.decode().rstrip(), *args)


@breaks("a_forked_process_and_its_parent_both_go_on")
class HangsUpForItsParent(CompleteStorage):
    """Its child ends the connection of the parent when it drops the storage."""

    def __init__(self) -> None:
        super().__init__()
        self.socket, self.theirs = socket.socketpair()
        for end in (self.socket, self.theirs):
            end.settimeout(2)

    def __del__(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.theirs.close()

    def get_session(self, *args: Any) -> SessionMap | None:  # type: ignore[override]
        try:
            self.socket.sendall(b"?")
            self.theirs.recv(1)
        except OSError as error:
            raise StorageUnavailable(str(error)) from error
        return super().get_session(*args)


# Whose sessions.


@breaks("an_unknown_user_has_no_sessions")
class ListsEverybody(UserColumnStorage):
    def sessions_of(self, user_id: str) -> list[str]:
        return super().sessions_of(user_id) or list(self.medium.rows)


@breaks("a_session_is_listed_among_those_of_its_user")
class ListsTheLastSession(IndexedStorage):
    def add_to_user(self, user_id: str, session_id: str, ttl: int) -> None:
        self.users[user_id] = [session_id]


@breaks("a_user_id_may_be_any_text")
class CutsUsers(IndexedStorage):
    def sessions_of(self, user_id: str) -> list[str]:
        return super().sessions_of(user_id[:128])


@breaks("a_user_id_may_be_any_text")
class TrimsUsers(UserColumnStorage):
    def sessions_of(self, user_id: str) -> list[str]:
        return [each for each in list(self.medium.rows) if str(self.user_in(each)).rstrip() == user_id.rstrip()]


@breaks("a_user_id_may_be_any_text")
class RefusesUsers(IndexedStorage):
    def sessions_of(self, user_id: str) -> list[str]:
        if "\0" in user_id:
            raise ValueError("A string literal cannot contain NUL (0x00) characters.")
        return super().sessions_of(user_id)


class WithColumn(UserColumnStorage):
    """Keeps the user in a column of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.column: dict[str, Any] = {}

    def user_in(self, session_id: str) -> Any:
        return self.column.get(session_id)

    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        self.column[session_id] = session.get(SESSION_KEY)
        return super().create(session_id, session, ttl)


@breaks("a_session_joins_the_list_when_somebody_signs_in")
class ListsAsCreated(WithColumn):
    pass


@breaks("a_session_joins_the_list_when_somebody_signs_in")
class ListsAsTheRequestKnows(WithColumn):
    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        self.column[session_id] = session.get(SESSION_KEY)
        return super().apply(session_id, session, ttl)


@breaks("a_session_that_moves_stays_listed")
class ListsTheOldId(WithColumn):
    pass


@breaks("a_session_may_be_listed_before_it_is_stored_and_again")
class ListsWhatIsThere(IndexedStorage):
    def add_to_user(self, user_id: str, session_id: str, ttl: int) -> None:
        if self.medium.live(session_id) is not None:
            super().add_to_user(user_id, session_id, ttl)


@breaks("a_session_may_be_listed_before_it_is_stored_and_again")
class ListsTwice(IndexedStorage):
    def add_to_user(self, user_id: str, session_id: str, ttl: int) -> None:
        self.users.setdefault(user_id, []).append(session_id)


@breaks("remove_from_user_takes_out_one_session_of_one_user")
class TakesOutAll(IndexedStorage):
    def remove_from_user(self, user_id: str, session_id: str, ended: bool) -> None:
        super().remove_from_user(user_id, session_id, ended)
        self.users.pop(user_id, None)


@breaks("remove_from_user_takes_out_one_session_of_one_user")
class TakesOutOfAnyUser(IndexedStorage):
    def remove_from_user(self, user_id: str, session_id: str, ended: bool) -> None:
        for each in list(self.users):
            super().remove_from_user(each, session_id, ended)


@breaks("remove_from_user_takes_out_one_session_of_one_user")
@breaks("remove_from_user_removes_a_session_that_ends")
class EndsTheOthers(IndexedStorage):
    def remove_from_user(self, user_id: str, session_id: str, ended: bool) -> None:
        super().remove_from_user(user_id, session_id, not ended)


@breaks("a_purge_takes_no_live_session_off_the_list")
class PurgesTheIndex(IndexedStorage):
    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        self.users.clear()
        yield from super().purge(batch_size, dry_run)


# One at a time.


@breaks("a_lock_has_one_holder_at_a_time")
class LocksForAll(IndexedStorage):
    def lock(self, session_id: str, token: str, seconds: float) -> bool:
        return True


@breaks("a_lock_has_one_holder_at_a_time")
class HasOneLock(IndexedStorage):
    def lock(self, session_id: str, token: str, seconds: float) -> bool:
        return super().lock("", token, seconds)


@breaks("only_its_holder_frees_a_lock")
class FreesForAll(IndexedStorage):
    def unlock(self, session_id: str, token: str) -> None:
        self.holders.pop(session_id, None)


@breaks("a_lock_is_free_after_its_seconds_unless_it_was_renewed")
class LocksForEver(IndexedStorage):
    def lock(self, session_id: str, token: str, seconds: float) -> bool:
        return super().lock(session_id, token, 1000 + seconds)


@breaks("a_lock_is_free_after_its_seconds_unless_it_was_renewed")
class RenewsNoLock(IndexedStorage):
    def lock(self, session_id: str, token: str, seconds: float) -> bool:
        holder, until = self.holders.get(session_id, ("", 0.0))
        return (holder == token and until > time.time()) or super().lock(session_id, token, seconds)


@breaks("a_purge_frees_no_lock")
class PurgesLocks(IndexedStorage):
    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        self.holders.clear()
        yield from super().purge(batch_size, dry_run)


@breaks("of_those_who_ask_at_once_one_gets_the_lock")
class LooksAndThenLocks(IndexedStorage):
    def lock(self, session_id: str, token: str, seconds: float) -> bool:
        if session_id in self.holders:
            return False
        time.sleep(0.01)
        self.holders[session_id] = token, time.time() + seconds
        return True


# Outages.


class Reachable(IndexedStorage):
    """Keeps its rows on a server that a test may stop."""

    away: ClassVar[bool] = False

    def ask(self) -> None:
        if self.away:
            raise StorageUnavailable("connection refused")

    def get_session(self, *args: Any) -> SessionMap | None:  # type: ignore[override]
        self.ask()
        return super().get_session(*args)


def asking(name: str) -> Any:
    method = getattr(IndexedStorage, name)

    def ask(self: Reachable, *args: Any, **options: Any) -> Any:
        self.ask()
        return method(self, *args, **options)

    return ask


for name in abilities(IndexedStorage) - {"new", "get_session"}:
    setattr(Reachable, name, asking(name))


@breaks("an_outage_is_storage_unavailable_and_no_missing_session")
class AnswersAnOutageWithNone(Reachable):
    def get_session(self, *args: Any) -> SessionMap | None:  # type: ignore[override]
        try:
            return super().get_session(*args)
        except StorageUnavailable:
            return None


@breaks("an_outage_is_storage_unavailable_and_no_missing_session")
class AnswersAnOutageWithAnotherError(Reachable):
    def apply(self, *args: Any) -> bool:
        try:
            return super().apply(*args)
        except StorageUnavailable as error:
            raise OSError("connection refused") from error


@breaks("an_outage_is_storage_unavailable_and_no_missing_session")
class TouchesInAnOutage(Reachable):
    def update_ttl(self, *args: Any) -> bool:  # type: ignore[override]
        try:
            return super().update_ttl(*args)
        except StorageUnavailable:
            return True


@breaks("an_outage_is_storage_unavailable_and_no_missing_session")
class ListsNothingInAnOutage(Reachable):
    def sessions_of(self, user_id: str) -> list[str]:
        try:
            return super().sessions_of(user_id)
        except StorageUnavailable:
            return []


# Native twins.


@breaks("async_requests_lose_nothing")
class AsyncForgets(AsyncStorage):
    async def aapply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        return True


@breaks("twins_are_there_for_all_methods_or_none")
class SomeTwins(WholeMapStorage):
    async def aget_session(self, *args: Any) -> Any:
        return self.get_session(*args)


@breaks("twins_are_there_for_all_methods_or_none")
class BypassedByATwin(AsyncStorage):
    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        return super().apply(session_id, session, ttl)


@breaks("a_malformed_id_is_an_unknown_session_async")
class MalformedRaisesAsync(AsyncStorage):
    async def aget_session(self, session_id: str, ttl: int, data: Any = None) -> SessionMap | None:
        if not session_id.isalnum():
            raise StorageUnavailable(session_id)
        return await super().aget_session(session_id, ttl, data)


@breaks("update_ttl_brings_nothing_back_async")
class TouchRevivesAsync(AsyncStorage):
    async def aupdate_ttl(self, session_id: str, ttl: int) -> bool:
        self.medium.rows.setdefault(session_id, Row(0)).expires = 10**12
        return True


@breaks("a_session_ends_with_its_ttl_and_not_before")
class TouchDoesNothingAsync(AsyncStorage):
    async def aupdate_ttl(self, session_id: str, ttl: int) -> bool:
        return self.medium.live(session_id) is not None


@breaks("a_session_ends_with_its_ttl_and_not_before")
class MinutesAsync(AsyncStorage):
    async def acreate(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        return await super().acreate(session_id, session, ttl * 60)


@breaks("parallel_calls_of_apply_lose_nothing")
class LocksTasksAndNotThreads(AsyncStorage):
    """Its twin locks with asyncio, and its method with threading, so neither excludes the other."""

    async def aapply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        async with asyncio.Lock():
            current = self.pairs(session_id)
            if current is None:
                return False
            self.put(session_id, session.merged_onto(current), ttl)
            return True


class WithOutage(EngineContract):
    @contextmanager
    def outage(self) -> Iterator[None]:
        with mock.patch.object(Reachable, "away", True):
            yield


def contract_of(storage_class: type[Recorded]) -> type[unittest.TestCase]:
    contract = WithOutage if issubclass(storage_class, Reachable) else EngineContract
    return type("Broken", (contract, unittest.TestCase), {"store_class": engine(storage_class)})


def result_of(storage_class: type[Recorded], test: str) -> unittest.TestResult:
    result = unittest.TestResult()
    contract_of(storage_class)(test).run(result)
    assert result.testsRun == 1
    return result


def with_twins(storage_class: type[Recorded]) -> type[Recorded]:
    """Return the storage with native twins that break the same rules."""

    def twin_of(name: str) -> Any:
        async def twin(self: Recorded, *args: Any) -> Any:
            return getattr(self, name)(*args)

        return twin

    twins = {f"a{name}": twin_of(name) for name in abilities(storage_class) - {"purge", "ids"}}
    return type(f"{storage_class.__name__}Async", (storage_class,), twins)


RULES = {name for base in StorageContract.__mro__ for name in vars(base) if name.startswith("test_")}
BROKEN += [(f"{rule}_async", with_twins(broken)) for rule, broken in BROKEN if f"{rule}_async" in RULES]


@pytest.mark.parametrize(
    ("test", "storage_class"), BROKEN, ids=[f"{rule}-{broken.__name__}" for rule, broken in BROKEN]
)
def test_a_storage_that_breaks_the_rule_fails(test: str, storage_class: type[Recorded]) -> None:
    """If two processes have to meet by chance, one run may miss it; ten do not."""
    results = (result_of(storage_class, test) for _ in range(10))
    assert any(result.failures or result.errors for result in results)


def test_every_rule_has_a_storage_that_breaks_it() -> None:
    assert {rule for rule, _ in BROKEN} == RULES


def test_methods_that_a_storage_lacks_are_not_tested() -> None:
    contract = type("Least", (EngineContract, unittest.TestCase), {"store_class": engine(WholeMapStorage)})
    names = unittest.TestLoader().getTestCaseNames(contract)
    assert "test_a_session_ends_with_its_ttl_and_not_before" in names
    lacks = ("test_apply", "test_get_", "test_move", "test_async", "test_an_outage")
    assert not [name for name in names if name.startswith(lacks) or name.endswith("_async")]
