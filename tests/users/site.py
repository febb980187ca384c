"""A site with the pages "Your sessions" and the admin, for tests of both, and the browsers of its users."""

from typing import Any, Self

from django.conf import settings
from django.contrib.auth import get_user_model
from django.test import Client

from gsession_django.users import UserSession, sessions_of

ENGINE = "gsession_django.backends.memory"
SETTINGS: dict[str, Any] = {
    "SESSION_ENGINE": ENGINE,
    "GSESSION": {"RECORD_CLIENT": True},
    "ROOT_URLCONF": "tests.users.site_urls",
    "LOGIN_URL": "/sign-in/",
    "USE_I18N": True,
    "LANGUAGES": [("en", "English"), ("zh-hans", "Chinese")],
    "STATIC_URL": "static/",
    "INSTALLED_APPS": [
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "gsession_django",
    ],
    "MIDDLEWARE": [
        "gsession_django.middleware.SessionMiddleware",
        "django.middleware.locale.LocaleMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ],
            },
        }
    ],
}

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:146.0) Gecko/20100101 Firefox/146.0"
SAFARI = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 "
    "Mobile/15E148 Safari/604.1"
)
SECRET = "what the cart holds"


class Device:
    """A browser, on which users sign in."""

    def __init__(self, user_agent: str = FIREFOX, address: str = "192.0.2.1", csrf: bool = False) -> None:
        self.client = Client(enforce_csrf_checks=csrf, headers={"user-agent": user_agent}, REMOTE_ADDR=address)

    def signed_in(self, user: str = "ada") -> Self:
        assert self.client.get("/sign-in/", {"user": user}).status_code == 200
        return self

    @property
    def user(self) -> str:
        """Who is signed in, as the site sees it."""
        return self.client.get("/").content.decode()

    @property
    def key(self) -> str:
        cookie = self.client.cookies.get(settings.SESSION_COOKIE_NAME)
        return "" if cookie is None else str(cookie.value)

    @property
    def session(self) -> UserSession:
        """What the site lists of the session on this device."""
        user = get_user_model()._default_manager.get_by_natural_key(self.user)
        return next(each for each in sessions_of(user, self.client.session) if each.is_current)

    def page(self, url: str, **query: str) -> str:
        response = self.client.get(url, query)
        assert response.status_code == 200, response.status_code
        return response.content.decode()

    def post(self, url: str, **fields: Any) -> str:
        """Send a form, and return the page that it leads to."""
        response = self.client.post(url, fields, follow=True)
        assert response.status_code == 200, response.status_code
        return response.content.decode()
