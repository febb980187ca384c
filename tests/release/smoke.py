"""What tests.release runs where the package is installed: a visitor signs in and out on each engine.

``python smoke.py URL SERIALIZER``: the URL of a Redis server, and the `SESSION_SERIALIZER`.
"""

import sys
import tempfile
from importlib.metadata import distributions

import django
from django.conf import settings
from django.contrib.auth.views import LoginView, LogoutView
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path

ENGINES = [f"gsession_django.backends.{name}" for name in ("memory", "file", "database", "redis", "redis_hash")]
VISITOR = {"username": "ada", "password": "a password"}


def who(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username() or "nobody")


urlpatterns = [path("", who), path("sign-in/", LoginView.as_view()), path("sign-out/", LogoutView.as_view())]


def sign_in_and_out(engine: str) -> None:
    with override_settings(SESSION_ENGINE=engine):
        call_command("check", fail_level="WARNING")
        client = Client()
        for page, expected in (("/sign-in/", VISITOR["username"]), ("/sign-out/", "nobody")):
            client.post(page, VISITOR)
            found = client.get("/").content.decode()
            if found != expected:
                sys.exit(f"{engine}: the visitor is {found!r} after {page}, and should be {expected!r}")


def main() -> None:
    url, serializer = sys.argv[1:]
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
            CACHES={"default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": url}},
            SESSION_FILE_PATH=folder,
            SESSION_SERIALIZER=serializer,
            LOGIN_REDIRECT_URL="/",
            LOGOUT_REDIRECT_URL="/",
        )
        django.setup()
        call_command("migrate", verbosity=0)
        from django.contrib.auth.models import User  # there are no models before setup()

        User.objects.create_user(**VISITOR)
        for engine in ENGINES:
            sign_in_and_out(engine)
    print(*sorted(f"{found.name} {found.version}" for found in distributions()), sep=", ")


if __name__ == "__main__":
    main()
