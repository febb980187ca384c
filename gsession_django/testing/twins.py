"""The native twins: they do the same as the methods, and pass the same tests."""

import asyncio
import functools
from collections.abc import Callable

from django.contrib.sessions.backends.base import UpdateError

from gsession_django.core.abilities import abilities, bypassed_twins, missing_twins
from gsession_django.testing.case import ContractCase, NeedingTest, needs
from gsession_django.testing.extensions import Extensions
from gsession_django.testing.locking import Locking
from gsession_django.testing.reading import Pairs, Reading
from gsession_django.testing.sharing import Sharing
from gsession_django.testing.ttl import TimeToLive
from gsession_django.testing.users import Users
from gsession_django.testing.visitors import THREADS

_TWICE = (Reading, Pairs, TimeToLive, Extensions, Users, Locking, Sharing)
# These call the twins themselves, or test a method without a twin.
_ONCE = (
    "test_a_session_ends_with_its_ttl_and_not_before",
    "test_a_lock_is_free_after_its_seconds_unless_it_was_renewed",
    "test_a_purge_frees_no_lock",
    "test_a_purge_takes_no_live_session_off_the_list",
    "test_ids_are_those_of_the_live_sessions",
    "test_of_those_who_ask_at_once_one_gets_the_lock",
    "test_parallel_calls_of_apply_lose_nothing",
    "test_event_loops_one_after_the_other_share_no_connection",
    "test_event_loops_at_once_share_no_connection",
    "test_a_forked_process_and_its_parent_both_go_on",
)


class Twins(ContractCase):
    """Native twins. Each test of a storage's methods has a copy here that calls the twins, named ``…_async``."""

    def test_twins_are_there_for_all_methods_or_none(self) -> None:
        storage_class = self.store_class.storage_class
        has = [f"a{name}" for name in sorted(abilities(storage_class)) if hasattr(storage_class, f"a{name}")]
        if has and (missing := missing_twins(storage_class)):
            self.fail(
                f"{storage_class.__name__} has {', '.join(has)} but lacks {', '.join(missing)}. Write the missing "
                "ones, or remove the others: the adapter calls native twins only when all exist."
            )
        for method, defines in bypassed_twins(storage_class).items():
            self.fail(
                f"{storage_class.__name__} overrides {method}() but inherits a{method}() from {defines.__name__}, and "
                f"an async request calls that one. Override a{method}() too."
            )

    @needs("async")
    def test_async_requests_lose_nothing(self) -> None:
        asyncio.run(self._use_async())

    async def _use_async(self) -> None:
        store = self.store_class()
        await store.aset("cart", {"apple": 1})
        await store.asave()
        key = store.session_key
        assert key is not None
        requests = [self.store_class(key) for _ in range(THREADS)]
        for number, request in enumerate(requests):
            (await request.aget("cart"))[f"item {number}"] = number
        await asyncio.gather(*(request.asave() for request in requests))
        store = self.store_class(key)
        wanted = {"apple": 1} | {f"item {number}": number for number in range(THREADS)}
        if (cart := await store.aget("cart")) != wanted:
            self.wrong(
                f"After {THREADS} requests at once that each add an item, SessionStore.aget('cart')", cart, str(wanted)
            )
        self.assertEqual(await store.aget("nothing", 5), 5, "aget() of a missing key should return the default.")
        await store.acycle_key()
        await store.asave()
        if await store.aexists(key):
            self.wrong("After acycle_key(), SessionStore.aexists() of the old key", True, "False")
        if not await store.aexists(store.session_key):
            self.wrong("After acycle_key(), SessionStore.aexists() of the new key", False, "True")
        late = self.store_class(store.session_key)
        await late.aset("late", 1)
        await store.aflush()
        with self.assertRaises(UpdateError, msg="asave() of a session that was flushed meanwhile"):
            await late.asave()
        if found := dict(await self.store_class(late.session_key).aitems()):
            self.wrong("After aflush(), SessionStore.aitems()", found, "{}")


def _by_twins(test: Callable[[ContractCase], None]) -> Callable[[ContractCase], None]:
    @functools.wraps(test)
    def by_twins(self: ContractCase) -> None:
        with self.by_twins():
            test(self)

    return by_twins


for _part in _TWICE:
    for _name, _test in list(vars(_part).items()):
        if _name.startswith("test_") and _name not in _ONCE:
            _methods = _test.methods if isinstance(_test, NeedingTest) else ()
            _function = _test.test if isinstance(_test, NeedingTest) else _test
            setattr(Twins, f"{_name}_async", needs("async", *_methods)(_by_twins(_function)))
