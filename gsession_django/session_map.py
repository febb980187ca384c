"""SessionMap: one session's data, what the request did to it, and how that merges with what others did."""

from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from contextlib import suppress
from typing import Any, Final, Protocol

from django.utils.asyncio import async_unsafe

from gsession_django.serializers import DecodeError, decode, encode, logger

EXPIRY_KEY: Final = "_session_expiry"
"""Where Django keeps what ``set_expiry()`` was given."""

# Values of these types cannot be changed in place, so handing one out needs no watching.
_SCALARS: Final = frozenset({str, int, float, bool, bytes, type(None)})
# Of these, values that are equal and of one type are encoded alike. (Not so floats: 0.0 == -0.0.)
_PLAIN: Final = frozenset({str, int, bool, bytes, type(None)})


class _Sentinel:
    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


UNFETCHED: Final = _Sentinel("UNFETCHED")
"""A value that is in the session but still in the storage: it is fetched when first asked for."""
MISSING: Final = _Sentinel("MISSING")
"""No value: the key is not in the session."""
_UNKNOWN: Final = _Sentinel("UNKNOWN")


# A stored value of these, or that there is none, stays what it was.
_UNCHANGING: Final = _SCALARS | {_Sentinel}


class Encoded(bytes):
    """A value as :func:`gsession_django.serializers.encode` left it: a SessionMap decodes it when it is first used."""

    __slots__ = ()


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


class SessionMap(MutableMapping[str, Any]):
    """The counterpart of gsession's ``gmap.StrAnyMap``: a mapping that knows what was done to it since it was read.

    Changes are found by value, inside nested values too: one that was changed in place counts, one that was set to what
    it had been does not. Equal means that both encode to the same bytes.

    Args:
        data: the pairs as they were read; the map takes the object over. A value may be :class:`Encoded`, or
            :data:`UNFETCHED`.
        version: whatever the storage wants back in ``apply`` to know whether anybody wrote in between.
        ttl_left: seconds that the session still had to live when it was read; ``None`` where the storage does not tell.

    Attributes:
        cleared: ``clear()`` was called: everything stored goes, whatever it is by then, before ``changed`` is written.
        source: where values are fetched from that are not held here.
        partial: whether keys may exist that are not known here, to be asked for one by one.
    """

    __slots__ = (
        "__weakref__",
        "_absent",
        "_merged",
        "_originals",
        "_snapshots",
        "_values",
        "_watched",
        "cleared",
        "partial",
        "source",
        "ttl_left",
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
        # The encoding, as it was read, of each value that can be changed in place and that somebody holds by now.
        self._snapshots: dict[str, bytes] = {}
        # The same as it was when `modified` was set to False; None as long as that is the same.
        self._watched: dict[str, object] | None = None
        # Whether merging took in what others wrote, which this map does not hold.
        self._merged = False

    # A mapping.

    def __getitem__(self, key: str) -> Any:
        try:
            value = self._values[key]
        except KeyError:
            if not self._may_have(key):
                raise
            value = MISSING
        return value if type(value) in _SCALARS else self._hand_out(key, value)

    def get(self, key: str, default: Any = None) -> Any:
        value = self._values.get(key, MISSING)
        if type(value) in _SCALARS:
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
        if type(value) is Encoded:
            value = self._decode(key, value)
        if type(value) not in _SCALARS and key not in self._snapshots and key not in self._originals:
            self._snapshots[key] = encode(value)
            if self._watched is not None:
                self._watched[key] = self._snapshots[key]
        return value

    def _decode(self, key: str, value: Encoded) -> Any:
        try:
            self._values[key] = decoded = decode(value)
        except DecodeError as error:
            del self._values[key]
            logger.warning("The session value %r is dropped: %s", key, error)
            raise KeyError(key) from error
        return decoded

    def __setitem__(self, key: str, value: Any) -> None:
        self._remember(key)
        self._values[key] = value

    def __delitem__(self, key: str) -> None:
        if key not in self._values and self._may_have(key):
            self._fetch(key)
        if key not in self._values:
            raise KeyError(key)
        self._remember(key)
        del self._values[key]

    def _remember(self, key: str) -> None:
        if key not in self._originals:
            value = self._values.get(key, MISSING)
            self._originals[key] = _UNKNOWN if value is MISSING and self.partial and self._may_have(key) else value

    def __contains__(self, key: object) -> bool:
        if isinstance(key, str) and key not in self._values and self._may_have(key):
            self._fetch(key)
        value = self._values.get(key, MISSING)  # type: ignore[call-overload]
        if type(value) is Encoded and isinstance(key, str):
            try:
                self._decode(key, value)
            except KeyError:
                return False
        return value is not MISSING

    def __iter__(self) -> Iterator[str]:
        if self.partial:
            self._fetch(None)
        self._decode_all()
        return iter(self._values)

    def _decode_all(self) -> None:
        for key, value in list(self._values.items()):
            if type(value) is Encoded:
                with suppress(KeyError):
                    self._decode(key, value)

    def __len__(self) -> int:
        if self.partial and not self._originals and self.source is not None:
            return self.source.fetch_size()
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return bool(self._values) or len(self) > 0

    def keys(self) -> KeysView[str]:
        return _Keys(self)

    def items(self) -> ItemsView[str, Any]:
        self._fetch_rest()
        return super().items()

    def values(self) -> ValuesView[Any]:
        self._fetch_rest()
        return super().values()

    def clear(self) -> None:
        """Drop everything, stored or not, without looking at it."""
        self._values, self._originals, self._snapshots = {}, {}, {}
        self._watched, self._merged = None, False
        self.cleared, self.partial = True, False

    def __repr__(self) -> str:
        return f"SessionMap({self._values!r})"

    # Fetching what is still in the storage.

    def learn(self, data: Mapping[str, Any], complete: bool = False) -> None:
        """Take in pairs that the storage has. What the request did to a key stands; `complete` ends the fetching."""
        for key, value in data.items():
            if key in self._originals:
                if self._originals[key] is _UNKNOWN or self._originals[key] is UNFETCHED:
                    self._originals[key] = value
            elif self._values.get(key, UNFETCHED) is UNFETCHED:
                self._values[key] = value
        if complete:
            self.partial = False
            for key in [key for key, value in self._values.items() if value is UNFETCHED]:
                del self._values[key]
            for key, value in self._originals.items():
                if value is _UNKNOWN:
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
        return [key for key in self._values if type(key) is str and key.startswith(prefix)]

    def _fetch_rest(self) -> None:
        if self.lacks(None):
            self._fetch(None)

    async def afetch(self, key: str | None = None) -> None:
        """Make sure that `key`, or with ``None`` everything, can be used without another call to the storage."""
        if self.source is not None and self.lacks(key):
            await self.source.afetch(self, key)

    # What the request did.

    def _base(self, key: str) -> Any:
        """Return the value that was read under `key`: for comparing and merging, not to be changed."""
        if key in self._snapshots:
            return decode(self._snapshots[key])
        value = self._originals[key] if key in self._originals else self._values.get(key, MISSING)
        if type(value) is Encoded:
            try:
                return decode(value)
            except DecodeError:
                return MISSING
        return value

    def read_as(self, key: str) -> bytes | None:
        """Return the encoding of what was read under `key`: for a storage that compares it with what it has.

        ``b""`` when there was nothing, ``None`` when that is not known.
        """
        if key in self._snapshots:
            return self._snapshots[key]
        value = self._originals[key] if key in self._originals else self._values.get(key, MISSING)
        if value is MISSING:
            return b""
        if type(value) is _Sentinel:
            return None
        return value if type(value) is Encoded else encode(value)

    def _differs(self, key: str) -> bool:
        """Whether `key`, which is in the session, has another value than the one that was read."""
        value = self._values[key]
        if key not in self._originals:
            return encode(value) != self._snapshots[key]
        if key in self._snapshots:
            return encode(value) != self._snapshots[key]
        base = self._base(key)
        if type(base) is _Sentinel:
            return True
        if type(value) is type(base) and type(value) in _PLAIN:
            return bool(value != base)
        return encode(value) != encode(base)

    @property
    def changed(self) -> dict[str, Any]:
        """The pairs that have another value now than the one that was read. For a cleared session, all pairs."""
        if self.cleared:
            return self.as_dict()
        return {key: self._values[key] for key in self._held() if key in self._values and self._differs(key)}

    @property
    def removed(self) -> set[str]:
        """The keys that were read, or may be stored, and are not in the session any more."""
        return {key for key, base in self._originals.items() if base is not MISSING and key not in self._values}

    def has_changes(self) -> bool:
        """Whether there is anything to save."""
        if self.cleared:
            return True
        values = self._values
        for key, base in self._originals.items():
            if self._differs(key) if key in values else base is not MISSING:
                return True
        return any(key in values and self._differs(key) for key in self._snapshots)

    def _held(self) -> dict[str, Any]:
        """Return, as keys in the order of their use, what was assigned or deleted or may have been changed in place."""
        return self._originals if not self._snapshots else {**self._originals, **self._snapshots}

    def as_dict(self) -> dict[str, Any]:
        """Return what the request knows of the session, for a storage to encode: the values are not copies."""
        for value in self._values.values():
            if type(value) is Encoded or value is UNFETCHED:
                break
        else:
            return dict(self._values)
        self._decode_all()
        return {key: value for key, value in self._values.items() if value is not UNFETCHED}

    # How it merges.

    def merged_onto(self, current: Mapping[str, Any]) -> dict[str, Any]:
        """Return the session that results when this request's changes meet what is stored now.

        Keys merge one by one. Dicts merge by sub-key, recursively, what was read being the common base; of anything
        else the last one saved wins. This map itself stays what the request has.

        Args:
            current: the stored session, complete.
        """
        if self.cleared:
            return self.as_dict()
        result = current.as_dict() if isinstance(current, SessionMap) else dict(current)
        for key in self.removed:
            result.pop(key, None)
        for key in self.changed:
            result[key] = self.merged_value(key, result.get(key, MISSING))
        self._merged = True
        return result

    def merged_value(self, key: str, current: Any = MISSING) -> Any:
        """Return what becomes of one changed key when `current` is stored under it now, or nothing is."""
        self._merged = True
        value = self._values[key]
        if not isinstance(value, dict):
            return value
        # As it will be read back: JSON, for one, makes text of every key.
        return _merge(self._base(key), decode(encode(value)), current)

    def renews_ttl(self, current: Mapping[str, Any]) -> bool:
        """Whether saving this session onto `current` renews the TTL.

        Not if another request gave the session an expiry of its own (``set_expiry()``) that this one does not know.
        """
        if self.cleared or EXPIRY_KEY in self.removed or EXPIRY_KEY in self.changed:
            return True
        base = self._base(EXPIRY_KEY)
        return bool(current.get(EXPIRY_KEY) == (None if base is MISSING else base))

    def about_to_be_saved(self) -> Mapping[str, Any]:
        """Return what :meth:`saved` has to know of the values that a storage is going to be given."""
        before: dict[str, Any] = {}
        for key in list(self._held()):
            value = self._values.get(key, MISSING)
            before[key] = value if type(value) in _UNCHANGING else (value, Encoded(encode(value)))
        return before

    def saved(self, before: Mapping[str, Any] | None = None) -> None:
        """Take what was stored as the new starting point. The adapter calls it when a storage has stored the session.

        What merging took in from others is not in this map, as the values may be objects that somebody holds. So the
        version is forgotten then: the next save merges again, and loses nothing of theirs.

        Args:
            before: what :meth:`about_to_be_saved` returned. Other tasks of the request may have made changes since,
                which are still to be saved. Without it there are none.
        """
        if before is None:
            before = self.about_to_be_saved()
        if self._merged:
            self.version, self._merged = None, False
        originals, snapshots = self._originals, self._snapshots
        for key, was in before.items():
            originals.pop(key, None)
            snapshots.pop(key, None)
            value = self._values.get(key, MISSING)
            if type(was) is tuple:
                (snapshots if value is was[0] else originals)[key] = was[1]
            elif value is not was:
                originals[key] = was
        self._watched = None
        self.cleared = False

    # For SessionStore.modified.

    def altered(self) -> bool:
        """Whether a value that was handed out has been changed in place since, or since :meth:`take_baseline`."""
        watched = self._snapshots if self._watched is None else self._watched
        return any(key in self._values and _print_of(self._values[key]) != was for key, was in watched.items())

    def take_baseline(self) -> None:
        """Let :meth:`altered` count from now."""
        if self._originals or self._snapshots:
            values = self._values
            self._watched = {
                key: _print_of(values[key]) for key in self._held() if type(values.get(key)) not in _SCALARS
            }


def _print_of(value: Any) -> object:
    """Return the encoding of `value`; of one that cannot be encoded, something that equals nothing else."""
    try:
        return encode(value)
    except Exception:  # saving it will raise this to the site's developer
        return object()


def _merge(base: Any, mine: Any, current: Any) -> Any:
    """Return the value that results when `mine`, made from `base`, meets `current`."""
    if not isinstance(mine, dict) or base is _UNKNOWN or base is UNFETCHED:
        return mine
    if current is MISSING:
        current = {}
    elif not isinstance(current, dict):
        return mine
    if not isinstance(base, dict):
        base = {}
    result = dict(current)
    for key in base.keys() - mine.keys():
        result.pop(key, None)
    for key, value in mine.items():
        before = base.get(key, MISSING)
        if before is MISSING or encode(value) != encode(before):
            result[key] = _merge(before, value, current.get(key, MISSING))
    return result
