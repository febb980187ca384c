"""A session in words, for a page."""

from datetime import UTC, datetime, timedelta

from django.utils.functional import cached_property
from django.utils.timesince import timesince
from django.utils.translation import gettext as _

from gsession_django.users.agents import Agent, parsed
from gsession_django.users.listing import Client, UserSession


class Described:
    """A listed session, with what a template shows of it."""

    def __init__(self, session: UserSession) -> None:
        self.handle = session.handle
        self.is_current = session.is_current
        self.created = session.created
        self.last_seen = datetime.now(UTC) if session.is_current else session.last_seen
        self.signed_in_from = session.signed_in_from
        self.last_seen_from = session.last_seen_from

    def __str__(self) -> str:
        """Return the name of the device: browser and system."""
        if self.agent.browser and self.agent.system:
            return _("%(browser)s on %(system)s") % {"browser": self.agent.browser, "system": self.agent.system}
        return self.agent.browser or self.agent.system or _("Unknown browser")

    @cached_property
    def agent(self) -> Agent:
        client: Client | None = self.last_seen_from or self.signed_in_from
        return parsed("" if client is None else client.user_agent)

    @property
    def created_in_words(self) -> str:
        return in_words(self.created)

    @property
    def last_seen_in_words(self) -> str:
        return in_words(self.last_seen)


def in_words(moment: datetime | None) -> str:
    """Return how long ago a moment was, in the language of the page; ``""`` if nobody knows the moment."""
    if moment is None:
        return ""
    now = datetime.now(UTC)
    if now - moment < timedelta(minutes=1):
        return _("just now")
    return _("%(time)s ago") % {"time": timesince(moment, now, depth=1)}
