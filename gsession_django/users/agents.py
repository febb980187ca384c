"""A user agent in words that a user knows: "Firefox 146" on "Linux"."""

from dataclasses import dataclass
from typing import Final

from django.utils.text import Truncator

RAW_LENGTH: Final = 80
"""Characters that are shown of a user agent that nobody has parsed."""


@dataclass(frozen=True, slots=True)
class Agent:
    """What a user agent says of itself; each is empty where it says nothing.

    Attributes:
        browser: its name and major version; the user agent itself, cut, where it could not be parsed.
        system: the name of the operating system. Its version is left out, as browsers report one that never changes.
    """

    browser: str
    system: str


def parsed(user_agent: str) -> Agent:
    """Return what a user agent says. The extra ``pages`` installs ua-parser, which knows them."""
    try:
        from ua_parser import parse
    except ModuleNotFoundError:
        return Agent(_cut(user_agent), "")
    found = parse(user_agent)
    browser, system = found.user_agent, found.os
    return Agent(
        _cut(user_agent) if browser is None else " ".join(filter(None, (browser.family, browser.major))),
        "" if system is None else system.family,
    )


def _cut(user_agent: str) -> str:
    return Truncator(user_agent).chars(RAW_LENGTH)
