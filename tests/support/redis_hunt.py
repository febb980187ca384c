"""The hunt for another visitor's data: processes, threads and tasks read sessions while something disturbs them.

Every session holds its own name: in a small value, in a dict and in a large value. Each read is compared with it.
"""

import asyncio
import ctypes
import gc
import json
import os
import random
import socket
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from django.conf import settings
from django.contrib.sessions.backends.base import UpdateError

from gsession_django import SessionStore, StorageUnavailable
from gsession_django.backends import redis, redis_hash
from tests.support.processes import Parent
from tests.support.proxies import Passed, Proxy
from tests.support.redis_servers import LENT

SESSIONS: Final = 1000
WORKERS: Final = 8
THREADS: Final = 3
TASKS: Final = 8
SOCKET_TIMEOUT: Final = 0.5
"""Seconds, in the workers. The proxy delays some replies for longer."""
PATIENCE: Final = 400.0

# Kept connections and pooled ones, with both protocols.
CLIENTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "kept, RESP3": ("?protocol=3", {}),
    "kept, RESP2": ("?protocol=2", {}),
    "lent, RESP3": ("?protocol=3", LENT),
    "lent, RESP2": ("?protocol=2", LENT),
}
ENGINES: Final[dict[str, type[SessionStore]]] = {"redis": redis.SessionStore, "redis_hash": redis_hash.SessionStore}
KINDS: Final = {"load": 40, "modify": 25, "touch": 10, "cycle_key": 10, "large": 15}


class HuntingProxy(Proxy):
    """Delays replies, cuts connections in the middle of a reply, and sends some replies in two parts.

    Attributes:
        hunting: whether to disturb connections opened from now on. It never disturbs earlier ones.
        caused: the number of disturbances, by kind.
        lost: the number of undisturbed connections that have ended.
    """

    def __init__(self, port: int) -> None:
        self.hunting = False
        self.caused: Counter[str] = Counter()
        self.lost = 0
        self._peaceful: set[int] = set()
        self._rng = random.Random(7)
        super().__init__(port)

    def _pass_on(self, number: int, source: socket.socket, target: socket.socket, way: str) -> None:
        if not self.hunting:
            self._peaceful.add(number)
        with suppress(OSError):
            while data := source.recv(65536):
                for passed, cut in self._parts(number, data, way):
                    target.sendall(passed)
                    if cut:
                        raise ConnectionAbortedError
        self._close(source, target)
        if number in self._peaceful and way == "on_request":
            self.lost += 1

    def _parts(self, number: int, data: bytes, way: str) -> Iterator[Passed]:
        chance = self._rng.random()
        if number in self._peaceful or way == "on_request" or chance > 0.024:
            yield data, False
            return
        what, middle = "parts", self._rng.randrange(len(data))
        if chance < 0.002:
            what = "cuts"
        elif chance < 0.014:
            what, middle = "delays", 0
        self.caused[what] += 1
        yield data[:middle], what == "cuts"
        time.sleep(self._rng.uniform(0, 2 * SOCKET_TIMEOUT))  # the delay is the disturbance
        yield data[middle:], False


# The master fills it, and its forks, the workers, inherit it.
stores_of_process: list[tuple[str, str, type[SessionStore]]] = []
keys: dict[tuple[str, int], str] = {}


def stores() -> list[tuple[str, str, type[SessionStore]]]:
    """Return a SessionStore for each engine and client, with their names."""
    return [(engine, alias, _store_class(engine, alias)) for engine in ENGINES for alias in CLIENTS]


def _store_class(engine: str, alias: str) -> type[SessionStore]:
    base: Any = ENGINES[engine].storage_class

    def init(self: Any) -> None:
        settings.SESSION_CACHE_ALIAS = alias
        base.__init__(self, prefix="hunt:", max_idle=2 * PATIENCE)  # so long that the parent closes none itself

    storage_class = type(base.__name__, (base,), {"__init__": init})
    return type("SessionStore", (ENGINES[engine],), {"storage_class": storage_class, "__module__": __name__})


def use_server(url: str, socket_timeout: float) -> None:
    """Use this server for all stores that this process opens from now on."""
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}} | {
        alias: {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": url + query,
            "OPTIONS": {"SOCKET_TIMEOUT": socket_timeout, **options},
        }
        for alias, (query, options) in CLIENTS.items()
    }


def name_of(engine: str, number: int) -> str:
    return f"visitor {number} of {engine}"


def large_of(name: str) -> str:
    return f"{name} " * 1000  # too large for the small values of redis_hash


def create_sessions() -> None:
    for engine, alias, store_class in stores():
        if alias == next(iter(CLIENTS)):
            for number in range(SESSIONS):
                store = store_class()
                name = name_of(engine, number)
                # The other engine would read and write the large value each time.
                large = {"large": large_of(name)} if engine == "redis_hash" or number % 10 == 0 else {}
                store.update({"name": name, "cart": {"name": name}, **large})
                store.save()
                assert store.session_key is not None
                keys[engine, number] = store.session_key


class Interrupted(BaseException):
    """Raised in a thread at any moment."""


class Hunter:
    """One request after another, in its own thread or task.

    Attributes:
        counts: the number of requests, by outcome and by kind.
        wrong: the reads that returned another session's data.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.done = 0
        self._own_store = stores_of_process[seed // 100 % len(stores_of_process)]
        self._own_name = f"own of {seed} in {os.getpid()}"
        self._own_keys: dict[str, str | None] = {}
        self._next()

    def _next(self) -> None:
        """Choose the next request."""
        # Mostly the worker's own, so that a connection is soon used again.
        store = self._own_store if self.rng.random() < 0.7 else self.rng.choice(stores_of_process)
        self.engine, self.alias, self._store_class = store
        self._kind: str = self.rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
        number = self.rng.randrange(SESSIONS)
        if self._kind == "large" and self.engine == "redis":
            number -= number % 10
        self._key: str | None = keys[self.engine, number]
        self._name = name_of(self.engine, number)
        if self._kind == "cycle_key":
            # A session that nobody else uses. After a failed try a new one, because its key is unknown.
            self._key, self._name = self._own_keys.pop(self.engine, None), self._own_name

    def _did(self) -> None:
        self.done += 1
        self.counts[self._kind] += 1
        self.counts[f"{self.engine}, {self.alias}"] += 1

    def _compare(self, what: str, found: Any, expected: str) -> None:
        if found != expected:
            self.wrong.append(f"{self.engine}, {self.alias}: the {what} of {self._name!r} is {str(found)[:80]!r}")

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, UpdateError):
            self.wrong.append(f"{self.engine}, {self.alias}: {self._name!r} was reported as gone")
        elif isinstance(error, StorageUnavailable):
            self.counts["unanswered" if "TimeoutError" in str(error) else "dropped"] += 1
        else:
            self.wrong.append(f"{self.engine}, {self.alias}: {''.join(traceback.format_exception(error))}")

    def visit(self) -> None:
        """Carry out a request."""
        self._next()
        store = self._store_class(self._key)
        if self._key is None:
            store["name"] = self._name
            store.save()
        else:
            self._compare("name", store.get("name"), self._name)
        match self._kind:
            case "modify":
                self._compare("cart", store["cart"]["name"], self._name)
                store["cart"]["apples"] = store["count"] = self.rng.random()
                store.save()
            case "touch":
                store.modified = True
                store.save()
            case "cycle_key":
                store.cycle_key()
                store.save()
                self._own_keys[self.engine] = store.session_key
            case "large":
                self._compare("large value", store["large"], large_of(self._name))
        self._did()

    async def avisit(self) -> None:
        """The same, awaited."""
        self._next()
        store = self._store_class(self._key)
        if self._key is None:
            await store.aset("name", self._name)
            await store.asave()
        else:
            self._compare("name", await store.aget("name"), self._name)
        match self._kind:
            case "modify":
                cart = await store.aget("cart")
                self._compare("cart", cart["name"], self._name)
                cart["apples"] = self.rng.random()
                await store.aset("count", cart["apples"])
                await store.asave()
            case "touch":
                store.modified = True
                await store.asave()
            case "cycle_key":
                await store.acycle_key()
                await store.asave()
                self._own_keys[self.engine] = store.session_key
            case "large":
                self._compare("large value", await store.aget("large"), large_of(self._name))
        self._did()


class Crew:
    """The hunters of one worker: threads to interrupt, and tasks to cancel and to time out."""

    def __init__(self, number: int, share: int) -> None:
        self._share = share
        self._deadline = time.monotonic() + PATIENCE
        self._threads = [Hunter(100 * number + each) for each in range(THREADS)]
        self._tasks = [Hunter(100 * number + 50 + each) for each in range(TASKS)]
        self._exposed: set[int] = set()

    def _goes_on(self) -> bool:
        done = sum(hunter.done for hunter in (*self._threads, *self._tasks))
        return done < self._share and time.monotonic() < self._deadline

    def hunt(self) -> tuple[Counter[str], list[str]]:
        threads = [threading.Thread(target=self._in_thread, args=(hunter,)) for hunter in self._threads]
        for thread in threads:
            thread.start()
        ended = threading.Event()
        interrupter = threading.Thread(target=self._interrupt, args=(ended,))
        interrupter.start()
        asyncio.run(self._in_tasks(), debug=False)
        for thread in threads:
            thread.join()
        ended.set()
        interrupter.join()
        hunters = (*self._threads, *self._tasks)
        counts = sum((hunter.counts for hunter in hunters), Counter(done=sum(hunter.done for hunter in hunters)))
        return counts, [each for hunter in hunters for each in hunter.wrong]

    def _in_thread(self, hunter: Hunter) -> None:
        me = threading.get_ident()
        while True:
            with suppress(Interrupted):  # an interrupt may come late
                try:
                    while self._goes_on():
                        self._exposed.add(me)
                        try:
                            hunter.visit()
                        except Interrupted:
                            hunter.counts["interrupted"] += 1
                        except Exception as error:
                            hunter._failed(error)
                finally:
                    self._exposed.discard(me)
                return

    def _interrupt(self, ended: threading.Event) -> None:
        rng = random.Random(os.getpid())
        while not ended.wait(rng.uniform(0, 0.1)):
            for thread in rng.sample(sorted(self._exposed), k=min(1, len(self._exposed))):
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Interrupted))

    async def _in_tasks(self) -> None:
        await asyncio.gather(*map(self._in_task, self._tasks))

    async def _in_task(self, hunter: Hunter) -> None:
        rng, loop = hunter.rng, asyncio.get_running_loop()
        while self._goes_on():
            chance, moment = rng.random(), rng.uniform(0, 0.01)
            try:
                if chance < 0.1:
                    async with asyncio.timeout(moment):
                        await hunter.avisit()
                elif chance < 0.2:
                    task = asyncio.create_task(hunter.avisit())
                    loop.call_later(moment, task.cancel)
                    await task
                else:
                    await hunter.avisit()
            except TimeoutError:
                hunter.counts["timed out"] += 1
            except asyncio.CancelledError:
                hunter.counts["cancelled"] += 1
            except Exception as error:
                hunter._failed(error)


class Master:
    """The process that opens connections, forks the workers, and goes on using its connections undisturbed."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self.thread, self.tasks = Hunter(1), [Hunter(2 + each) for each in range(3)]
        self.hunters = (self.thread, *self.tasks)
        self._warm = threading.Barrier(3, timeout=60)
        self._running = [threading.Thread(target=each) for each in (self._in_thread, self._in_loop)]
        for thread in self._running:
            thread.start()
        self._warm.wait()

    def _in_thread(self) -> None:
        for engine, _, store_class in stores_of_process:
            assert store_class(keys[engine, 0])["name"] == name_of(engine, 0)
        self._warm.wait()
        while not self._ended.wait(0.002):
            try:
                self.thread.visit()
            except Exception as error:
                self.thread._failed(error)

    def _in_loop(self) -> None:
        asyncio.run(self._in_tasks(), debug=False)

    async def _in_tasks(self) -> None:
        for engine, _, store_class in stores_of_process:
            await asyncio.gather(*(store_class(keys[engine, 0]).aload() for _ in self.tasks))
        self._warm.wait()
        await asyncio.gather(*map(self._in_task, self.tasks))

    async def _in_task(self, hunter: Hunter) -> None:
        while not self._ended.is_set():
            await asyncio.sleep(0.002)
            try:
                await hunter.avisit()
            except Exception as error:
                hunter._failed(error)

    def end(self) -> None:
        self._ended.set()
        for thread in self._running:
            thread.join()


def run(parent: Parent, url: str, operations: int) -> None:
    """Report when the master is ready. Hunt once the test answers that the proxy has begun, and report the results."""
    # Python 3.12 and later warn of a fork beside threads. Servers that preload an application fork so.
    warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
    use_server(url, 20)  # only its children's actions may cost it a connection
    stores_of_process.extend(stores())
    create_sessions()
    master = Master()
    parent.meet()
    reports = [_fork(number, url, operations // WORKERS + 1) for number in range(WORKERS)]
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for pid, reading in reports:
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"worker {pid} ended with {status}: {said}"
        found, also_wrong = json.loads(said)
        counts.update(found)
        wrong += also_wrong
    # Before the process ends, because its connections end with it.
    parent.meet()
    master.end()
    for hunter in master.hunters:
        wrong += hunter.wrong
    failed = sum(hunter.counts[what] for hunter in master.hunters for what in ("unanswered", "dropped"))
    parent.say((dict(counts), sum(hunter.done for hunter in master.hunters), failed, wrong))


def _fork(number: int, url: str, share: int) -> tuple[int, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        os.close(reading)
        use_server(url, SOCKET_TIMEOUT)
        # The garbage collector removes, with a message, what an interrupt between two lines has lost.
        sys.unraisablehook = _unraisable
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()  # finalises every object of the parent that the child has dropped
        with os.fdopen(writing, "w") as pipe:
            try:
                json.dump(Crew(number, share).hunt(), pipe)
            except BaseException:
                pipe.write(traceback.format_exc())
                raise
    except BaseException:
        os._exit(1)
    os._exit(0)


def _unraisable(unraisable: Any) -> None:
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)
