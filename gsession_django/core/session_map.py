"""SessionMap: one session, what the request changed in it, and how that merges with the changes of others."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from threading import get_ident
from typing import Any, Final

from gsession_django import recording
from gsession_django.core import documents
from gsession_django.core.comparing import ComparedPairs
from gsession_django.core.pairs import EXPIRY_KEY
from gsession_django.core.saving import Saving, stored_key
from gsession_django.core.values import MISSING, PENDING, SCALARS, UNFETCHED, Canonical, Part, merge
from gsession_django.serializers import decode

_PENDING_IN_DOCUMENTS: Final = PENDING - {Part}


class SessionMap(ComparedPairs):
    """The counterpart of gsession's ``gmap.StrAnyMap``: a mapping that knows what the request changed since the read.

    Changes are found by value, inside nested values too. A value that was changed in place counts; a key that was set
    to the value it had does not. Two values are equal if they are equal once they are stored. If a value was changed in
    place to one that cannot be encoded, only the parts that can be encoded count: the others were made for display.

    Args:
        data: the pairs that were read. The map takes the object over. A value may be ``Encoded``, or ``UNFETCHED``.
        version: what the storage wants back in ``apply`` to know whether another request wrote in between.
        ttl_left: seconds that the session had left to live when it was read; ``None`` if the storage does not tell.

    Attributes:
        cleared: whether ``clear()`` was called. The save then removes all stored pairs before it writes ``changed``.
        source: where the map fetches values that it does not hold.
        partial: whether the storage may have keys that are not known here, to be asked for one by one.
        unreadable: whether a session is stored of which nothing can be read. This map has no part of it.
        tokens: by key of a value that is not fetched, what the storage wants back to know whether another request
            changed the value.
    """

    __slots__ = ()

    @classmethod
    def replacing(cls, data: dict[str, Any]) -> "SessionMap":
        """Return a session that has these pairs, and loses all others when it is saved. It takes `data` over."""
        session = cls({})
        session.clear()
        session._values = data
        return session

    # What the request changed.

    def saving(self, explicit: bool = True) -> Saving:
        """Return a context for one save, which encodes each value that is stored once.

        Args:
            explicit: whether the request asked for the save, by setting a key or ``modified``. A value that cannot be
                encoded then raises the error of the serializer. If only changes in place ask for the save, such a value
                stays as it is stored.
        """
        return Saving(self, explicit)

    @property
    def _save(self) -> Saving:
        save = self._saving
        return save if save is not None and save.thread == get_ident() else Saving(self, True)

    @property
    def changed(self) -> dict[str, Any]:
        """The pairs whose value differs from the one that was read. For a cleared session, all pairs."""
        if self.cleared:
            return self.as_dict()
        save = self._save
        values = save.values | save.replaced if save.replaced else save.values
        return {name: values[key] for name, key in save.changed.items()}

    @property
    def removed(self) -> set[str]:
        """The keys that were read, or may be stored, and that the session does not have any more."""
        return self._save.removed

    def has_changes(self) -> bool:
        """Return whether there is anything to save."""
        return self._save.has_changes()

    def as_dict(self) -> dict[str, Any]:
        """Return the pairs that the request knows, for a storage to encode. The values are not copies."""
        return self._known(PENDING)

    def _known(self, pending: AbstractSet[type]) -> dict[str, Any]:
        """Return the known pairs. Values of a type in `pending` are decoded."""
        values = self._values.copy()
        for value in values.values():
            if type(value) in pending:
                self._decode_all()
                values = {key: value for key, value in self._values.copy().items() if value is not UNFETCHED}
                break
        return values | self._save.replaced if self._saving is not None and self._saving.replaced else values

    def encoded(self) -> bytes:
        """Return the encoding of :meth:`as_dict`, for a storage that keeps whole sessions.

        It reuses the encodings that were made to compare, and the bytes of large values that were read and not used.
        White space follows JSON of 2,000 bytes or more: it tells where the large values are.
        """
        data, save = self._known(_PENDING_IN_DOCUMENTS), self._save
        try:
            return documents.encode_pairs(data, save.encodings)
        except Exception:
            for key, value in data.items():  # one of the two calls raises an error that names the key
                stored_key(key)
                if type(value) is not Part:
                    save.encode(key, value)
            raise

    def encoding_of(self, key: str, value: Any) -> bytes:
        """Return the encoding of a pair of :attr:`changed` or :meth:`as_dict`."""
        save = self._save
        key = save.changed.get(key, key)
        return save.encodings[key] if key in save.encodings else save.encode(key, value)

    # How that merges.

    def merged_onto(self, current: Mapping[str, Any]) -> dict[str, Any]:
        """Return the session that results when this request's changes meet what is stored now.

        Keys merge one by one. Dicts merge by sub-key, recursively, with what was read as the common base. Of any other
        values the last one saved wins. The result has the request's keys in the request's order, and then the keys that
        other requests added. This map does not change.

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
        """Return stored pairs in the order of :meth:`merged_onto`."""
        names = map(stored_key, self._values.copy())
        return {name: stored[name] for name in names if name in stored} | stored

    def merged_value(self, key: str, current: Any = MISSING) -> Any:
        """Return the value to store under one changed key, if `current`, or nothing, is stored under it now."""
        save = self._save
        self._merged = True
        recording.merged()
        return self._merged_value(save, save.changed.get(key, key), current)

    def _merged_value(self, save: Saving, key: str, current: Any) -> Any:
        value = save.value_of(key)
        if not isinstance(value, dict):
            return value
        base = self.base(key)
        if base is UNFETCHED:  # and the storage says that another request changed it
            base = {}
        # Decoded, it has the keys that a later read returns: JSON, for one, turns every key into text.
        return merge(base, decode(save.encodings[key]), current)

    def renews_ttl(self, current: Mapping[str, Any]) -> bool:
        """Return whether saving this session onto `current` renews the TTL.

        It does not if another request called ``set_expiry()``, and this request does not know that expiry.
        """
        if self.cleared:
            return True
        if EXPIRY_KEY in self._originals:
            save = self._save
            if EXPIRY_KEY in save.removed or EXPIRY_KEY in save.changed:
                return True
        base = self.base(EXPIRY_KEY)
        return bool(current.get(EXPIRY_KEY) == (None if base is MISSING else base))

    # Once it is stored.

    def saved(self, save: Saving | None = None) -> None:
        """Compare with what was stored from now on. The adapter calls it when a storage has stored the session.

        This map does not take in what a merge got from other requests, as the view may hold its values. It forgets the
        version instead: the next save merges again, and so keeps the changes of others.

        Args:
            save: what :meth:`saving` returned. Changes that other tasks of the request made since are still to be
                saved. ``None`` if there are no such changes.
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

    def restore(self, save: Saving) -> None:
        """Undo :meth:`saved` after a rollback: what `save` stored is a change of the request again.

        If several saves were rolled back, restore the last one first.
        """
        for key in save.values:
            self._snapshots.pop(key, None)
        # A key that was set after the save is still a key that was set.
        self._originals.update(save._originals)
        self._snapshots.update(save._snapshots)
        self._canonical = None
        self.version, self.ttl_left, self.cleared = save.before
