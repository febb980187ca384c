"""One save of a session: the values to store, encoded once, and how they differ from what was read."""

import logging
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, NoReturn

from django.conf import settings

from gsession_django.core.values import MISSING, NEVER_ENCODED, PLAIN, Encoded, Sentinel, encoded, storable
from gsession_django.serializers import decode, encode

if TYPE_CHECKING:
    from gsession_django.core.session_map import SessionMap

logger = logging.getLogger("gsession_django")

_NOTHING: Final[dict[str, Any]] = {}
# Keys whose values could not be stored: each is logged once. The number is limited, as visitors may make up keys.
_reported: Final[set[str]] = set()
_REPORTED_AT_MOST: Final = 1000


class Saving:
    """What is stored of a session, fixed at one moment, while other tasks and threads of the request may change it.

    Inside this context, the session answers its storage from here.

    Attributes:
        session: the session.
        values: the value of each key that the request set or deleted, or whose value it may have changed in place.
        encodings: the encodings of those values, except simple ones.
        replaced: the value to store in place of one that cannot be encoded.
        thread: the thread that saves. Another thread that saves the same session has its own Saving.
        before: the session's ``version``, ``ttl_left`` and ``cleared`` before the save.
    """

    __slots__ = (
        "_changed",
        "_explicit",
        "_originals",
        "_snapshots",
        "before",
        "encodings",
        "replaced",
        "session",
        "thread",
        "values",
    )

    def __init__(self, session: "SessionMap", explicit: bool) -> None:
        self.session = session
        self._explicit = explicit
        self._originals = originals = session._originals.copy()
        self._snapshots = snapshots = session._snapshots.copy()
        self.before = session.version, session.ttl_left, session.cleared
        self._changed: tuple[dict[str, str], set[str]] | None = None
        self.values: dict[str, Any] = {}
        values = self.values
        self.encodings: dict[str, bytes] = {}
        self.replaced: dict[str, Any] = _NOTHING
        current = session._values
        for key in originals if not snapshots else originals | snapshots:
            values[key] = value = current.get(key, MISSING)
            if type(value) not in NEVER_ENCODED:
                self._fix(key, value)

    def __enter__(self) -> "Saving":
        self.thread = get_ident()
        self.session._saving = self
        return self

    def __exit__(self, *exc: object) -> None:
        self.session._saving = None

    def include(self, later: "Saving") -> None:
        """Let :meth:`SessionMap.restore` undo a later save of the session together with this one."""
        for key in later.values.keys() - self.values.keys():
            self.values[key] = later.values[key]
            if key in later._originals:
                self._originals[key] = later._originals[key]
            if key in later._snapshots:
                self._snapshots[key] = later._snapshots[key]

    @property
    def changed(self) -> dict[str, str]:
        """The keys whose value differs from what was read. Maps each key as it is stored to the key of the request."""
        return (self._changed or self._compare())[0]

    @property
    def removed(self) -> set[str]:
        """The keys to remove, as they are stored."""
        return (self._changed or self._compare())[1]

    def has_changes(self) -> bool:
        """Return whether there is anything to save."""
        changed, removed = self._changed or self._compare()
        return bool(changed or removed or self.session.cleared)

    def _fix(self, key: str, value: Any) -> None:
        """Encode a value, or the one to store in its place if it cannot be encoded."""
        if isinstance(value, Encoded):
            self.encodings[key] = value
            return
        if self._explicit or key in self._originals:
            self.encodings[key] = self.encode(key, value)
            return
        try:
            self.encodings[key] = encode(value)
        except Exception as error:
            if (was := self._snapshots[key]) is not None:  # None: it could not be encoded before either
                part = storable_part(key, value, decode(was), error)
                self.replaced = {**self.replaced, key: part}
                self.encodings[key] = encode(part)

    def _compare(self) -> tuple[dict[str, str], set[str]]:
        changed: dict[str, str] = {}
        removed: set[str] = set()
        originals, snapshots = self._originals, self._snapshots
        for key, value in self.values.items():
            if value is MISSING:
                if key in originals and originals[key] is not MISSING:
                    removed.add(stored_key(key))
                continue
            if key in snapshots:
                differs = self._differs(key, value, snapshots[key], key in originals)
            else:
                base = originals[key]
                kind = type(base)
                if kind is type(value) and kind in PLAIN:
                    differs = value != base
                else:
                    differs = kind is Sentinel or self._differs(key, value, _encoding_of(base), True)
            if differs:
                changed[stored_key(key)] = key
        self._changed = changed, removed
        return self._changed

    def _differs(self, key: str, value: Any, was: bytes | None, set_by_request: bool) -> bool:
        """Return whether a value differs, or may differ, from the one that was read as `was`."""
        if was is None:
            return set_by_request or self._explicit
        now = self.encodings[key] if key in self.encodings else encode(value)
        return not self.session._same(key, now, was, trusting=not self._explicit and not set_by_request)

    def encode(self, key: str, value: Any) -> bytes:
        """Return the encoding of a value. The error of the serializer, if it raises one, names the key."""
        try:
            return encode(value)
        except Exception as error:
            _raise_named(error, f"value {key!r}")

    def value_of(self, key: str) -> Any:
        """Return the value that is stored under a key."""
        return self.replaced[key] if key in self.replaced else self.values[key]


def _encoding_of(base: Any) -> bytes | None:
    """Return the encoding of a value that was read; ``None`` if it cannot be encoded again."""
    if (stored := encoded(base)) is not None:
        return stored
    try:
        return encode(base)
    except Exception:
        return None


def stored_key(key: Any) -> str:
    """Return a key as a later read returns it: JSON, for one, turns every key into text."""
    if type(key) is str:
        return key
    if isinstance(key, str):
        return str.__str__(key)
    try:
        (stored,) = decode(encode({key: None}))
    except Exception as error:
        _raise_named(error, f"key {key!r}")
    return stored  # type: ignore[no-any-return]


def _raise_named(error: Exception, what: str) -> NoReturn:
    """Raise the error of a serializer, with the name of the key or value added."""
    text = (
        f"The session {what} cannot be stored by SESSION_SERIALIZER = {settings.SESSION_SERIALIZER!r}: {error}. Store "
        "a value that this serializer takes, or set another serializer."
    )
    if type(error) is TypeError:
        raise TypeError(text) from error
    error.add_note(text)
    raise error


def storable_part(key: str, value: Any, base: Any, error: Exception) -> Any:
    """Return a value that cannot be encoded, with each part that cannot be encoded as it is in `base`.

    It logs that once per process and key.
    """
    if len(_reported) < _REPORTED_AT_MOST and key not in _reported:
        _reported.add(key)
        logger.warning(
            "The session value %r was changed in place to one that cannot be stored: %s: %s. The parts that cannot be "
            "stored stay as they were. To compute values for display, work on a copy: "
            "copy.deepcopy(request.session[%r]).",
            *(key, type(error).__name__, error, key),
        )
    return storable(value, base)
