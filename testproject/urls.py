from django.conf import settings
from django.contrib import admin
from django.contrib.auth.views import LogoutView
from django.contrib.staticfiles.views import serve
from django.templatetags.static import static
from django.urls import include, path
from django.views.generic import RedirectView

from testproject.demo import parallel, views

urlpatterns = [
    path("", views.home, name="home"),
    path("sign-in/", views.SignIn.as_view(), name="login"),
    path("sign-out/", LogoutView.as_view(), name="logout"),
    path("cart/", views.cart, name="cart"),
    path("cart/add/", views.cart_add, name="cart-add"),
    path("cart/change/", views.cart_change, name="cart-change"),
    path("cart/remove/", views.cart_remove, name="cart-remove"),
    path("cart/empty/", views.cart_empty, name="cart-empty"),
    path("session/", views.session, name="session"),
    path("your-sessions/", include("gsession_django.urls")),
    path("parallel/", parallel.page, name="parallel"),
    path("parallel/<str:side>/<str:kind>/", parallel.runs, name="parallel-runs"),
    path("parallel/<str:side>/<str:kind>/<str:run_id>/<int:slot>/", parallel.change),
    path("favicon.ico", RedirectView.as_view(url=static("demo/icon.svg"))),
    path("admin/", admin.site.urls),
]

if not settings.DEBUG:
    # With DEBUG off, runserver does not serve static files.
    urlpatterns.append(path("static/<path:path>", serve, {"insecure": True}))
