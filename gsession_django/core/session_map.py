"""SessionMap: one session's data, what the request did to it, and how that merges with what others did."""

from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from collections.abc import Set as AbstractSet
from contextlib import suppress
from threading import get_ident
from typing import Any, Final, Protocol

from django.utils.asyncio import async_unsafe

from gsession_django import recording, serializers
from gsession_django.core import documents
from gsession_django.core.reserved import ABOUT_PREFIX
from gsession_django.core.saving import Saving, storable_part, stored_key
from gsession_django.core.values import (
    MISSING,
    PENDING,
    SCALARS,
    UNFETCHED,
    UNKNOWN,
    Canonical,
    Encoded,
    Part,
    Sentinel,
    encoded,
    merge,
    same_encoding,
)
from gsession_django.serializers import DecodeError, decode, encode, is_deterministic

_NO_KEYS: Final[frozenset[str]] = frozenset()
_PENDING_IN_DOCUMENTS: Final = PENDING - {Part}
_NO_TOKENS: Final[Mapping[str, bytes]] = {}

EXPIRY_KEY: Final = "_session_expiry"
"""Where Django keeps what ``set_expiry()`` was given."""


class Source(Protocol):
    """Where a SessionMap gets what it does not hold yet; it answers by calling :meth:`SessionMap.learn`."""

    def fetch(self, session: "SessionMap", key: str | None) -> None:
        """Bring in the value of `key`, or with ``None`` all that there is."""

    async def afetch(self, session: "SessionMap", key: str | None) -> None:
        """The same, awaited."""

    def fetch_size(self) -> int:
        """Return the number of pairs that are stored."""


class _Keys(KeysView[str]):
    """Fetches the keys when it is iterated, and not when the first one is taken: list() asks for the length between."""

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


class SessionMap(MutableMapping[str, Any]):
    """The counterpart of gsession's ``gmap.StrAnyMap``: a mapping that knows what was done to it since it was read.

    Changes are found by value, inside nested values too: one that was changed in place counts, one that was set to what
    it had been does not. Values are equal if they are equal once they are stored. A value that was changed in place to
    one that cannot be encoded was made for display: the parts that can be encoded count, the others do not.

    Args:
        data: the pairs as they were read; the map takes the object over. A value may be ``Encoded``, or
            ``UNFETCHED``.
        version: whatever the storage wants back in ``apply`` to know whether anybody wrote in between.
        ttl_left: seconds that the session still had to live when it was read; ``None`` where the storage does not tell.

    Attributes:
        cleared: ``clear()`` was called: everything stored goes, whatever it is by then, before ``changed`` is written.
        source: where values are fetched from that are not held here.
        partial: whether keys may exist that are not known here, to be asked for one by one.
        unreadable: whether a session is stored that nobody here can read: this map has none of it.
        tokens: by key, what the storage wants back of a value that is not fetched, to know whether anybody changed it.
    """

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
        # Keys that are known not to be stored, while others may be.
        self._absent: frozenset[str] = frozenset()
        # What was stored under the keys that the request assigned or deleted.
        self._originals: dict[str, Any] = {}
        # The encoding, as it was read, of each value that can be changed in place and that somebody holds by now; None
        # for one that cannot be encoded again.
        self._snapshots: dict[str, bytes | None] = {}
        # What this process makes of a snapshot that another program may have written, if it was needed.
        self._canonical: dict[str, bytes] | None = None
        # The same as `_snapshots` when `modified` was set to False; None as long as that is the same.
        self._watched: dict[str, bytes | None] | None = None
        # Whether merging took in what others wrote, which this map does not hold.
        self._merged = False
        # The keys that were left out as their values could not be decoded.
        self._dropped = _NO_KEYS
        self._saving: Saving | None = None
        self.unreadable = False
        self.tokens: Mapping[str, bytes] = _NO_TOKENS

    @classmethod
    def replacing(cls, data: dict[str, Any]) -> "SessionMap":
        """Return a session that has these pairs and, when it is saved, loses all others. It takes `data` over."""
        session = cls({})
        session.clear()
        session._values = data
        return session

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
        """Return a value that is not held yet, or that the caller might change in place."""
        if value is UNFETCHED or value is MISSING:
            self._fetch(key)
            value = self._values[key]
        stored: bytes | None = None
        if (pending := encoded(value)) is not None:
            stored, value = pending, self._decode(key, pending)
        if type(value) not in SCALARS and key not in self._snapshots and key not in self._originals:
            if stored is None:
                with suppress(Exception):  # it was read, so it is nobody's mistake here
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
            # It was not handed out to be changed: a storage compares the bytes, and will not get them again.
            self._snapshots.setdefault(key, value)
        return decoded

    # Both change the value first and then note what it was: a save in another thread, which takes the notes away, sees
    # either the new value or the note.

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
        """Drop everything, stored or not, without looking at it."""
        self._values, self._originals, self._snapshots, self._canonical = {}, {}, {}, None
        self._watched, self._merged, self._dropped = None, False, _NO_KEYS
        self.cleared, self.partial, self.unreadable = True, False, False

    def __repr__(self) -> str:
        return f"SessionMap({self._values!r})"

    # Fetching what is still in the storage.

    def learn(self, data: Mapping[str, Any], complete: bool = False) -> None:
        """Take in pairs that the storage has. What the request did to a key stands; `complete` ends the fetching."""
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
        """Whether `key` is in the session and its value still in the storage."""
        return self._values.get(key) is UNFETCHED

    def _may_have(self, key: str) -> bool:
        """Whether the storage may have a key that is not known here."""
        return self.partial and key not in self._absent and key not in self._originals

    @async_unsafe("This session value is still in the storage. Use the async methods of request.session to get it.")
    def _fetch(self, key: str | None) -> None:
        if self.source is not None:
            self.source.fetch(self, key)

    def lacks(self, key: str | None) -> bool:
        """Whether `key`, or with ``None`` anything at all, would have to be fetched to be used."""
        if key is None:
            for value in tuple(self._values.values()):  # not with `in`, which asks each value whether it is equal
                if value is UNFETCHED:
                    return True
            return self.partial
        return self._values[key] is UNFETCHED if key in self._values else self._may_have(key)

    def hide(self, key: str) -> None:
        """Drop what a storage keeps for itself, as if it had not been read."""
        self._values.pop(key, None)

    def held(self, prefix: str) -> list[str]:
        """Return the keys that begin with `prefix`, of those that are known: nothing is fetched."""
        try:
            if prefix not in "".join(self._values):  # as a rule, and found out in no time
                return []
        except TypeError:  # a key is no text
            pass
        return [key for key in self._values.copy() if type(key) is str and key.startswith(prefix)]

    def _fetch_rest(self) -> None:
        if self.lacks(None):
            self._fetch(None)

    async def afetch(self, key: str | None = None) -> None:
        """Make sure that `key`, or with ``None`` everything, can be used without another call to the storage."""
        if self.source is not None and self.lacks(key):
            await self.source.afetch(self, key)

    def is_unreadable(self) -> bool:
        """Return whether something is stored, and nothing of it can be read."""
        if self.unreadable or not self._dropped or self.cleared:
            return self.unreadable
        self._decode_all()
        read = any(key not in self._originals for key in self._values.copy())
        return not read and all(self.base(key) is MISSING for key in self._originals.copy())

    # What the request did.

    def base(self, key: str) -> Any:
        """Return the value that was read under `key`: for comparing and merging, not to be changed."""
        if (stored := self._snapshots.get(key)) is None:
            value = self._originals[key] if key in self._originals else self._values.get(key, MISSING)
            if (stored := encoded(value)) is None:
                return value
        try:
            return decode(stored)
        except DecodeError:
            return MISSING

    def was_set(self, key: str) -> bool:
        """Return whether anything was, or may have been, stored under `key` when the session was read."""
        return self.cleared or self.unreadable or key in self._dropped or self.base(key) is not MISSING

    def read_as(self, key: str) -> bytes | None:
        """Return the encoding of what was read under `key`: for a storage that compares it with what it has.

        ``b""`` when there was nothing, ``None`` when that is not known.
        """
        if key in self._snapshots:
            return self._snapshots[key]
        value = self._originals[key] if key in self._originals else self._values.get(key, MISSING)
        if value is MISSING:
            return b""
        if type(value) is Sentinel:
            return None
        return encode(value) if (stored := encoded(value)) is None else stored

    def saving(self, explicit: bool = True) -> "Saving":
        """Return a context in which the session is saved: what is stored of it is encoded once, and here.

        Args:
            explicit: whether the request asked for the save, by setting a key or ``modified``. If only changes in place
                do, what cannot be encoded stays as it is stored. Otherwise it is the error that the serializer raises.
        """
        return Saving(self, explicit)

    @property
    def _save(self) -> "Saving":
        save = self._saving
        return save if save is not None and save.thread == get_ident() else Saving(self, True)

    @property
    def changed(self) -> dict[str, Any]:
        """The pairs that have another value now than the one that was read. For a cleared session, all pairs."""
        if self.cleared:
            return self.as_dict()
        save = self._save
        values = save.values | save.replaced if save.replaced else save.values
        return {name: values[key] for name, key in save.changed.items()}

    @property
    def removed(self) -> set[str]:
        """The keys that were read, or may be stored, and are not in the session any more."""
        return self._save.removed

    def has_changes(self) -> bool:
        """Whether there is anything to save."""
        return self._save.has_changes()

    def as_dict(self) -> dict[str, Any]:
        """Return what the request knows of the session, for a storage to encode: the values are not copies."""
        return self._known(PENDING)

    def _known(self, pending: AbstractSet[type]) -> dict[str, Any]:
        """Return the pairs that are known, those of them decoded that are of a type in `pending`."""
        values = self._values.copy()
        for value in values.values():
            if type(value) in pending:
                self._decode_all()
                values = {key: value for key, value in self._values.copy().items() if value is not UNFETCHED}
                break
        return values | self._save.replaced if self._saving is not None and self._saving.replaced else values

    def encoded(self) -> bytes:
        """Return the encoding of :meth:`as_dict`, for a storage that keeps whole sessions.

        It makes use of what was encoded for comparing, and of large values that were read and not used. Behind JSON
        of 2,000 bytes or more comes white space, which tells where large values are.
        """
        data, save = self._known(_PENDING_IN_DOCUMENTS), self._save
        try:
            return documents.encode_pairs(data, save.encodings)
        except Exception:
            for key, value in data.items():  # one of the two raises for what is to blame, and names it
                stored_key(key)
                if type(value) is not Part:
                    save.encode(key, value)
            raise

    def encoding_of(self, key: str, value: Any) -> bytes:
        """Return the encoding of a pair of :attr:`changed` or :meth:`as_dict`."""
        save = self._save
        key = save.changed.get(key, key)
        return save.encodings[key] if key in save.encodings else save.encode(key, value)

    # How it merges.

    def merged_onto(self, current: Mapping[str, Any]) -> dict[str, Any]:
        """Return the session that results when this request's changes meet what is stored now.

        Keys merge one by one. Dicts merge by sub-key, recursively, what was read being the common base; of anything
        else the last one saved wins. The result has the request's keys in its order, and then those that others added.
        This map itself stays what the request has.

        Args:
            current: the stored session, complete.
        """
        if self.cleared:
            return self.as_dict()
        stored = current.as_dict() if isinstance(current, SessionMap) else current
        save = self._save
        changed, removed = save.changed, save.removed
        result: dict[str, Any] = {}
        for key in self._values.copy():
            name = stored_key(key)
            if name in changed:
                result[name] = self._merged_value(save, changed[name], stored.get(name, MISSING))
            elif name in stored:
                result[name] = stored[name]
        for name, value in stored.items():
            if name not in result and name not in removed:
                result[name] = value
        self._merged = True
        recording.merged()
        return result

    def in_order(self, stored: dict[str, Any]) -> dict[str, Any]:
        """Return pairs in the order of :meth:`merged_onto`: first the request's, then those that others added."""
        names = map(stored_key, self._values.copy())
        return {name: stored[name] for name in names if name in stored} | stored

    def merged_value(self, key: str, current: Any = MISSING) -> Any:
        """Return what becomes of one changed key when `current` is stored under it now, or nothing is."""
        save = self._save
        self._merged = True
        recording.merged()
        return self._merged_value(save, save.changed.get(key, key), current)

    def _merged_value(self, save: "Saving", key: str, current: Any) -> Any:
        value = save.value_of(key)
        if not isinstance(value, dict):
            return value
        base = self.base(key)
        if base is UNFETCHED:  # and the storage says that another request has changed it
            base = {}
        # As it will be read back: JSON, for one, makes text of every key.
        return merge(base, decode(save.encodings[key]), current)

    def renews_ttl(self, current: Mapping[str, Any]) -> bool:
        """Whether saving this session onto `current` renews the TTL.

        Not if another request gave the session an expiry of its own (``set_expiry()``) that this one does not know.
        """
        if self.cleared:
            return True
        if EXPIRY_KEY in self._originals:
            save = self._save
            if EXPIRY_KEY in save.removed or EXPIRY_KEY in save.changed:
                return True
        base = self.base(EXPIRY_KEY)
        return bool(current.get(EXPIRY_KEY) == (None if base is MISSING else base))

    def saved(self, save: "Saving | None" = None) -> None:
        """Take what was stored as the new starting point. The adapter calls it when a storage has stored the session.

        What merging took in from others is not in this map, as the values may be objects that somebody holds. So the
        version is forgotten then: the next save merges again, and loses nothing of theirs.

        Args:
            save: what :meth:`saving` returned. Other tasks of the request may have made changes since, which are still
                to be saved. Without it there are none.
        """
        if save is None:
            save = Saving(self, True)
        if self._merged:
            self.version, self._merged = None, False
        originals, snapshots = self._originals, self._snapshots
        self._canonical = None
        for key, was in save.values.items():
            originals.pop(key, None)
            snapshots.pop(key, None)
            value = self._values.get(key, MISSING)
            if type(was) in SCALARS or key not in save.encodings:
                if value is not was:
                    originals[key] = was
            elif value is was:
                snapshots[key] = save.encodings[key]
            else:
                originals[key] = Canonical(save.encodings[key])
        self._watched = None
        self.cleared = self.unreadable = False

    def restore(self, save: "Saving") -> None:
        """Take back :meth:`saved`: what was stored then has been undone, and is a change of the request again.

        Of several saves that were undone, the last one is taken back first.
        """
        for key in save.values:
            self._snapshots.pop(key, None)
        # A key that was set after the save stays one that was set.
        self._originals.update(save._originals)
        self._snapshots.update(save._snapshots)
        self._canonical = None
        self.version, self.ttl_left, self.cleared = save.before

    # For SessionStore.modified.

    def altered(self) -> bool:
        """Whether a value that was handed out has been changed in place since, or since :meth:`take_baseline`.

        One that cannot be encoded any more counts by those parts of it that can. It is logged.
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
        """Return whether nothing was set, and :meth:`altered` counts from what was read or saved last."""
        return self._watched is None and not self._originals

    def take_baseline(self) -> None:
        """Let :meth:`altered` count from now."""
        if self._originals or self._snapshots:
            self._watched = {}
            for key in {**self._originals, **self._snapshots}:
                if type(value := self._values.get(key)) not in SCALARS:
                    self._watched[key] = None
                    with suppress(Exception):  # saving it will raise this to the site's developer
                        self._watched[key] = encode(value)

    def _same(self, key: str, now: bytes, was: bytes, trusting: bool) -> bool:
        """Return whether an encoding of the value of `key` stands for what was read."""
        if now == was:
            return True
        try:
            if type(was) is Encoded and is_deterministic():  # another program may write the same value differently
                if self._canonical is None:
                    self._canonical = {}
                if key not in self._canonical:
                    self._canonical[key] = encode(decode(was))
                return now == self._canonical[key]
            return same_encoding(now, was, trusting)
        except DecodeError:  # nobody can read what was stored
            return False
