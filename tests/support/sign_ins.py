"""Users who sign in, without a database for them."""

from typing import Any

from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, login
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest
from django.test import RequestFactory

from gsession_django import SessionStore
from gsession_django.users import sessions_of
from tests.support.sites import BACKEND, InMemoryUser


def sign_in(store: SessionStore, user: str = "7") -> SessionStore:
    """Do to a session what Django's ``login()`` does, and save it."""
    if store.get(SESSION_KEY, user) != user:
        store.flush()
    else:
        store.cycle_key()
    store[SESSION_KEY] = user
    store[BACKEND_SESSION_KEY] = BACKEND
    store[HASH_SESSION_KEY] = "hash"
    store.save()
    return store


async def asign_in(store: SessionStore, user: str = "7") -> SessionStore:
    """Do to a session what Django's ``alogin()`` does, and save it."""
    if await store.aget(SESSION_KEY, user) != user:
        await store.aflush()
    else:
        await store.acycle_key()
    await store.aset(SESSION_KEY, user)
    await store.aset(BACKEND_SESSION_KEY, BACKEND)
    await store.aset(HASH_SESSION_KEY, "hash")
    await store.asave()
    return store


def request_of(store: SessionStore) -> HttpRequest:
    """Return a request with this session, in which nobody is signed in yet."""
    request: Any = RequestFactory().get("/")
    request.session = store
    request.user = AnonymousUser()
    return request  # type: ignore[no-any-return]


def log_in(store: SessionStore, user: str = "7") -> SessionStore:
    """Let a user sign in by Django's ``login()``, save the session as the middleware does, and return it."""
    request = request_of(store)
    login(request, InMemoryUser(pk=int(user), username=f"user {user}", password="a hash"), BACKEND)
    store.save()
    return store


def ids_of(user: str = "7") -> set[str]:
    """Return the ids of the sessions that are listed for a user."""
    return {session.session_id for session in sessions_of(user)}
