"""The Storage interface: where sessions are kept.

It is the interface of GoFrame's ``gsession`` (https://goframe.org/en/docs/core/gsession-storage) in Python's spelling.
It has eleven methods, none of them mandatory by itself, and a few extensions for operations that Django needs to be
atomic. Three methods are enough: ``get_session``, ``set_session`` and ``remove_all``. A storage overrides the methods
that it can carry out. The adapter, :class:`gsession_django.SessionStore`, makes a complete Django session engine of it.
``docs/writing-a-storage.md`` builds one, step by step.

These rules hold for every method:

* ``session_id`` is a ``str``: the SHA-256 of the session key in hexadecimal, or the key itself where
  :attr:`.Storage.hash_ids` is off. An id is unknown if the storage does not have it, could never have stored it (too
  long, strange characters), or its TTL is over. An unknown id never raises an exception.
* ``ttl`` is whole seconds from now. With zero or less, the session expires at once.
* ``data`` maps ``str`` to any value that ``SESSION_SERIALIZER`` can take. A storage neither keeps the object that it is
  given nor hands out the one that it keeps: it keeps bytes (:meth:`.Storage.encode`) or copies.
* A storage that cannot answer raises :class:`StorageUnavailable`. It never answers as if the session were not there.
* Every method lets the ``DecodeError`` of :meth:`.Storage.decode` through. It means that a session is stored and cannot
  be read. The adapter neither removes nor overwrites it.
* One storage object serves the whole process: all its threads and event loops at once, and a child that is forked from
  it. It keeps connections that cannot be shared by thread, process (``os.getpid()``) and event loop. Nobody closes it.
* A method that waits for a lock, or for its turn, reads the clock after the wait.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from gsession_django import serializers
from gsession_django.core.session_map import SessionMap
from gsession_django.core.transactions import Transaction
from gsession_django.recording import System


class Disabled(NotImplementedError):
    """A storage method raises it to say that the storage does not have it. The adapter then does without the method."""


class StorageUnavailable(Exception):
    """The storage cannot answer now: a timeout, a refused connection, a full disk.

    The session may still be there. So nobody is signed out because of it, and no cookie is deleted.
    """


class Removed(int):
    """How many expired sessions a step of :meth:`.Storage.purge` removed, from a storage that knows which they were.

    Args:
        ids: their session ids.
    """

    ids: Sequence[str]

    def __new__(cls, ids: Sequence[str]) -> Self:
        number = super().__new__(cls, len(ids))
        number.ids = ids
        return number


class Storage:
    """Base class of every storage. The keyword arguments of ``__init__`` are the engine's options in
    ``GSESSION["ENGINES"]``. ``__init__`` connects to nothing.

    A storage is async if it has a native twin of each method that it overrides, except ``purge`` and ``ids``: an async
    method with Django's ``a`` before the name (``aget_session``). The ``a`` methods of ``request.session`` and
    :class:`gsession_django.middleware.SessionMiddleware` then await the twins, and an async request never enters a
    thread. For any other storage, the adapter runs each operation in one ``sync_to_async``.

    Attributes:
        hash_ids: whether ids are hashed session keys: a leaked dump then holds no key that opens a session. It is off
            for a storage that makes its own ids and must recognise them. The option of the same name wins over it.
        expires_itself: whether the medium removes expired sessions by itself. The storage then has no ``purge``.
        reads_settings: whether it uses Django's settings beside its options. When a test overrides ``GSESSION``,
            ``CACHES`` or a ``SESSION_*`` setting, the adapter makes such a storage anew. It keeps any other, with its
            sessions, until the options change.
    """

    hash_ids: ClassVar[bool] = True
    expires_itself: ClassVar[bool] = False
    reads_settings: ClassVar[bool] = True

    encode = staticmethod(serializers.encode)
    decode = staticmethod(serializers.decode)

    # The eleven methods of gsession.

    def new(self, ttl: int) -> str:
        """Return a new session key, made by the storage: the value of the cookie.

        Called before a session is created. The key has at least 8 characters, all of them letters, digits or one of
        ``!#$%&'*+-.^_`|~:``, or the adapter raises ``ValueError``. Without this method the adapter makes a random key
        of 32 characters.
        """
        raise Disabled

    def get(self, session_id: str, key: str) -> Any:
        """Return one value, or ``None`` if `key` is not in the session or there is no such session.

        A storage that has this method is a per-key storage. Called when a key is first asked for in a request, if
        :meth:`get_session` returned an empty mapping.
        """
        raise Disabled

    def get_map(self, session_id: str) -> dict[str, Any]:
        """Return all pairs; an empty ``dict`` if there is no such session.

        Called on a per-key storage when :meth:`get` returned ``None`` or all keys are wanted, once in a request. An
        operation composed of several calls calls it again if it needs the whole session.
        """
        raise Disabled

    def get_size(self, session_id: str) -> int:
        """Return the number of pairs; 0 if there is no such session.

        Called for ``len(request.session.keys())`` on a per-key storage, before any value was changed.
        """
        raise Disabled

    def set(self, session_id: str, key: str, value: Any, ttl: int) -> None:
        """Store one pair. `ttl` is that of the session, not of the pair.

        Called for each changed pair when a changed session is closed, if there is no :meth:`set_map`.
        """
        raise Disabled

    def set_map(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        """Store the pairs of `data` at once and keep the session's other pairs. Create the session if it is not there.

        Called with the changed pairs when a changed session is closed, before :meth:`set_session`.
        """
        raise Disabled

    def remove(self, session_id: str, key: str) -> None:
        """Remove one pair. Do nothing if it is not there. Called after :meth:`set`, for each removed pair."""
        raise Disabled

    def remove_all(self, session_id: str) -> None:
        """Remove the session. Do nothing if there is none. Called by ``flush()`` and ``delete()``."""
        raise Disabled

    def get_session(
        self, session_id: str, ttl: int, data: Mapping[str, Any] | None = None
    ) -> SessionMap | Mapping[str, Any] | None:
        """Return the session, or ``None`` if it is unknown or its TTL is over. Called whenever a session starts.

        Args:
            session_id: the session's id.
            ttl: how long a session of this site lives, for a storage that counts from the last use.
            data: the process's last copy of the session. This adapter keeps no copies and passes ``None``.

        Returns:
            A mapping with pairs is the complete session. An empty mapping means «ask me key by key» if it comes from a
            per-key storage, and otherwise an empty session. A :class:`SessionMap` can carry more than a ``dict``: the
            version that :meth:`apply` wants back; ``ttl_left``, without which touches are not coalesced; values that
            are still encoded or not fetched. Its ``partial`` says whether to ask key by key.
        """
        raise Disabled

    def set_session(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        """Replace the stored pairs with `data`, all that the request knows of the session, and renew the TTL.

        Called whenever a changed session is closed. In a per-key storage, :meth:`set_map` has stored the pairs by then:
        it only renews the TTL here.
        """
        raise Disabled

    def update_ttl(self, session_id: str, ttl: int) -> bool | None:
        """Renew the TTL: a touch. Called whenever an unchanged session is closed.

        Returns:
            ``False`` if the session is gone. Any other value, ``None`` too, says nothing.
        """
        raise Disabled

    # Extensions: operations that Django needs to be atomic, and that the eleven methods cannot express.

    def exists(self, session_id: str) -> bool:
        """Return whether there is such a session. Without this method the adapter calls :meth:`get_session`."""
        raise Disabled

    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        """Store a session (``session.as_dict()``) that is not there yet. The id of an expired session is not taken.

        To move sessions to an engine, its storage needs this method and :meth:`apply`.

        Returns:
            ``True``; ``False``, with nothing changed, if the id is taken.
        """
        raise Disabled

    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        """Merge what this request changed in `session` into the stored session, atomically, and renew the TTL.

        The changes of other requests are kept: ``session.merged_onto(current)`` is the session to store. If the storage
        sees by ``session.version`` that nobody wrote since the read, it may store ``session.as_dict()`` unmerged. If
        ``session.renews_ttl(current)`` is false, the TTL stays as it is. The storage sets ``session.version`` to the
        version that it stored, or to ``None``.

        Returns:
            ``True``; ``False``, with nothing stored, if the session is gone.
        """
        raise Disabled

    def move(self, session_id: str, new_id: str, ttl: int) -> bool:
        """Give the session a new id and keep its data. The old id is then unknown. Called by ``cycle_key()``.

        The TTL stays as it is: the save that follows renews it. `ttl` is for a medium that has to write a TTL. It holds
        for a session without its own expiry (``set_expiry()``).

        Returns:
            ``True`` if it was moved; also if only the new id has a session, because an earlier try moved it.
            ``False``, with nothing stored, if both ids have a session, or neither has.
        """
        raise Disabled

    # Whose sessions: an index from a user's id to sessions. A storage that has none lacks only what is built on it.

    def sessions_of(self, user_id: str) -> Iterable[str]:
        """Return the ids of the sessions in which this user is signed in, in any order; empty for an unknown user.

        The index is a hint and the session the truth. An id may be listed whose session has ended, or is another
        user's by now: the adapter loads each session and checks. An id that is missing here is an error: nobody could
        end that session.

        A storage that can keep the index with the session itself (a column, say) finds the user's id in the session,
        under Django's ``_auth_user_id``, in :meth:`create` and :meth:`apply`. Then it needs none of the next two.

        Args:
            user_id: what Django keeps in a session for the user: ``str(user.pk)`` as a rule. It may be any text.
        """
        raise Disabled

    def add_to_user(self, user_id: str, session_id: str, ttl: int) -> None:
        """List a session among those of a user.

        Called before the session is stored under this id with this user signed in, so that a process that is killed
        in between leaves an id too many, never one too few. A storage that drops ids without a session, as
        :meth:`sessions_of` finds them, has to spare those that were added less than a minute ago.

        Args:
            user_id: as for :meth:`sessions_of`.
            session_id: the session's id.
            ttl: seconds that the id is to be listed at least: twice what the session lives. The adapter calls this
                again before they are over, while the session is in use.
        """
        raise Disabled

    def remove_from_user(self, user_id: str, session_id: str, ended: bool) -> None:
        """Take a session out of the list of a user; nothing happens when it is not there.

        Args:
            user_id: as for :meth:`sessions_of`.
            session_id: the session's id.
            ended: whether the session ends: then the storage removes it too, first, and the adapter does not call
                :meth:`remove_all`. On a server that can be one round trip. Otherwise the session has gone on under
                another id, or without this user.
        """
        raise Disabled

    # One at a time: for gsession_django.decorators.session_lock.

    def lock(self, session_id: str, token: str, seconds: float) -> bool:
        """Let one holder have a session to itself, among all who ask for it: other requests read and write it still.

        Args:
            session_id: the session's id; whether there is such a session does not matter.
            token: names the holder. Asked again with the same one, the lock is renewed.
            seconds: after which it is free again, whatever became of the holder.

        Returns:
            ``True``; ``False`` while another token has it.
        """
        raise Disabled

    def unlock(self, session_id: str, token: str) -> None:
        """Free the lock, if this token has it."""
        raise Disabled

    def transaction(self) -> Transaction | None:
        """Return the transaction that the last write of this thread was part of; ``None`` if the write is final.

        Called after each write, by async requests too, so it must not wait. It is for a storage in a database that the
        site uses too. If the transaction is rolled back, the adapter makes the write again.
        """
        return None

    def system(self) -> System:
        """Return the system that keeps the sessions, for tracing tools. Called once. It connects to nothing.

        Without this method the system has the name of the class. A method reports the bytes that it read and wrote, and
        its retries, with the functions of ``gsession_django.recording``.
        """
        return System(f"{type(self).__module__}.{type(self).__qualname__}".lower())

    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        """Remove the expired sessions, at most `batch_size` in one step. With `dry_run`, only count them.

        Yields:
            After each step, the number of sessions that it removed, or with `dry_run` found; as a :class:`.Removed` if
            it knows their ids. It yields 0 too: the caller can stop only there. Between two steps it holds no lock and
            no transaction. A session that another request renews or stores anew before the removal stays.
        """
        raise Disabled

    def ids(self) -> Iterator[str]:
        """Yield the id of every session that lives now, in any order.

        It keeps no list of them: there may be millions. If the medium changes meanwhile, an id may come twice: callers
        must accept that.
        """
        raise Disabled
