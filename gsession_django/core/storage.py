"""The Storage interface: where sessions are kept.

It is the one of GoFrame's ``gsession`` (https://goframe.org/en/docs/core/gsession-storage) in Python's spelling: eleven
methods, none of them mandatory by itself, and a few extensions for what Django needs done atomically. Three are enough:
``get_session``, ``set_session`` and ``remove_all``. A storage overrides what it can do; the adapter,
:class:`gsession_django.SessionStore`, makes a complete Django session engine of that. ``docs/writing-a-storage.md``
builds one, step by step.

What holds for every method:

* ``session_id`` is a ``str``: the SHA-256 of the session key in hexadecimal, or the key itself where
  :attr:`.Storage.hash_ids` is off. An id that the storage does not know, one it could never have stored (too long,
  strange characters) and one whose TTL is over are the same thing: an unknown session, never an exception.
* ``ttl`` is whole seconds from now. Zero and below mean that the session is expired at once.
* ``data`` maps ``str`` to any value that ``SESSION_SERIALIZER`` can take. A storage neither keeps the object that it is
  given nor hands out the one that it keeps: it keeps bytes (:meth:`.Storage.encode`) or copies.
* A storage that cannot answer raises :class:`StorageUnavailable`; it never answers as if the session were not there.
* ``DecodeError``, which :meth:`.Storage.decode` raises, comes through from every method. It means that there is
  something and that it cannot be read: the adapter neither removes nor overwrites it.
* One storage object serves the whole process: all its threads and event loops at once, and a child that is forked from
  it. Connections that cannot be shared are kept by thread, by process (``os.getpid()``) and by event loop. Nobody
  closes a storage.
* A method that waits, for a lock or for its turn, reads the clock after that.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from gsession_django import serializers
from gsession_django.core.session_map import SessionMap
from gsession_django.core.transactions import Transaction
from gsession_django.recording import System


class Disabled(NotImplementedError):
    """Raised by a storage method that the storage does not have. The adapter then does without it."""


class StorageUnavailable(Exception):
    """The storage cannot answer now: a timeout, a refused connection, a full disk.

    Not reachable is not the same as not there: nobody is signed out because of it, and no cookie is deleted.
    """


class Storage:
    """Base class of every storage. Keyword arguments of ``__init__`` are the engine's options in
    ``GSESSION["ENGINES"]``; it connects to nothing.

    A storage is async when it has native twins, with Django's ``a`` before the name (``aget_session``), of everything
    it overrides but ``purge`` and ``ids``, in addition to that. The ``a`` methods of ``request.session`` and
    :class:`gsession_django.middleware.SessionMiddleware` then await them, and an async request never enters a thread.
    For a storage that is not async, the adapter runs each operation in one ``sync_to_async``.

    Attributes:
        hash_ids: whether ids are hashed session keys, so that a leaked dump holds no key that opens a session. Off for
            a storage that makes its own ids and must recognise them. The option of the same name wins over it.
        expires_itself: whether the medium removes expired sessions without being asked (then there is no ``purge``).
        reads_settings: whether it uses Django's settings beside its options. When a test overrides ``GSESSION``,
            ``CACHES`` or a ``SESSION_*`` setting, such a storage is made anew. Any other is kept until its options
            change, with all that it holds.
    """

    hash_ids: ClassVar[bool] = True
    expires_itself: ClassVar[bool] = False
    reads_settings: ClassVar[bool] = True

    encode = staticmethod(serializers.encode)
    decode = staticmethod(serializers.decode)

    # The eleven methods of gsession.

    def new(self, ttl: int) -> str:
        """Return a session key of the storage's own making: the value of the cookie.

        Called before a session is created. At least 8 characters, all of them letters, digits or one of
        ``!#$%&'*+-.^_`|~:``, or the adapter raises ``ValueError``. Without it the adapter makes a random one of 32
        characters.
        """
        raise Disabled

    def get(self, session_id: str, key: str) -> Any:
        """Return one value, or ``None`` when `key` is not in the session or there is no such session.

        A storage that has this is a per-key storage. Called when a key is first asked for in a request, if
        :meth:`get_session` returned an empty mapping.
        """
        raise Disabled

    def get_map(self, session_id: str) -> dict[str, Any]:
        """Return all pairs; an empty ``dict`` when there is no such session.

        Called on a per-key storage when :meth:`get` answered ``None`` or all keys are wanted, once in a request; and
        again by what is composed of several calls and has to know the whole session.
        """
        raise Disabled

    def get_size(self, session_id: str) -> int:
        """Return the number of pairs; 0 when there is no such session.

        Called for ``len(request.session.keys())`` on a per-key storage, before any value was changed.
        """
        raise Disabled

    def set(self, session_id: str, key: str, value: Any, ttl: int) -> None:
        """Store one pair. `ttl` is the session's, not the pair's.

        Called when a session that changed is closed, once for each pair, if there is no :meth:`set_map`.
        """
        raise Disabled

    def set_map(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        """Store the pairs of `data` at once and keep the session's others; creates the session if it is not there.

        Called with the changed pairs when a session that changed is closed, before :meth:`set_session`.
        """
        raise Disabled

    def remove(self, session_id: str, key: str) -> None:
        """Remove one pair; nothing happens when it is not there. Called like :meth:`set`, after it."""
        raise Disabled

    def remove_all(self, session_id: str) -> None:
        """Remove the session; nothing happens when there is none. Called by ``flush()`` and ``delete()``."""
        raise Disabled

    def get_session(
        self, session_id: str, ttl: int, data: Mapping[str, Any] | None = None
    ) -> SessionMap | Mapping[str, Any] | None:
        """Return the session, or ``None`` when it is unknown or its TTL is over. Called whenever a session starts.

        Args:
            session_id: the session's id.
            ttl: what a session of this site lives, for a storage that counts from its last use.
            data: the process's last copy of the session. This adapter keeps none and passes ``None``.

        Returns:
            A mapping that is not empty is the complete session. An empty one from a per-key storage means «ask me key
            by key», from any other an empty session. A :class:`SessionMap` can carry more than a ``dict``: the version
            that :meth:`apply` wants back, ``ttl_left``, without which touches are not coalesced, and values that are
            still encoded or not fetched. It says itself, by ``partial``, whether to ask key by key.
        """
        raise Disabled

    def set_session(self, session_id: str, data: Mapping[str, Any], ttl: int) -> None:
        """Store `data`, all that the request knows of the session, in place of what is stored, and renew the TTL.

        Called whenever a session that changed is closed. A per-key storage, whose pairs :meth:`set_map` has already
        stored by then, only renews the TTL here.
        """
        raise Disabled

    def update_ttl(self, session_id: str, ttl: int) -> bool | None:
        """Renew the TTL: a touch. Called whenever a session that did not change is closed.

        Returns:
            ``False`` when the session is gone; anything else, ``None`` too, says nothing about it.
        """
        raise Disabled

    # Extensions: what Django needs done atomically and the eleven cannot express.

    def exists(self, session_id: str) -> bool:
        """Return whether there is such a session. Without it the adapter uses :meth:`get_session`."""
        raise Disabled

    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        """Store a session (``session.as_dict()``) that is not there yet. An expired session takes no id.

        Together with :meth:`apply` it is what moving sessions to an engine needs.

        Returns:
            ``True``; ``False``, with nothing changed, when the id is taken.
        """
        raise Disabled

    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        """Bring what this request did to `session` into what is stored now, atomically, and renew the TTL.

        What others wrote meanwhile is kept: ``session.merged_onto(current)`` is the session to store. A storage that
        sees (by ``session.version``) that nobody wrote since the read may store ``session.as_dict()`` without looking.
        Where ``session.renews_ttl(current)`` is false, the TTL stays what it is. The storage sets ``session.version``
        to that of what it stored, or to ``None``.

        Returns:
            ``True``; ``False``, with nothing stored, when the session is gone.
        """
        raise Disabled

    def move(self, session_id: str, new_id: str, ttl: int) -> bool:
        """Give the session a new id, its data kept and the old id gone. Called by ``cycle_key()``.

        The TTL stays what it is, as the save that follows renews it. `ttl` is for a medium that has to write one, for a
        session without an expiry of its own (``set_expiry()``).

        Returns:
            ``True``; also where the session is gone and there is one under the new id, as an earlier try has moved it.
            ``False``, with nothing stored, when the new id is taken and the session is there, and when it is gone and
            there is none under the new id.
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
        """Return the transaction that the last write of this thread was part of; ``None`` when the write is final.

        Called after each write, also by async requests, so it must not wait. It is for a storage in a database that the
        site uses too. When the transaction has been rolled back, the adapter makes the write again.
        """
        return None

    def system(self) -> System:
        """Return what the sessions are kept on, for tracing tools. Asked once, and it connects to nothing.

        Without it the system has the name of the class. What a call of a method read and wrote, and that it was tried
        again, the method tells with the functions of ``gsession_django.recording``.
        """
        return System(f"{type(self).__module__}.{type(self).__qualname__}".lower())

    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        """Remove the expired sessions (with `dry_run`, only count them), `batch_size` at most in one step.

        Yields:
            The number removed, or with `dry_run` found, once a step; 0 too, as a search can be stopped only there.
            Between two steps nothing is held: no lock, no transaction. A session that is renewed or stored anew between
            the look and the removal stays.
        """
        raise Disabled

    def ids(self) -> Iterator[str]:
        """Yield the id of every session that lives now, in any order.

        It keeps no list of them, as there may be millions. Where a medium that changes meanwhile names an id twice, so
        does this, and callers bear it.
        """
        raise Disabled
