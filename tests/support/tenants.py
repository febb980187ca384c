"""A site with tenants: the current one is in a context variable."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

TENANT: Final[ContextVar[str]] = ContextVar("tenant")


@contextmanager
def tenant(name: str) -> Iterator[None]:
    """Let this be the current tenant."""
    before = TENANT.set(name)
    try:
        yield
    finally:
        TENANT.reset(before)
