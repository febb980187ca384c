"""`python -m tests.support.redis_preload URL kept|lent` opens connections, forks, and goes on using them.

Application servers do so when they load the site before they fork their workers. If that goes wrong, an assertion
fails. It is a separate program: its children must end as ordinary processes do, and finalise all their objects.
"""

import asyncio
import gc
import os
import sys
import threading
import time
import warnings
from typing import Any

import django
import redis
from django.conf import settings

PATIENCE = 30.0


def main(url: str, kind: str) -> None:
    # Python 3.12 and later warn of a fork beside a thread.
    warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    # At this moment a child has dropped the engines, and the Redis clients do not know of the fork yet.
    os.register_at_fork(after_in_child=gc.collect)
    from gsession_django.backends.redis import SessionStore
    from tests.support.redis_servers import LENT, settings_for

    entry = {"OPTIONS": LENT if kind == "lent" else {}}
    for name, value in settings_for(SessionStore.__module__, url, entry, prefix="preload:").items():
        setattr(settings, name, value)
    control = redis.Redis.from_url(url)

    def connected() -> set[str]:
        return {client["addr"] for client in control.client_list() if client["id"] != str(control.client_id())}

    async def aread() -> Any:
        return await SessionStore(key).aget("name")

    def read_both() -> None:
        assert SessionStore(key).get("name") == "ada"
        assert asyncio.run_coroutine_threadsafe(aread(), loop).result(PATIENCE) == "ada"

    store = SessionStore()
    store["name"] = "ada"
    store.save()
    key = store.session_key
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    read_both()
    ours = connected()

    # A child that uses its own connections, and ends.
    if not (child := os.fork()):
        gc.collect()
        assert SessionStore(key).get("name") == "ada"
        assert asyncio.run(aread()) == "ada"
        assert connected() > ours
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
    read_both()
    assert connected() == ours, "the parent's connections were closed"

    # A child that lives on, while the parent closes its connections.
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.close(writing)
        os.read(reading, 1)
        sys.exit()
    asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while len(connected()) == len(ours):
        assert time.monotonic() < deadline, "the child keeps the parent's connections open"
        time.sleep(0.01)  # no event tells when the server has noticed
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
