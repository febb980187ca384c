"""``manage.py sessions``: lists sessions, shows one, ends some, and counts them."""

import json
import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ObjectDoesNotExist, ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from gsession_django.core.session_map import SessionMap
from gsession_django.core.storage import Disabled, StorageUnavailable
from gsession_django.core.store_base import PURGE_BATCH_SIZE
from gsession_django.management.common import session_store
from gsession_django.serializers import encode
from gsession_django.signals import Ended
from gsession_django.users.listing import Client, Sessions, UserSession, id_of

_OTHERS: Final = "Django's engines have no list of sessions but their table."
_COLUMNS: Final = ("id", "user", "created", "last_seen", "expires", "address")


class Command(BaseCommand):
    help = "Lists, shows, ends and counts sessions. It shows ids that open no session, and no session keys."

    def add_arguments(self, parser: CommandParser) -> None:
        commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        listing = commands.add_parser("list", help="list all sessions, or those of one user")
        showing = commands.add_parser("show", help="show what is in a session")
        ending = commands.add_parser("end", help="end a session, or all of a user")
        counting = commands.add_parser("stats", help="count sessions: how many, how large, expired, of how many users")
        for command in (listing, showing, ending, counting):
            command.add_argument("--engine", metavar="MODULE", help="the session engine, if it is not SESSION_ENGINE")
        listing.add_argument("--user", metavar="U", help="a username, or the primary key of a user")
        for command in (listing, showing, counting):
            command.add_argument("--json", action="store_true", help="write JSON, one object a line")
        showing.add_argument("id", metavar="ID", help="as the list shows it")
        one = ending.add_mutually_exclusive_group(required=True)
        one.add_argument("id", nargs="?", metavar="ID", help="as the list shows it")
        one.add_argument("--user", metavar="U", help="a username, or the primary key of a user")

    def handle(self, *args: Any, **options: Any) -> None:
        named = options["engine"] is not None
        self._name = options["engine"] if named else settings.SESSION_ENGINE
        store = session_store(self._name, "--engine" if named else "SESSION_ENGINE", _OTHERS)
        self._sessions = Sessions(store)
        self._engine = self._sessions.engine
        try:
            getattr(self, f"_{options['command']}")(options)
        except StorageUnavailable as error:
            raise CommandError(str(error)) from error
        except (Disabled, NotImplementedError) as error:
            raise CommandError(str(error) or f"{self._engine.name} cannot do that.") from error

    # The commands.

    def _list(self, options: dict[str, Any]) -> None:
        if options["user"] is None:
            found: Iterator[UserSession] = (described for described, _ in self._all())
        else:
            found = iter(self._engine.run(self._sessions.sessions_of(self._user_id(options["user"]), None)))
        if not options["json"]:
            self.stdout.write("  ".join(_COLUMNS))
        for session in found:
            row = self._row(session)
            if options["json"]:
                self.stdout.write(json.dumps(row))
            else:
                self.stdout.write("  ".join(str(row[column] or "-") for column in _COLUMNS))

    def _show(self, options: dict[str, Any]) -> None:
        described, session = self._one(options["id"])
        data = {key: session[key] for key in session}
        if options["json"]:
            self.stdout.write(json.dumps({**self._row(described), "data": data}, default=repr))
            return
        for name, value in self._row(described).items():
            self.stdout.write(f"{name}: {value or '-'}")
        self.stdout.write("data:")
        for key, value in data.items():
            self.stdout.write(f"  {key!r}: {value!r}")

    def _end(self, options: dict[str, Any]) -> None:
        if options["user"] is None:
            described, _ = self._one(options["id"])
            self._engine.run(self._sessions.end(described, Ended.BY_ANOTHER))
            ended = 1
        else:
            ended = self._engine.run(self._sessions.end_all(self._user_id(options["user"]), None, Ended.BY_ANOTHER))
        self.stdout.write(f"Ended {ended} session{'' if ended == 1 else 's'} of {self._name}.")

    def _stats(self, options: dict[str, Any]) -> None:
        sizes: list[int] = []
        users: Counter[str] = Counter()
        for described, session in self._all(whole=True):
            sizes.append(len(encode(session.as_dict())))
            if described.user_id is not None:
                users[described.user_id] += 1
        able = self._engine.able
        expired = sum(self._engine.purge(PURGE_BATCH_SIZE, dry_run=True)) if "purge" in able else None
        figures = {
            "sessions": len(sizes),
            "expired": expired,
            "bytes": sum(sizes),
            "bytes_median": round(statistics.median(sizes)) if sizes else 0,
            "bytes_largest": max(sizes, default=0),
            "users": len(users),
            "signed_in": users.total(),
            "of_one_user_at_most": max(users.values(), default=0),
        }
        if options["json"]:
            self.stdout.write(json.dumps(figures))
            return
        for name, value in figures.items():
            self.stdout.write(f"{name}: {'they go by themselves' if value is None else value}")

    # What they need.

    def _all(self, whole: bool = False) -> Iterator[tuple[UserSession, SessionMap]]:
        """Yield all sessions; with `whole`, all their values too."""
        look = self._sessions.whole if whole else self._sessions.look
        if "ids" not in self._engine.able:
            raise CommandError(
                f"{self._engine.name} cannot list its sessions: it has no ids(). Name a user, if it has sessions_of()."
            )
        for session_id in self._engine.calls.ids():
            session = self._engine.run(look(session_id))
            if session is not None:
                yield self._sessions.describe(session_id, session), session

    def _one(self, shown_id: str) -> tuple[UserSession, SessionMap]:
        """Return the session of an id as the list shows it, with all its values."""
        session_id: str | None = shown_id
        if not self._engine.hash_ids:  # the storage's own id is the session key, which is not shown
            session_id = next((each.session_id for each, _ in self._all() if each.handle == shown_id), None)
        session = None if session_id is None else self._engine.run(self._sessions.whole(session_id))
        if session_id is None or session is None:
            raise CommandError(f"{self._name} has no session {shown_id!r}. Take an id from: manage.py sessions list")
        return self._sessions.describe(session_id, session), session

    def _row(self, session: UserSession) -> dict[str, Any]:
        return {
            "id": session.session_id if self._engine.hash_ids else session.handle,
            "user": session.user_id,
            "created": _text(session.created),
            "last_seen": _text(session.last_seen),
            "expires": _text(session.expires),
            "address": _address(session.last_seen_from),
            "user_agent": None if session.last_seen_from is None else session.last_seen_from.user_agent,
        }

    def _user_id(self, name: str) -> str:
        """Return what Django keeps in a session for a user; `name` itself if it is the id of a user who was deleted."""
        users: Any = get_user_model()._default_manager
        for find in (users.get_by_natural_key, lambda name: users.get(pk=name)):
            with suppress(ObjectDoesNotExist, ValidationError, ValueError, TypeError):  # a name is no primary key
                return id_of(find(name))
        if self._engine.run(self._sessions.sessions_of(name, None)):
            self.stderr.write(f"There is no user {name!r} any more; these are the sessions of that id.")
            return name
        raise CommandError(f"There is no user with the username or primary key {name!r}.")


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")


def _address(client: Client | None) -> str | None:
    return None if client is None else client.address
