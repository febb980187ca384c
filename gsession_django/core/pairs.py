"""The pairs of a session, as a mapping: fetched and decoded when they are first used."""

from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from contextlib import suppress
from typing import Any, Final, Protocol

from django.utils.asyncio import async_unsafe

from gsession_django import serializers
from gsession_django.core.reserved import ABOUT_PREFIX, is_hidden
from gsession_django.core.saving import Saving
from gsession_django.core.values import MISSING, SCALARS, UNFETCHED, UNKNOWN, Encoded, encoded
from gsession_django.serializers import DecodeError, decode, encode, is_deterministic

EXPIRY_KEY: Final = "_session_expiry"
"""Where Django keeps the argument of ``set_expiry()``."""

_NO_KEYS: Final[frozenset[str]] = frozenset()
_NO_TOKENS: Final[Mapping[str, bytes]] = {}


class Source(Protocol):
    """Where a session gets the values that it does not hold yet. A source answers by calling :meth:`Pairs.learn`."""

    def fetch(self, session: "Pairs", key: str | None) -> None:
        """Bring in the value of `key`, or with ``None`` all values."""

    async def afetch(self, session: "Pairs", key: str | None) -> None:
        """The same, awaited."""

    def fetch_size(self) -> int:
        """Return the number of stored pairs."""


class _Keys(KeysView[str]):
    """Fetches the keys when the iteration begins: list() calls iter(), then len(), and then takes the first key."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._mapping)  # type: ignore[attr-defined]

    def __reversed__(self) -> Iterator[str]:
        return reversed(list(self))


class _Items(ItemsView[str, Any]):
    def __reversed__(self) -> Iterator[tuple[str, Any]]:
        yield from reversed(list(self))


class _Values(ValuesView[Any]):
    def __reversed__(self) -> Iterator[Any]:
        yield from reversed(list(self))


class Pairs(MutableMapping[str, Any]):
    """The mapping under a SessionMap. It notes keys that the request sets or deletes, and values that it hands out."""

    __slots__ = (
        "__weakref__",
        "_absent",
        "_canonical",
        "_dropped",
        "_merged",
        "_originals",
        "_saving",
        "_snapshots",
        "_values",
        "_watched",
        "cleared",
        "partial",
        "source",
        "tokens",
        "ttl_left",
        "unreadable",
        "version",
    )

    def __init__(self, data: Mapping[str, Any], version: Any = None, ttl_left: float | None = None) -> None:
        self._values: dict[str, Any] = data if type(data) is dict else dict(data)
        self.version = version
        self.ttl_left = ttl_left
        self.cleared = False
        self.partial = False
        self.source: Source | None = None
        # Keys that the storage is known not to have, while it may have others.
        self._absent: frozenset[str] = frozenset()
        # The value that was stored under each key that the request assigned or deleted.
        self._originals: dict[str, Any] = {}
        # The encoding, as it was read, of each mutable value that was handed out; None if it cannot be encoded again.
        self._snapshots: dict[str, bytes | None] = {}
        # This process's own encoding of a snapshot that another program may have written, where it was needed.
        self._canonical: dict[str, bytes] | None = None
        # `_snapshots` as they were when `modified` was set to False; None while the two are the same.
        self._watched: dict[str, bytes | None] | None = None
        # Whether a merge took in changes of others, which this map does not hold.
        self._merged = False
        # The keys that were left out because their values could not be decoded.
        self._dropped = _NO_KEYS
        self._saving: Saving | None = None
        self.unreadable = False
        self.tokens: Mapping[str, bytes] = _NO_TOKENS

    # A mapping.

    def __getitem__(self, key: str) -> Any:
        try:
            value = self._values[key]
        except KeyError:
            if not self._may_have(key):
                raise
            value = MISSING
        return value if type(value) in SCALARS else self._hand_out(key, value)

    def get(self, key: str, default: Any = None) -> Any:
        value = self._values.get(key, MISSING)
        if type(value) in SCALARS:
            return value
        if value is MISSING and not (self.partial and self._may_have(key)):
            return default
        try:
            return self._hand_out(key, value)
        except KeyError:
            return default

    def _hand_out(self, key: str, value: Any) -> Any:
        """Return a value that has to be fetched, or that the caller might change in place."""
        if value is UNFETCHED or value is MISSING:
            self._fetch(key)
            value = self._values[key]
        stored: bytes | None = None
        if (pending := encoded(value)) is not None:
            stored, value = pending, self._decode(key, pending)
        if type(value) not in SCALARS and key not in self._snapshots and key not in self._originals:
            if stored is None:
                with suppress(Exception):  # the request only reads the value: an error would blame the wrong code
                    stored = encode(value)
            self._snapshots[key] = stored
            if self._watched is not None:
                self._watched[key] = stored
        return value

    def _decode(self, key: str, value: Encoded) -> Any:
        try:
            self._values[key] = decoded = decode(value)
        except DecodeError as error:
            self._values.pop(key, None)
            self._dropped |= {key}
            serializers.logger.warning("The session value %r is left out: %s", key, error)
            raise KeyError(key) from error
        if key == EXPIRY_KEY and not is_deterministic():
            # A storage compares these bytes with its own, and encoding the value again would give others.
            self._snapshots.setdefault(key, value)
        return decoded

    # These two change the value before they note the old one. A save in another thread takes the notes away, and so
    # sees either the new value or the note.

    def __setitem__(self, key: str, value: Any) -> None:
        before = self._values.get(key, MISSING)
        self._values[key] = value
        self._remember(key, before)

    def __delitem__(self, key: str) -> None:
        if key not in self._values and self._may_have(key):
            self._fetch(key)
        before = self._values.pop(key)
        self._remember(key, before)

    def _remember(self, key: str, before: Any) -> None:
        if key not in self._originals:
            unknown = before is MISSING and self.partial and self._may_have(key)
            self._originals[key] = UNKNOWN if unknown else before

    def __contains__(self, key: object) -> bool:
        if isinstance(key, str) and key not in self._values and self._may_have(key):
            self._fetch(key)
        value = self._values.get(key, MISSING)  # type: ignore[call-overload]
        if (stored := encoded(value)) is not None and isinstance(key, str):
            try:
                self._decode(key, stored)
            except KeyError:
                return False
        return value is not MISSING

    def __iter__(self) -> Iterator[str]:
        if self.partial:
            self._fetch(None)
        self._decode_all()
        hidden = self.held(ABOUT_PREFIX)
        return iter([key for key in self._values if key not in hidden] if hidden else self._values)

    def __reversed__(self) -> Iterator[str]:
        return reversed(list(self))

    def _decode_all(self) -> None:
        for key, value in self._values.copy().items():
            if (stored := encoded(value)) is not None:
                with suppress(KeyError):
                    self._decode(key, stored)

    def __len__(self) -> int:
        if self.partial and not self._originals and self.source is not None:
            return self.source.fetch_size()
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return (bool(self._values) and not self.held(ABOUT_PREFIX)) or len(self) > 0

    def keys(self) -> KeysView[str]:
        return _Keys(self)

    def items(self) -> ItemsView[str, Any]:
        self._fetch_rest()
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        self._fetch_rest()
        return _Values(self)

    def clear(self) -> None:
        """Drop all pairs, stored or not, without looking at them."""
        self._values, self._originals, self._snapshots, self._canonical = {}, {}, {}, None
        self._watched, self._merged, self._dropped = None, False, _NO_KEYS
        self.cleared, self.partial, self.unreadable = True, False, False

    def __repr__(self) -> str:
        shown = {key: value for key, value in self._values.items() if not is_hidden(key)}
        return f"SessionMap({shown!r})"

    # Fetching.

    def learn(self, data: Mapping[str, Any], complete: bool = False) -> None:
        """Take in pairs that the storage has, except under keys that the request set or deleted.

        Args:
            data: the pairs.
            complete: whether the storage has no others, so nothing is fetched any more.
        """
        for key, value in data.items():
            if key in self._originals:
                if self._originals[key] is UNKNOWN or self._originals[key] is UNFETCHED:
                    self._originals[key] = value
            elif self._values.get(key, UNFETCHED) is UNFETCHED:
                self._values[key] = value
        if complete:
            self.partial = False
            for key in [key for key, value in self._values.copy().items() if value is UNFETCHED]:
                del self._values[key]
            for key, value in self._originals.copy().items():
                if value is UNKNOWN:
                    self._originals[key] = MISSING

    def learn_absent(self, key: str) -> None:
        """Take in that the storage does not have `key`."""
        self._absent |= {key}
        if self.promises(key):
            del self._values[key]

    def promises(self, key: str) -> bool:
        """Return whether the session has `key`, with a value that has to be fetched."""
        return self._values.get(key) is UNFETCHED

    def _may_have(self, key: str) -> bool:
        """Return whether the storage may have a key that is not known here."""
        return self.partial and key not in self._absent and key not in self._originals

    @async_unsafe("This session value is still in the storage. Use the async methods of request.session to get it.")
    def _fetch(self, key: str | None) -> None:
        if self.source is not None:
            self.source.fetch(self, key)

    def lacks(self, key: str | None) -> bool:
        """Return whether `key`, or with ``None`` any key, has to be fetched before it can be used."""
        if key is None:
            for value in tuple(self._values.values()):  # `in` would call the __eq__ of each value
                if value is UNFETCHED:
                    return True
            return self.partial
        return self._values[key] is UNFETCHED if key in self._values else self._may_have(key)

    @property
    def held_pairs(self) -> Mapping[str, Any]:
        """The pairs that are here, hidden ones too. A value may still be encoded, or ``UNFETCHED``."""
        return self._values

    def hide(self, key: str) -> None:
        """Drop a pair that a storage keeps for itself, as if it had not been read."""
        self._values.pop(key, None)

    def held(self, prefix: str) -> list[str]:
        """Return the known keys that begin with `prefix`. Nothing is fetched."""
        try:
            if prefix not in "".join(self._values):  # almost always, and one fast search
                return []
        except TypeError:  # a key is not a str
            pass
        return [key for key in self._values.copy() if type(key) is str and key.startswith(prefix)]

    def _fetch_rest(self) -> None:
        if self.lacks(None):
            self._fetch(None)

    async def afetch(self, key: str | None = None) -> None:
        """Fetch `key`, or with ``None`` all pairs, unless they are here: using them then makes no call."""
        if self.source is not None and self.lacks(key):
            await self.source.afetch(self, key)
