"""What a session holds, for staff who may see that."""

from typing import Any

from django.conf import settings
from django.views.debug import get_default_exception_reporter_filter

from gsession_django.core.driving import Operation
from gsession_django.core.engine import engine_module, engine_of
from gsession_django.core.session_map import SessionMap
from gsession_django.core.store import SessionStore
from gsession_django.users.listing import UserSession


def content_of(session: UserSession) -> dict[str, Any] | None:
    """Return the pairs of a listed session, ``None`` if it has ended. Nothing of it is touched.

    What Django's error pages hide of settings, by their names, is hidden here too: passwords, tokens, keys.

    Raises:
        DecodeError: nobody can read it.
        StorageUnavailable: the storage cannot answer.
    """
    store_class: type[SessionStore] = engine_module(settings.SESSION_ENGINE).SessionStore
    engine = engine_of(store_class)

    def read() -> Operation:
        found: SessionMap | None = yield from engine.load(session.session_id, store_class())
        if found is not None and found.lacks(None):
            yield from engine.fetch(session.session_id, found, None)
        return found

    found: SessionMap | None = engine.run(read())
    if found is None:
        return None
    hide = get_default_exception_reporter_filter().cleanse_setting
    return {str(key): hide(str(key), value) for key, value in found.items()}
