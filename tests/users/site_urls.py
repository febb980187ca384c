"""The pages of the site, which can be imported once the admin is installed."""

from django.contrib import admin
from django.contrib.auth import get_user_model, login, logout
from django.http import HttpRequest, HttpResponse
from django.urls import include, path

from tests.users.site import SECRET


def sign_in(request: HttpRequest) -> HttpResponse:
    if "user" in request.GET:
        login(request, get_user_model()._default_manager.get_by_natural_key(request.GET["user"]))
        request.session["cart"] = SECRET
        request.session["api_token"] = SECRET
    return HttpResponse("signed in")


def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return HttpResponse("signed out")


def who(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username() or "nobody")


urlpatterns = [
    path("", who),
    path("sign-in/", sign_in),
    path("sign-out/", sign_out),
    path("sessions/", include("gsession_django.urls")),
    path("admin/", admin.site.urls),
]
