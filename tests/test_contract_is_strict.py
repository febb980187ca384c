"""StorageContract fails a storage that breaks a rule: one broken on purpose for each."""

import copy
import time
import unittest
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from gsession_django import SessionMap, StorageUnavailable
from gsession_django.testing import StorageContract
from tests.storages import (
    AsyncStorage,
    CompleteStorage,
    OwnIdsStorage,
    PerKeyStorage,
    Recorded,
    Row,
    WholeMapStorage,
    engine,
)
from tests.test_contract import EngineContract

BROKEN: list[tuple[str, type[Recorded]]] = []


def breaks(rule: str) -> Any:
    """Mark a storage as one that breaks the rule that `test_<rule>` of the contract tests."""

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
    """Keeps objects and not bytes."""

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


@breaks("a_session_is_gone_when_its_ttl_is_over")
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


@breaks("a_touch_renews_the_ttl_and_keeps_the_data")
class KeepsTheFirstTtl(WholeMapStorage):
    def set_session(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        row = self.medium.live(session_id)
        super().set_session(session_id, data, ttl)
        if row is not None:
            self.medium.rows[session_id].expires = row.expires


@breaks("update_ttl_renews_the_ttl")
class TouchDoesNothing(CompleteStorage):
    def update_ttl(self, session_id: str, ttl: int) -> bool:  # type: ignore[override]
        return self.medium.live(session_id) is not None


@breaks("update_ttl_renews_the_ttl")
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
    """Stores what the request knows, whatever is stored by then: what Django's engines do."""

    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        if self.medium.live(session_id) is None:
            return False
        self.put(session_id, session.as_dict(), ttl)
        return True


breaks("apply_keeps_what_others_wrote_meanwhile")(Overwriting)
breaks("apply_without_a_change_changes_nothing")(Overwriting)
breaks("apply_can_be_repeated_by_one_request")(Overwriting)
breaks("parallel_writers_of_one_dict_lose_nothing")(Overwriting)
breaks("apply_leaves_a_ttl_alone_that_another_request_set")(Overwriting)


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


@breaks("apply_renews_the_ttl")
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


@breaks("move_gives_the_session_a_new_id")
class MoveLosesTheTtl(CompleteStorage):
    def _renew(self, session_id: str, ttl: int) -> None:
        self.medium.rows[session_id].expires = time.time() + 1


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
        self._renew(new_id, ttl)
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


@breaks("the_async_twins_do_what_the_others_do")
class AsyncForgets(AsyncStorage):
    async def aapply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        return True


@pytest.mark.parametrize(
    ("test", "storage_class"), BROKEN, ids=[f"{rule}-{broken.__name__}" for rule, broken in BROKEN]
)
def test_a_storage_that_breaks_the_rule_fails(test: str, storage_class: type[Recorded]) -> None:
    contract = type("Broken", (EngineContract, unittest.TestCase), {"store_class": engine(storage_class)})
    result = unittest.TestResult()
    contract(test).run(result)
    assert result.testsRun == 1
    assert result.failures or result.errors


def test_every_rule_has_a_storage_that_breaks_it() -> None:
    rules = {name for name in vars(StorageContract) if name.startswith("test_")}
    assert rules == {rule for rule, _ in BROKEN}


def test_what_a_storage_lacks_is_not_tested() -> None:
    contract = type("Least", (EngineContract, unittest.TestCase), {"store_class": engine(WholeMapStorage)})
    names = unittest.TestLoader().getTestCaseNames(contract)
    assert "test_a_session_is_gone_when_its_ttl_is_over" in names
    assert not [name for name in names if name.startswith(("test_apply", "test_get_", "test_move", "test_the_async"))]
