"""A migration that is killed, at each step or at a random moment, and then run again, moves each session once. It loses
and doubles none, and brings none back that ended meanwhile.
"""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from gsession_django.moving import django_cache, django_engines, our_engines
from gsession_django.moving.choice import source_of
from tests.engines.test_killed_writers import fork
from tests.moving.test_migrate_sessions import migrate
from tests.support.old_sites import DJANGOS, OURS, new_session, old_site, store_of, stored
from tests.support.processes import Parent, Worker

pytestmark = pytest.mark.once

WAYS = [
    (DJANGOS["db"], OURS["redis_hash"]),
    (DJANGOS["cached_db"], OURS["database"]),
    (DJANGOS["file"], OURS["file"]),
    (DJANGOS["cache"], OURS["redis"]),
    (OURS["redis_hash"], OURS["database"]),
]
KILLS = 8
NEW = 30  # sessions a round

each_way = pytest.mark.parametrize(("source", "target"), WAYS)


def let_kill(step: Callable[[], None], source: str, target: str) -> None:
    """Call `step` before and after each call of a source, of a storage, and of what removes files."""

    def stepping(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            step()
            result = call(*args, **kwargs)
            step()
            return result

        return wrapper

    storages = {type(store_of(engine).get_storage()) for engine in (source, target) if engine in OURS.values()}
    sources = [
        django_engines.DatabaseSource,
        django_engines.CachedDatabaseSource,
        django_engines.FileSource,
        django_cache.CacheSource,
        our_engines.OurSource,
    ]
    for places, names in (
        (sources, ("read", "present", "remove", "_forget")),
        (storages, ("create", "apply", "get_session", "remove_all")),
        ([os], ("unlink",)),
    ):
        for place in places:
            for name in names:
                if name in vars(place):
                    setattr(place, name, stepping(vars(place)[name]))


def killed_at(turn: int, source: str, target: str, options: tuple[str, ...]) -> bool:
    """Run the command in a process that kills itself at its `turn`-th step. Return ``False`` if it got through."""

    def run() -> None:
        turns = itertools.count(1)

        def step() -> None:
            if next(turns) == turn:
                os.kill(os.getpid(), signal.SIGKILL)

        let_kill(step, source, target)
        migrate(source, target, *options)

    connections.close_all()  # a fork must not share them
    pid = fork(run, [])
    return was_killed(os.waitpid(pid, 0)[1])


def was_killed(status: int) -> bool:
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "it failed by itself"
    return False


def is_there(engine: str, key: str) -> bool:
    source = source_of(engine)
    return bool(source.present([source.ref_of(key)]))


def sign_out(source: str, target: str, key: str) -> bool:
    """End a session at the source, unless the copy at the target counts already. Return whether it did."""
    copy = store_of(target).get_storage().get_session(store_of(target)._engine.id_of(key), 60)
    if not is_there(source, key) or (copy is not None and "certain" in dict(copy).values()):
        return False
    store_of(source, key).delete()
    return True


def check(target: str, keys: dict[str, int | None]) -> None:
    """Check that the target has these sessions with these numbers, none where it is ``None``, and no others."""
    found = {key: (stored(target, key) or {}).get("number") for key in keys}
    assert found == keys
    storage = store_of(target).get_storage()
    engine = store_of(target)._engine
    known = {engine.id_of(key) for key, number in keys.items() if number is not None}
    others = [storage.get_session(session_id, 60) for session_id in storage.ids() if session_id not in known]
    # The rest of an ended session says ``begun`` until it expires.
    assert all("begun" in dict(session or {"": "begun"}).values() for session in others)
    assert len(known & {*storage.ids()}) == len(known)


def kill_at_each_step(parent: Parent, folder: Path, source: str, target: str, options: tuple[str, ...]) -> None:
    with old_site(folder):
        storage = store_of(target).get_storage()
        for turn in itertools.count(1):
            keys: dict[str, int | None] = {new_session(source, {"number": number}): number for number in range(1, 4)}
            through = not killed_at(turn, source, target, options)
            ended = list(keys)[turn % 3]
            if not options and sign_out(source, target, ended):
                keys[ended] = None
            migrate(source, target, *options)
            check(target, keys)
            assert [is_there(source, key) for key in keys] == [bool(options)] * 3
            for key in keys:
                store_of(source, key).delete()
            for session_id in list(storage.ids()):
                storage.remove_all(session_id)
            if through:
                parent.say(turn - 1)
                return


@pytest.mark.parametrize("options", [(), ("--copy",)], ids=["move", "copy"])
@each_way
def test_killed_at_any_step_it_is_completed_by_the_next_run(
    tmp_path: Path, source: str, target: str, options: tuple[str, ...]
) -> None:
    with Worker(tmp_path, kill_at_each_step, tmp_path, source, target, options) as killer:
        assert killer.hear() >= 12


def kill_at_random(parent: Parent, folder: Path, seed: int, source: str, target: str) -> None:
    chance = random.Random(seed)
    keys: dict[str, int | None] = {}
    kills = 0

    def run() -> None:
        migrate(source, target, "--batch-size", "3")

    def start() -> int:
        keys.update({new_session(source, {"number": number}): number for number in range(1, NEW + 1)})
        connections.close_all()
        return fork(run, [])

    with old_site(folder):
        begin = time.monotonic()
        assert not was_killed(os.waitpid(start(), 0)[1])
        lifetime = time.monotonic() - begin
        while kills < KILLS or None not in keys.values():
            pids = [start(), fork(run, [])]
            time.sleep(chance.uniform(0, lifetime))
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            killed = sum(was_killed(os.waitpid(pid, 0)[1]) for pid in pids)
            if not killed:  # the first run was slower
                lifetime /= 2
            kills += killed
            there = [key for key in keys if is_there(source, key)]
            for key in chance.sample(there, min(len(there), 3)):
                if sign_out(source, target, key):
                    keys[key] = None
        migrate(source, target)
        check(target, keys)
        assert not any(is_there(source, key) for key in keys)
        parent.say()


@each_way
def test_two_at_once_that_are_killed_at_random_are_completed_by_the_next_run(
    tmp_path: Path, source: str, target: str
) -> None:
    seed = int(os.environ.get("GSESSION_TEST_SEED") or random.randrange(10**9))
    print(f"GSESSION_TEST_SEED={seed} makes the same choices again")  # pytest shows it after a failure
    with Worker(tmp_path, kill_at_random, tmp_path, seed, source, target) as killer:
        killer.hear()
