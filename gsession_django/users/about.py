"""The hidden pairs that a user's session has: what is known of it."""

import time
from typing import Final

from gsession_django.core.reserved import ABOUT_PREFIX

SINCE: Final = ABOUT_PREFIX + "since"
"""When the user signed in, in microseconds since 1970, UTC."""
LISTED: Final = ABOUT_PREFIX + "listed"
"""Until when the session is listed among those of its user, in seconds since 1970, UTC."""
CLIENT: Final = ABOUT_PREFIX + "client"
"""Address and user agent of the sign-in and of the last visit: ``[[address, agent], [address, agent]]``."""


def now() -> int:
    """Return the time as in :data:`SINCE`."""
    return time.time_ns() // 1000
