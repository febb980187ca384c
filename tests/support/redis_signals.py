"""In `python -m tests.support.redis_signals URL ENGINE` signal handlers raise while redis-py packs commands.

Soft time limits do so. It is a separate program, because hiredis may crash it.
"""

import os
import signal
import sys
from importlib import import_module
from typing import Any

import django
from django.test import override_settings

SIGNALS = 3000


class TimeLimit(BaseException):
    """The signal handler raises it."""


def main(url: str, engine: str) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    from gsession_django.redis.commands import Batch
    from tests.support.redis_servers import connection_of, settings_for

    batches: list[Batch] = []
    with override_settings(**settings_for(engine, url, prefix="signals:", wait_replicas=1, wait_timeout=0.001)):
        stores: Any = import_module(engine).SessionStore
        way = stores.get_storage().client._way
        exchange = way.exchange

        def recorded(batch: Batch) -> Any:
            batches.extend((batch, batch.in_full()))
            return exchange(batch)

        way.exchange = recorded
        store = stores()
        store.update({"user": 1, "cart": {"apples": 1}, "large": "x" * 20_000})
        store.save()
        store = stores(store.session_key)
        store["cart"]["pears"] = store["count"] = 10**9
        store.save()
        store.modified = True
        store.save()
        store.cycle_key()
        store.save()
        store.delete()
        packer = connection_of(way)._command_packer
    assert len(batches) > 10

    raised, armed = 0, False

    def limit(*_: object) -> None:
        nonlocal raised, armed
        if armed:  # inside the try
            raised, armed = raised + 1, False
            raise TimeLimit

    signal.signal(signal.SIGALRM, limit)
    signal.setitimer(signal.ITIMER_REAL, 0.00005, 0.00005)
    while raised < SIGNALS:
        try:
            armed = True
            while True:
                for batch in batches:
                    batch.packed()
                packer.pack("SELECT", 1)  # at a new connection redis-py sends a number here
        except TimeLimit:
            pass
    signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
