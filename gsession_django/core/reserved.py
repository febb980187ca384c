"""Pairs of a session that no user ever sees."""

from typing import Any, Final

RESERVED_KEY: Final = "_gsession"
"""What a per-key storage is given to keep where a session has no pairs."""
RESERVED_PREFIX: Final = RESERVED_KEY + "."
"""Begins the keys of all other hidden pairs."""
ABOUT_PREFIX: Final = RESERVED_PREFIX + "about."
"""Begins the keys of pairs about the session, which stay with it. A request loads, merges and saves them, unlike the
other hidden pairs, with the session."""
UNFINISHED: Final = "begun"
"""The value of a hidden pair while whoever stored the session is not done with it. Until then the session counts as
missing.
"""


def is_reserved(key: Any) -> bool:
    """Whether a request never gets a pair with this key."""
    return isinstance(key, str) and key.startswith(RESERVED_PREFIX) and not key.startswith(ABOUT_PREFIX)
