"""Django's `SessionTestsMixin`, and our counterparts of tests that cannot run on our engines."""

from collections.abc import Callable
from importlib import import_module

from django.conf import settings
from django.contrib.sessions.exceptions import SessionInterrupted
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory, TestCase
from sessions_tests.tests import SessionTestsMixin

SessionStore = import_module(settings.SESSION_ENGINE).SessionStore


class EngineTests(SessionTestsMixin, TestCase):
    backend = SessionStore


class MiddlewareTests(TestCase):
    def respond(self, view: Callable[[HttpRequest], HttpResponse], key: str | None = None) -> HttpResponse:
        request = RequestFactory().get("/")
        if key is not None:
            request.COOKIES[settings.SESSION_COOKIE_NAME] = key
        response = SessionMiddleware(view)(request)
        assert isinstance(response, HttpResponse)
        return response

    def test_empty_session_saved(self) -> None:
        def set_value(request: HttpRequest) -> HttpResponse:
            request.session["foo"] = "bar"
            return HttpResponse()

        def remove_value(request: HttpRequest) -> HttpResponse:
            del request.session["foo"]
            return HttpResponse()

        response = self.respond(set_value)
        key = response.cookies[settings.SESSION_COOKIE_NAME].value
        self.assertEqual(SessionStore(key).load(), {"foo": "bar"})

        response = self.respond(remove_value, key)
        self.assertIs(SessionStore().exists(key), True)
        self.assertEqual(SessionStore(key).load(), {})
        # The session is empty, but nobody flushed it, so the cookie stays.
        self.assertEqual(response.cookies[settings.SESSION_COOKIE_NAME].value, key)
        self.assertEqual(response.headers["Vary"], "Cookie")

    def test_session_update_error(self) -> None:
        def delete_session(request: HttpRequest) -> HttpResponse:
            request.session = SessionStore()
            request.session.save(must_create=True)
            request.session.delete()
            return HttpResponse()

        message = "The request's session was deleted before the request completed."
        with self.assertRaisesMessage(SessionInterrupted, message):
            self.respond(delete_session)
