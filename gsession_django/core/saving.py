"""One save of a session: what is stored of it, encoded once, and how it differs from what was read."""

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
# Keys whose values could not be stored, each of which is logged once; keys may be made of what visitors send.
_reported: Final[set[str]] = set()
_REPORTED_AT_MOST: Final = 1000


class Saving:
    """What is stored of a session, fixed at one moment: other tasks and threads of the request may go on changing it.

    As a context it lets the session answer its storage from here.

    Attributes:
        session: the session.
        values: what the request has under each key that it set or deleted or that may have been changed in place.
        encodings: the encodings of those values, but for simple ones.
        replaced: what is stored in place of a value that cannot be encoded.
        thread: the thread that saves; another one that saves the same session meanwhile has a Saving of its own.
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
        """Let :meth:`SessionMap.restore` take a later save of the session back together with this one."""
        for key in later.values.keys() - self.values.keys():
            self.values[key] = later.values[key]
            if key in later._originals:
                self._originals[key] = later._originals[key]
            if key in later._snapshots:
                self._snapshots[key] = later._snapshots[key]

    @property
    def changed(self) -> dict[str, str]:
        """The keys with another value than the one that was read: as they are stored, and as the request has them."""
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
        """Encode a value, or what is stored in place of one that cannot be encoded."""
        if isinstance(value, Encoded):
            self.encodings[key] = value
            return
        if self._explicit or key in self._originals:
            self.encodings[key] = self.encode(key, value)
            return
        try:
            self.encodings[key] = encode(value)
        except Exception as error:
            if (was := self._snapshots[key]) is not None:  # else it never could be encoded
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
        """Return whether a value is another than the one that was read as `was`, or that cannot be told."""
        if was is None:
            return set_by_request or self._explicit
        now = self.encodings[key] if key in self.encodings else encode(value)
        return not self.session._same(key, now, was, trusting=not self._explicit and not set_by_request)

    def encode(self, key: str, value: Any) -> bytes:
        """Return an encoding; what the serializer raises for a value that it cannot take, with the key's name."""
        try:
            return encode(value)
        except Exception as error:
            _raise_named(error, f"value {key!r}")

    def value_of(self, key: str) -> Any:
        """Return the value that is stored under a key."""
        return self.replaced[key] if key in self.replaced else self.values[key]


def _encoding_of(base: Any) -> bytes | None:
    """Return the encoding of what was read; ``None`` if it cannot be encoded again, which is nobody's mistake here."""
    if (stored := encoded(base)) is not None:
        return stored
    try:
        return encode(base)
    except Exception:
        return None


def stored_key(key: Any) -> str:
    """Return a key as it will be read back: JSON, for one, makes text of every key."""
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
    """Raise the error of a serializer with the name of what it could not take."""
    text = (
        f"The session {what} cannot be stored by SESSION_SERIALIZER = {settings.SESSION_SERIALIZER!r}: {error}. Store "
        "what that serializer takes, or name another one."
    )
    if type(error) is TypeError:
        raise TypeError(text) from error
    error.add_note(text)
    raise error


def storable_part(key: str, value: Any, base: Any, error: Exception) -> Any:
    """Return of a value that cannot be encoded the parts that can be, and the others as they are in `base`.

    Logs it, once a process and key.
    """
    if len(_reported) < _REPORTED_AT_MOST and key not in _reported:
        _reported.add(key)
        logger.warning(
            "The session value %r was changed in place to one that cannot be stored: %s: %s. What cannot be stored "
            "stays as it was. To compute values for display, work on a copy: copy.deepcopy(request.session[%r]).",
            *(key, type(error).__name__, error, key),
        )
    return storable(value, base)
