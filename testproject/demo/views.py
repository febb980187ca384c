"""The shop, signing in, and a look into the session."""

import json
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from math import ceil
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import LoginView
from django.core.exceptions import BadRequest
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.text import Truncator
from django.utils.timesince import timeuntil
from django.utils.timezone import now
from django.views.decorators.http import require_POST, require_safe

from gsession_django import SessionStore
from testproject.demo.catalog import BY_SKU, PRODUCTS, Product

MAX_QUANTITY = 99


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    return render(request, "demo/home.html")


class SignIn(LoginView):
    redirect_authenticated_user = True

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        user = {"demo_user": settings.DEMO_USER, "demo_password": settings.DEMO_PASSWORD}
        return super().get_context_data(**user, **kwargs)

    def form_valid(self, form: AuthenticationForm) -> HttpResponse:
        messages.success(self.request, f"Welcome, {form.get_user().get_username()}.")
        return super().form_valid(form)


@require_safe
def cart(request: HttpRequest) -> HttpResponse:
    quantities = request.session.get("cart", {})
    lines = [
        {"product": product, "quantity": quantity, "price": quantity * product.price}
        for product in PRODUCTS
        if (quantity := quantities.get(product.sku))
    ]
    context = {
        "lines": lines,
        "total": sum((line["price"] for line in lines), Decimal()),
        "products": PRODUCTS,
        "max_quantity": MAX_QUANTITY,
        "saves_in_place": isinstance(request.session, SessionStore),
    }
    return render(request, "demo/cart.html", context)


# The views change the cart in place and never set request.session.modified: the engines of
# gsession_django notice the change themselves.


@require_POST
def cart_add(request: HttpRequest) -> HttpResponse:
    product = posted_product(request)
    cart = request.session.setdefault("cart", {})
    cart[product.sku] = min(cart.get(product.sku, 0) + 1, MAX_QUANTITY)
    messages.success(request, f"{product.name} is in the cart.")
    return redirect("cart")


@require_POST
def cart_change(request: HttpRequest) -> HttpResponse:
    product = posted_product(request)
    quantity = posted_quantity(request)
    cart = request.session.get("cart", {})
    if product.sku not in cart:
        raise Http404("this product is not in the cart")
    if quantity:
        cart[product.sku] = quantity
        messages.success(request, f"{product.name}: now {quantity}.")
    else:
        del cart[product.sku]
        messages.success(request, f"{product.name} is out of the cart.")
    return redirect("cart")


@require_POST
def cart_remove(request: HttpRequest) -> HttpResponse:
    product = posted_product(request)
    request.session.get("cart", {}).pop(product.sku, None)
    messages.success(request, f"{product.name} is out of the cart.")
    return redirect("cart")


@require_POST
def cart_empty(request: HttpRequest) -> HttpResponse:
    request.session.pop("cart", None)
    messages.success(request, "The cart is empty.")
    return redirect("cart")


def posted_product(request: HttpRequest) -> Product:
    if "sku" not in request.POST:
        raise BadRequest("sku is missing")
    try:
        return BY_SKU[request.POST["sku"]]
    except KeyError:
        raise Http404("no such product") from None


def posted_quantity(request: HttpRequest) -> int:
    try:
        quantity = int(request.POST.get("quantity", ""))
    except ValueError:
        raise BadRequest("quantity is not a number") from None
    if not 0 <= quantity <= MAX_QUANTITY:
        raise BadRequest(f"quantity is not between 0 and {MAX_QUANTITY}")
    return quantity


@require_safe
def session(request: HttpRequest) -> HttpResponse:
    session = request.session
    context: dict[str, Any] = {
        "values": short_values(dict(session.items())),
        "stored": session.session_key is not None,
    }
    if isinstance(session, SessionStore):
        context |= {
            "has_session_id": True,
            "session_id": session.session_id,
            "ttl_left": session.ttl_left,
            "ends_in": in_words(session.ttl_left),
        }
    return render(request, "demo/session.html", context)


def in_words(seconds: float | None) -> str:
    if seconds is None:
        return ""
    start = now()
    return timeuntil(start + timedelta(seconds=ceil(seconds)), start)


def short_values(values: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: Truncator(json.dumps(value, default=repr, ensure_ascii=False)).chars(80)
        for key, value in sorted(values.items())
    }
