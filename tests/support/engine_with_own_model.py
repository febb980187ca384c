"""Django's database engine with the site's own model and encoding."""

import json
from typing import Any

from django.contrib.sessions.backends.db import SessionStore as DatabaseStore
from django.contrib.sessions.base_session import AbstractBaseSession
from django.db import models


class OwnSession(AbstractBaseSession):
    account = models.IntegerField(null=True)

    class Meta:
        app_label = "sessions"


class SessionStore(DatabaseStore):
    @classmethod
    def get_model_class(cls) -> type[AbstractBaseSession]:
        return OwnSession

    def encode(self, session_dict: dict[str, Any]) -> str:
        return json.dumps(session_dict)

    def decode(self, session_data: bytes | str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(session_data)
            return found
        except ValueError:
            return {}
