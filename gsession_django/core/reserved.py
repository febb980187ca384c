"""Pairs of a session that no user ever sees."""

from typing import Any, Final

RESERVED_KEY: Final = "_gsession"
"""What a per-key storage is given to keep where a session has no pairs."""
RESERVED_PREFIX: Final = RESERVED_KEY + "."
"""Begins the keys of further pairs that are kept for a moment, as while a session is moved."""
ABOUT_PREFIX: Final = "_gs."
"""Begins the keys of pairs about the session. A request loads, merges and saves them with the others, unlike reserved
pairs, and does not see them among its keys.
"""
UNFINISHED: Final = "begun"
"""The value of a hidden pair while whoever stored the session is not done with it. Until then the session counts as
missing.
"""


def is_reserved(key: Any) -> bool:
    """Return whether a key begins with :data:`RESERVED_PREFIX`: no request ever gets its pair."""
    return isinstance(key, str) and key.startswith(RESERVED_PREFIX)


def is_hidden(key: Any) -> bool:
    """Return whether a request never sees a pair with this key among those of its session."""
    return isinstance(key, str) and key.startswith(ABOUT_PREFIX)
