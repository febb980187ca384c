"""Eight requests change one session at once: which changes survive on this engine, and which on Django's.

A run is eight requests. Each loads the session, waits until the others have loaded it, and then
changes and saves it, as overlapping slow views do.
"""

import secrets
import threading
from dataclasses import dataclass, field

from django.conf import settings
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.backends.file import SessionStore as DjangoFileStore
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_http_methods, require_POST, require_safe

REQUESTS = 8
PAUSE = 0.5
MAX_RUNS = 64

SITE = "site"
DJANGO = "django"
KEYS = "keys"
DICT = "dict"

SIDES = {
    SITE: settings.SESSION_ENGINE,
    DJANGO: "django.contrib.sessions.backends.file",
}
KINDS = {
    KEYS: "Each request sets a key of its own",
    DICT: "Each request adds an item to one dict",
}

COMPARISON_COOKIE = "comparison_sessionid"


class ComparisonStore(DjangoFileStore):
    """Django's file engine, with its files in a separate folder."""

    @classmethod
    def _get_storage_path(cls) -> str:
        settings.DEMO_COMPARISON_PATH.mkdir(mode=0o700, exist_ok=True)
        return str(settings.DEMO_COMPARISON_PATH)


class Gate:
    """Holds back the requests of a run until all of them have loaded the session."""

    def __init__(self) -> None:
        self._arrival = threading.Condition()
        self._missing = REQUESTS

    def wait(self) -> None:
        with self._arrival:
            self._missing -= 1
            self._arrival.notify_all()
            # A browser opens at most six connections to one server, and sends the other requests
            # only after replies. So a request waits for them no longer than a pause.
            while self._missing and self._arrival.wait(PAUSE):
                pass


@dataclass(slots=True)
class Run:
    side: str
    kind: str
    gate: Gate = field(default_factory=Gate)
    slots: set[int] = field(default_factory=lambda: set(range(REQUESTS)))


class Runs:
    """The unfinished runs in this process. A run ends when its last request has come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}

    def start(self, side: str, kind: str) -> str:
        run_id = secrets.token_urlsafe()
        with self._lock:
            self._runs[run_id] = Run(side, kind)
            if len(self._runs) > MAX_RUNS:
                # Drop the oldest: its visitor has probably left.
                del self._runs[next(iter(self._runs))]
        return run_id

    def enter(self, run_id: str, side: str, kind: str, slot: int) -> Gate:
        with self._lock:
            run = self._runs.get(run_id)
            if run is None or (run.side, run.kind) != (side, kind) or slot not in run.slots:
                raise Http404("this run does not exist, or has already had this request")
            run.slots.remove(slot)
            if not run.slots:
                del self._runs[run_id]
            return run.gate


RUNS = Runs()


@require_safe
@ensure_csrf_cookie
def page(request: HttpRequest) -> HttpResponse:
    context = {"sides": SIDES, "kinds": KINDS, "slots": range(REQUESTS)}
    return render(request, "demo/parallel.html", context)


@require_http_methods(["GET", "POST"])
def runs(request: HttpRequest, side: str, kind: str) -> HttpResponse:
    """POST starts a run. GET lists the requests of the last run whose changes survived."""
    if side not in SIDES or kind not in KINDS:
        raise Http404("this side or kind does not exist")
    session = open_session(request, side)
    if request.method == "GET":
        survived = [slot for slot in range(REQUESTS) if has_change(session, kind, slot)]
        return JsonResponse({"engine": SIDES[side], "requests": REQUESTS, "survived": survived})
    for slot in range(REQUESTS):
        session.pop(key_of(slot), None)
    session.pop("parallel_cart", None)
    run_id = session["parallel_run"] = RUNS.start(side, kind)
    response = JsonResponse({"run": run_id, "requests": REQUESTS}, status=201)
    close_session(session, side, response)
    return response


@require_POST
def change(request: HttpRequest, side: str, kind: str, run_id: str, slot: int) -> HttpResponse:
    """Make the change of one request of a run."""
    session = open_session(request, side)
    # Loads every key, also from a per-key storage.
    loaded = dict(session.items())
    if loaded.get("parallel_run") != run_id:
        raise Http404("this session has not started this run")
    RUNS.enter(run_id, side, kind, slot).wait()
    if kind == KEYS:
        session[key_of(slot)] = 1
    else:
        session.setdefault("parallel_cart", {})[item_of(slot)] = 1
    response = JsonResponse({"slot": slot})
    close_session(session, side, response)
    return response


def open_session(request: HttpRequest, side: str) -> SessionBase:
    if side == SITE:
        return request.session
    return ComparisonStore(request.COOKIES.get(COMPARISON_COOKIE))


def close_session(session: SessionBase, side: str, response: HttpResponse) -> None:
    """Save the comparison's session. SessionMiddleware saves the site's own."""
    if side == DJANGO:
        session.save()
        key = session.session_key or ""
        response.set_cookie(COMPARISON_COOKIE, key, httponly=True, samesite="Lax")


def has_change(session: SessionBase, kind: str, slot: int) -> bool:
    if kind == KEYS:
        return key_of(slot) in session
    return item_of(slot) in session.get("parallel_cart", {})


def key_of(slot: int) -> str:
    return f"parallel_{slot}"


def item_of(slot: int) -> str:
    return f"item_{slot}"
