"""How a session differs from the one that was read: ``SessionStore.modified`` asks here."""

from contextlib import suppress
from typing import Any

from gsession_django.core.pairs import Pairs
from gsession_django.core.saving import storable_part
from gsession_django.core.values import MISSING, SCALARS, Encoded, Sentinel, encoded, same_encoding
from gsession_django.serializers import DecodeError, decode, encode, is_deterministic


class ComparedPairs(Pairs):
    """Pairs that are compared with what was read."""

    __slots__ = ()

    # What was read.

    def base(self, key: str) -> Any:
        """Return the value that was read under `key`: to compare and merge with, not to change."""
        if (stored := self._snapshots.get(key)) is None:
            value = self._originals[key] if key in self._originals else self._values.get(key, MISSING)
            if (stored := encoded(value)) is None:
                return value
        try:
            return decode(stored)
        except DecodeError:
            return MISSING

    def was_set(self, key: str) -> bool:
        """Return whether a value was, or may have been, stored under `key` when the session was read."""
        return self.cleared or self.unreadable or key in self._dropped or self.base(key) is not MISSING

    def read_as(self, key: str) -> bytes | None:
        """Return the encoding of the value that was read under `key`, for a storage that compares it with its own.

        ``b""`` if there was no value, ``None`` if that is not known.
        """
        if key in self._snapshots:
            return self._snapshots[key]
        value = self._originals[key] if key in self._originals else self._values.get(key, MISSING)
        if value is MISSING:
            return b""
        if type(value) is Sentinel:
            return None
        return encode(value) if (stored := encoded(value)) is None else stored

    def is_unreadable(self) -> bool:
        """Return whether a session is stored of which nothing can be read."""
        if self.unreadable or not self._dropped or self.cleared:
            return self.unreadable
        self._decode_all()
        read = any(key not in self._originals for key in self._values.copy())
        return not read and all(self.base(key) is MISSING for key in self._originals.copy())

    # Changes in place.

    def altered(self) -> bool:
        """Return whether a value that was handed out has been changed in place since, or since :meth:`take_baseline`.

        Of a value that cannot be encoded any more, the parts that can be encoded count. The value is logged.
        """
        watched = self._snapshots if self._watched is None else self._watched
        for key, was in watched.copy().items():
            value = self._values.get(key, MISSING)
            if value is MISSING or was is None:
                continue
            try:
                now = encode(value)
            except Exception as error:
                now = encode(storable_part(key, value, decode(was), error))
            if not self._same(key, now, was, trusting=True):
                return True
        return False

    def has_only_changes_in_place(self) -> bool:
        """Return whether no key was set or deleted, and :meth:`altered` counts from the last read or save."""
        return self._watched is None and not self._originals and not self.cleared

    def take_baseline(self) -> None:
        """Let :meth:`altered` count from now."""
        if self._originals or self._snapshots:
            self._watched = {}
            for key in {**self._originals, **self._snapshots}:
                if type(value := self._values.get(key)) not in SCALARS:
                    self._watched[key] = None
                    with suppress(Exception):  # the save will raise it
                        self._watched[key] = encode(value)

    def _same(self, key: str, now: bytes, was: bytes, trusting: bool) -> bool:
        """Return whether an encoding of the value of `key` stands for the value that was read."""
        if now == was:
            return True
        try:
            if type(was) is Encoded and is_deterministic():  # another program may encode the same value differently
                if self._canonical is None:
                    self._canonical = {}
                if key not in self._canonical:
                    self._canonical[key] = encode(decode(was))
                return now == self._canonical[key]
            return same_encoding(now, was, trusting)
        except DecodeError:  # the stored bytes are unreadable
            return False
