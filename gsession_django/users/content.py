"""The pairs of a session, for staff who may see them."""

from typing import Any

from django.views.debug import get_default_exception_reporter_filter

from gsession_django.core.session_map import SessionMap
from gsession_django.users.listing import Sessions, UserSession


def content_of(session: UserSession) -> dict[str, Any] | None:
    """Return the pairs of a listed session; ``None`` if it has ended, or nobody can read it. Nothing of it is touched.

    Values are hidden whose keys Django's error pages would hide: passwords, tokens and so on.

    Raises:
        StorageUnavailable: the storage cannot answer.
    """
    sessions = Sessions.of_site()
    found: SessionMap | None = sessions.engine.run(sessions.whole(session.session_id))
    if found is None:
        return None
    hide = get_default_exception_reporter_filter().cleanse_setting
    return {str(key): hide(str(key), value) for key, value in found.items()}
