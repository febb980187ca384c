"""The pages to request: one reads the session, one writes it. Under ASGI both are async."""

import time

from django.core.asgi import get_asgi_application as asgi  # noqa: F401, what uvicorn is told to serve
from django.core.wsgi import get_wsgi_application as wsgi  # noqa: F401, what gunicorn is told to serve
from django.http import HttpRequest, HttpResponse
from django.urls import path


def read(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.session["_auth_user_id"])


def write(request: HttpRequest) -> HttpResponse:
    request.session["language"] = str(time.monotonic_ns())
    return HttpResponse(request.session["_auth_user_id"])


async def aread(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await request.session.aget("_auth_user_id"))


async def awrite(request: HttpRequest) -> HttpResponse:
    await request.session.aset("language", str(time.monotonic_ns()))
    return HttpResponse(await request.session.aget("_auth_user_id"))


urlpatterns = [path("read", read), path("write", write), path("aread", aread), path("awrite", awrite)]
