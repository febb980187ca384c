"""The check of an installed package: a visitor signs in and out on each engine. tests.release runs it.

``python smoke.py URL EXTRA...``: the URL of a Redis server, and the installed extras of the package. At its end it
prints the versions of all installed packages.
"""

import sys
import tempfile
from importlib.metadata import distributions
from io import StringIO

import django
from django.conf import settings
from django.contrib.auth import authenticate, get_user_model, login, logout
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path

ENGINES = [f"gsession_django.backends.{name}" for name in ("memory", "file", "database", "redis", "redis_hash")]
JSON, TYPED = "django.contrib.sessions.serializers.JSONSerializer", "gsession_django.serializers.TypedSerializer"
VISITOR = {"username": "ada", "password": "a password"}


def who(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username() or "nobody")


def sign_in(request: HttpRequest) -> HttpResponse:
    login(request, authenticate(request, **VISITOR))
    return who(request)


def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return who(request)


urlpatterns = [path("", who), path("sign-in/", sign_in), path("sign-out/", sign_out)]


def set_up_opentelemetry() -> None:
    """Set up a meter provider that does nothing, as a site sets up its own."""
    from opentelemetry import metrics

    class Provider(metrics.NoOpMeterProvider):
        pass

    metrics.set_meter_provider(Provider())


def sign_in_and_out(engine: str) -> None:
    with override_settings(SESSION_ENGINE=engine):
        call_command("check", fail_level="WARNING", stdout=StringIO())
        client = Client()
        for page, expected in (("/sign-in/", "ada"), ("/", "ada"), ("/sign-out/", "nobody"), ("/", "nobody")):
            found = client.get(page).content.decode()
            if found != expected:
                sys.exit(f"{engine}: {page} saw the visitor {found!r}, not {expected!r}")


def read_a_user_agent() -> None:
    from gsession_django.users.agents import Agent, parsed

    found = parsed("Mozilla/5.0 (X11; Linux x86_64; rv:146.0) Gecko/20100101 Firefox/146.0")
    if found != Agent("Firefox 146", "Linux"):
        sys.exit(f"the user agent of Firefox on Linux was read as {found}")


def main() -> None:
    url, *extras = sys.argv[1:]
    if "otel" in extras:
        set_up_opentelemetry()
    if "pages" in extras:
        read_a_user_agent()
    with tempfile.TemporaryDirectory() as folder:
        settings.configure(
            SECRET_KEY="not a secret",
            ALLOWED_HOSTS=["testserver"],
            ROOT_URLCONF=__name__,
            INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "gsession_django"],
            MIDDLEWARE=[
                "gsession_django.middleware.SessionMiddleware",
                "django.contrib.auth.middleware.AuthenticationMiddleware",
            ],
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
            CACHES={
                "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
                "sessions": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": url},
            },
            SESSION_CACHE_ALIAS="sessions",
            SESSION_FILE_PATH=folder,
            SESSION_SERIALIZER=TYPED if "typed" in extras else JSON,
            SILENCED_SYSTEM_CHECKS=["gsession_django.W001"],  # the memory engine needs one process, and this is one
        )
        django.setup()
        call_command("migrate", verbosity=0)
        get_user_model().objects.create_user(**VISITOR)
        for engine in ENGINES:
            sign_in_and_out(engine)
    print("Signed in and out with", *sorted(f"{found.name}=={found.version}" for found in distributions()))


if __name__ == "__main__":
    main()
