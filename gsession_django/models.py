"""The table of the engine ``gsession_django.backends.database``, and the permissions on the sessions of any engine."""

from typing import Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.translation import gettext_lazy as _

ID_LENGTH = 128
"""The most characters that a session id may have. A hashed one has 64."""


class SessionIdField(models.CharField):  # type: ignore[type-arg]
    """Text that the database compares byte by byte. By default MySQL and MariaDB take ``A`` for ``a``."""

    def db_type(self, connection: BaseDatabaseWrapper) -> str | None:
        if connection.vendor == "postgresql":
            # "varchar" is short for this. But for a "varchar" Django adds a second index, for LIKE. We never use LIKE,
            # and each change of a row would have to write to that index.
            return f"character varying({self.max_length})"
        return super().db_type(connection)

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        parameters = super().db_parameters(connection)
        parameters["collation"] = {"mysql": "utf8mb4_bin", "postgresql": "C"}.get(connection.vendor)
        return parameters


class Session(models.Model):
    """One session.

    Attributes:
        id: the session id, by default the SHA-256 of the session key.
        data: all pairs, as ``SESSION_SERIALIZER`` encoded them.
        version: a number that each change replaces, and a touch does not.
        expires: when it expires, in milliseconds since 1970, UTC: a number, which no time zone moves.
        user_id: the user who is signed in, as ``gsession_django.database.rows.column_of`` returns it; ``None`` without
            one, and in a row that was written before this column existed.
    """

    id = SessionIdField(primary_key=True, max_length=ID_LENGTH)
    data = models.BinaryField()
    version = models.BigIntegerField()
    expires = models.BigIntegerField(db_index=True)
    user_id = SessionIdField(db_index=True, max_length=ID_LENGTH, null=True)

    class Meta:
        verbose_name = _("session")
        verbose_name_plural = _("sessions")
        permissions = [("view_session_data", _("Can view what a session holds"))]

    def __str__(self) -> str:
        return str(self.id)


class SessionLock(models.Model):
    """Who has a session to themselves.

    Attributes:
        id: the session id, as ``gsession_django.database.rows.column_of`` has it. The session need not be there.
        token: names the holder, likewise.
        expires: until when, in milliseconds since 1970, UTC; 0 once the lock is free.
    """

    id = SessionIdField(primary_key=True, max_length=ID_LENGTH)
    token = SessionIdField(max_length=ID_LENGTH)
    expires = models.BigIntegerField()

    def __str__(self) -> str:
        return str(self.id)
