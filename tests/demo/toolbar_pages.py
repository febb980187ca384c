"""The pages of the site with the toolbar: each has a sync and an async view."""

import asyncio
import threading

from asgiref.sync import sync_to_async
from debug_toolbar.toolbar import debug_toolbar_urls
from django.contrib.sessions.backends.base import SessionBase
from django.http import HttpRequest, HttpResponse
from django.urls import path

from tests.demo.support import TIMEOUT

_barrier = threading.Barrier(2, timeout=TIMEOUT)


def _page() -> HttpResponse:
    return HttpResponse("<!doctype html><title>A page</title><link rel=icon href=data:,><body></body>")


def visit(request: HttpRequest) -> HttpResponse:
    """Change the session. If it is stored, another request changes it at the same time."""
    request.session.setdefault("cart", {})
    if request.session.session_key is not None:
        _another_request(request.session)
    request.session["cart"]["milk"] = request.session["cart"].get("milk", 0) + 1
    return _page()


async def avisit(request: HttpRequest) -> HttpResponse:
    await request.session.asetdefault("cart", {})
    if request.session.session_key is not None:
        await sync_to_async(_another_request)(request.session)
    cart = await request.session.aget("cart", {})
    cart["milk"] = cart.get("milk", 0) + 1
    return _page()


def _another_request(session: SessionBase) -> None:
    def save() -> None:
        other = type(session)(session.session_key)
        other["cart"]["tea"] = "for another"
        other.save()

    thread = threading.Thread(target=save)  # a thread has its own context
    thread.start()
    thread.join(TIMEOUT)


def meet(request: HttpRequest) -> HttpResponse:
    """Set a value while another request is in this view."""
    request.session.get("any")
    _barrier.wait()
    request.session["met"] = True
    _barrier.wait()
    return _page()


async def ameet(request: HttpRequest) -> HttpResponse:
    await request.session.aget("any")
    await asyncio.to_thread(_barrier.wait)
    await request.session.aset("met", True)
    await asyncio.to_thread(_barrier.wait)
    return _page()


def idle(request: HttpRequest) -> HttpResponse:
    return _page()


urlpatterns = [
    path("sync/visit/", visit),
    path("async/visit/", avisit),
    path("sync/meet/", meet),
    path("async/meet/", ameet),
    path("sync/idle/", idle),
    *debug_toolbar_urls(),
]
