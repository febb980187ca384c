"""What the two Redis engines have in common: options, keys, and waiting for replicas."""

import logging
import re
from collections.abc import Callable, Coroutine, Iterator
from copy import copy
from typing import Annotated, Any, ClassVar, Final, Self, TypeVar

from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured
from redis.crc import key_slot

from gsession_django import recording
from gsession_django.core.options import AtLeast
from gsession_django.core.storage import Storage
from gsession_django.core.store import SessionStore
from gsession_django.redis import checks, users
from gsession_django.redis.client import RedisClient
from gsession_django.redis.commands import Batch, Command, Operation, escaped
from gsession_django.redis.connections import Limits
from gsession_django.redis.lock import lock_session, unlock_session
from gsession_django.redis.move import Held, beside, move_between_nodes
from gsession_django.redis.prefix import Prefix, function_of, text_of
from gsession_django.redis.settings import WAIT_TIMEOUT, CacheEntry

logger = logging.getLogger("gsession_django")

T = TypeVar("T")

# Keys that one SCAN looks at: a few hundred microseconds of the server's time.
_SCAN_COUNT: Final = 1000
# An id that a session can have: its digest, or a key that a cookie can hold.
_ID: Final = re.compile(rb"[A-Za-z0-9!#$%&'*+\-.^_`|~:]{8,}")


def both(
    operation: Callable[..., Operation[T]],
) -> tuple[Callable[..., T], Callable[..., Coroutine[Any, Any, T]]]:
    """Return the method and the async method that carry out an operation."""

    def method(self: "BaseRedisStorage", *args: Any, **kwargs: Any) -> T:
        return self.client.carry_out(operation(self._now(), *args, **kwargs))

    async def amethod(self: "BaseRedisStorage", *args: Any, **kwargs: Any) -> T:
        return await self.client.acarry_out(operation(self._now(), *args, **kwargs))

    return method, amethod


class BaseRedisStorage(Storage):
    """Base of the Redis storages.

    Args:
        prefix: comes before the session id, and after the ``KEY_PREFIX`` of the entry in ``CACHES``. A function without
            arguments, or its dotted path with ``()`` after it, is asked at each operation: for a site with tenants.
        wait_replicas: how many replicas have to acknowledge a change before it counts as stored; with fewer it is
            kept, and a warning logged. 0 waits for none.
        wait_timeout: seconds to wait for them at most; it has to be less than the server may take to answer.
        max_idle: seconds after which a connection that was idle is not used again.
        fail_fast_after: requests in a row without an answer in time, after which others fail at once, but one each half
            a second that tries. 0 lets each try.
    """

    expires_itself = True
    # Redis's name for the type of a session's key.
    redis_type: ClassVar[str]
    # What stands around prefix and id in a key.
    around: ClassVar[tuple[str, str]] = ("", "")

    def __init__(
        self,
        prefix: Prefix = "gsession:",
        wait_replicas: Annotated[int, AtLeast(0)] = 0,
        wait_timeout: Annotated[float, AtLeast(0)] = WAIT_TIMEOUT,
        max_idle: Annotated[float, AtLeast(0)] = 60.0,
        fail_fast_after: Annotated[int, AtLeast(0)] = 3,
    ) -> None:
        entry = CacheEntry.of_sessions()
        self.client = RedisClient(entry, Limits(max_idle, fail_fast_after))
        milliseconds = max(1, round(wait_timeout * 1000))
        self._replicas = wait_replicas
        self._wait = ("WAIT", str(wait_replicas), str(milliseconds)) if wait_replicas else None
        # In a cluster: what requests have read, for as long as they hold it.
        self._held = Held() if entry.is_cluster else None
        self._function = function_of(prefix, entry)
        self._after = self.around[1]
        if self._function is None:
            self._begin_with(str(prefix))

    def _begin_with(self, prefix: str) -> None:
        entry = self.client.entry
        self._before = entry.key_prefix + self.around[0] + prefix
        key = self._key("0")
        if entry.is_cluster and key_slot(beside(key).encode()) != key_slot(key.encode()):
            raise ImproperlyConfigured(
                f"{entry}: the keys of sessions would be like {key!r}, whose braces keep what belongs to one from "
                "being in the same slot of the cluster. Take them out of KEY_PREFIX and of the engine's option prefix."
            )

    def system(self) -> recording.System:
        return self.client.entry.system

    def _now(self) -> Self:
        """Return the storage for one operation, with the keys of one tenant: the current one may change meanwhile."""
        if self._function is None:
            return self
        storage = copy(self)
        storage._begin_with(text_of(self._function))
        return storage

    def _key(self, session_id: str) -> str:
        """Return the key without which there is no session."""
        return f"{self._before}{session_id}{self._after}"

    def _keys(self, session_id: str) -> tuple[str, ...]:
        """Return the keys that a session has, that one first."""
        return (self._key(session_id),)

    def _exists(self, session_id: str) -> Operation[bool]:
        (there,) = yield Batch(("EXISTS", self._key(session_id)))
        return bool(there)

    def _remove_all(self, session_id: str) -> Operation[None]:
        self._changed((yield self._change(("UNLINK", *self._keys(session_id)))))

    def _move(self, session_id: str, new_id: str, ttl: int) -> Operation[bool]:
        if self._held is not None:
            return (yield from move_between_nodes(self, session_id, new_id, ttl, self._held.get(self._key(session_id))))
        return bool(self._changed((yield self._change(self._rename(session_id, new_id)))))

    def _rename(self, session_id: str, new_id: str) -> Command:
        """Return the command that renames a session on one server."""
        raise NotImplementedError

    def _leave(self, session_id: str, new_id: str, copied: Any = None) -> Command:
        raise NotImplementedError

    def _read(self, reply: Any) -> Any:
        raise NotImplementedError

    def _copy(self, new_id: str, session: Any, ttl: int) -> Command:
        raise NotImplementedError

    def _change(self, *commands: Command, repeat: bool = True) -> Batch:
        """Return the batch of commands that change a session; its replies go to :meth:`_changed`.

        If the reply to a create is lost, the second create finds the id taken, and the adapter takes another key. The
        two sessions are not compared: an equal one may be another visitor's.
        """
        return Batch(*commands, repeat=repeat) if self._wait is None else Batch(*commands, self._wait, repeat=repeat)

    def _changed(self, replies: list[Any]) -> Any:
        """Return the reply to the last of the commands that change a session."""
        if self._wait is None:
            return replies[-1]
        *_, reply, acknowledged = replies
        if acknowledged < self._replicas:
            logger.warning(
                "%s: %d of the %d replicas that the option wait_replicas asks for acknowledged a change within %d ms. "
                "It is kept; a failover may lose it. Look at the replicas.",
                self.client.entry,
                acknowledged,
                self._replicas,
                int(self._wait[2]),
            )
        return reply

    def ids(self) -> Iterator[str]:
        return self._now()._ids()

    def _ids(self) -> Iterator[str]:
        before, after = self._before.encode(), self._after.encode()
        pattern = f"{escaped(self._before)}*{escaped(self._after)}"
        for key in self.client.scan(pattern, _SCAN_COUNT, self.redis_type):
            session_id = key[len(before) : len(key) - len(after)]
            if _ID.fullmatch(session_id):
                yield session_id.decode()

    exists, aexists = both(_exists)
    remove_all, aremove_all = both(_remove_all)
    move, amove = both(_move)
    sessions_of, asessions_of = both(users.sessions_of)
    add_to_user, aadd_to_user = both(users.add_to_user)
    remove_from_user, aremove_from_user = both(users.remove_from_user)
    lock, alock = both(lock_session)
    unlock, aunlock = both(unlock_session)


class BaseRedisSessionStore(SessionStore):
    """Base of the Redis engines."""

    @classmethod
    def check(cls) -> list[CheckMessage]:
        return list(checks.check_entry(cls.__module__))

    @classmethod
    def check_deployment(cls) -> list[CheckMessage]:
        return list(checks.check_server(cls.__module__))
