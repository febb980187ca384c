"""The sessions in Django's admin, on whatever engine ``SESSION_ENGINE`` names. ``docs/users.md`` has the permissions.

It shows no session key and no session id: a session is named by the handle that it has in a list.
"""

from typing import Any, Final, cast

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth import get_permission_codename, get_user_model, logout
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ImproperlyConfigured, PermissionDenied, ValidationError
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.http import urlencode
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_POST, require_safe

from gsession_django.core.conf import conf
from gsession_django.core.engine import engine_module, engine_of
from gsession_django.core.storage import StorageUnavailable
from gsession_django.core.store import store_in
from gsession_django.models import Session
from gsession_django.users.content import content_of
from gsession_django.users.listing import UserSession, end_session, end_sessions, sessions_of
from gsession_django.users.views import answering_outages
from gsession_django.users.words import Described

USERS: Final = 20
"""Users that a search shows at most."""
TEXT_LENGTH: Final = 255
"""Characters that a user's name or id has at most."""
VALUE_LENGTH: Final = 500
"""Characters that are shown of a value of a session."""


@admin.register(Session)
class SessionAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Finds a user's sessions and ends them. It stands in for the pages of the model, which is one engine's table."""

    # What an administrator may do.

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _may(request, get_permission_codename("view", self.opts))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_view_permission(request) and super().has_delete_permission(request, obj)

    def has_view_data_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request) and _may(request, "view_session_data")

    # Where it is.

    def get_urls(self) -> list[URLPattern]:
        views = {"": self.sessions, "end/": self.end, "data/": self.data, "count/": self.count}
        names = {"": "changelist"}
        return [
            path(route, self.admin_site.admin_view(view), name=self._name(names.get(route, route.strip("/"))))
            for route, view in views.items()
        ]

    def _name(self, view: str) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{view}"

    def _url(self, view: str, **query: str) -> str:
        url = reverse(f"admin:{self._name(view)}", current_app=self.admin_site.name)
        return f"{url}?{urlencode(query)}" if query else url

    def _page(self, request: HttpRequest, template: str, title: str, **context: Any) -> HttpResponse:
        request.current_app = self.admin_site.name
        shared = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "may_end": self.has_delete_permission(request),
            "may_view_data": self.has_view_data_permission(request),
        }
        return TemplateResponse(request, f"admin/gsession_django/session/{template}.html", shared | context)

    def _require(self, allowed: bool) -> None:
        if not allowed:
            raise PermissionDenied

    # The pages.

    @method_decorator([require_safe, answering_outages])
    def sessions(self, request: HttpRequest) -> HttpResponse:
        """Search for users, and list the sessions of one."""
        self._require(self.has_view_permission(request))
        query, user_id = _text(request.GET, "q"), _text(request.GET, "user")
        users = _found(query) if query else {}
        if len(users) == 1:
            user_id = next(iter(users))
        elif query and not users and _listed(query)[0]:  # of somebody who is not in the database any more
            user_id = query
        context: dict[str, Any] = {"query": query, "users": users, "user_id": user_id}
        if user_id:
            found, context["unable"] = _listed(user_id, request.session)
            context |= {"user_name": _name_of(user_id), "sessions": [Described(each) for each in found]}
        return self._page(request, "sessions", _("Sessions"), **context)

    @method_decorator([require_POST, answering_outages])
    def end(self, request: HttpRequest) -> HttpResponse:
        """Ask whether to end sessions of a user, and once that is confirmed end them."""
        self._require(self.has_view_permission(request) and self.has_delete_permission(request))
        user_id, handles = _text(request.POST, "user"), request.POST.getlist("session")
        everything = "all" in request.POST
        listed = _listed(user_id, request.session)[0]
        chosen = listed if everything else [each for each in listed if each.handle in handles]
        if not chosen:
            messages.warning(request, _("No session was chosen, or it has already ended."), fail_silently=True)
            return redirect(self._url("changelist", user=user_id))
        if "confirmed" not in request.POST:
            context = {"user_id": user_id, "user_name": _name_of(user_id), "everything": everything}
            return self._page(
                request, "end", _("Are you sure?"), sessions=[Described(each) for each in chosen], **context
            )
        count = end_sessions(user_id) if everything else _end(chosen)
        told = ngettext("Ended %(count)d session.", "Ended %(count)d sessions.", count) % {"count": count}
        self._log(request, user_id, told)
        if any(each.is_current for each in chosen):
            logout(request)
        messages.success(request, told, fail_silently=True)
        return redirect(self._url("changelist", user=user_id))

    @method_decorator([require_safe, answering_outages])
    def data(self, request: HttpRequest) -> HttpResponse:
        """Show what a session holds."""
        self._require(self.has_view_data_permission(request))
        user_id, handle = _text(request.GET, "user"), request.GET.get("session", "")
        session = next((each for each in _listed(user_id, request.session)[0] if each.handle == handle), None)
        pairs = None if session is None else content_of(session)
        if session is None or pairs is None:
            messages.warning(request, _("That session has already ended."), fail_silently=True)
            return redirect(self._url("changelist", user=user_id))
        shown = {key: Truncator(repr(value)).chars(VALUE_LENGTH) for key, value in sorted(pairs.items())}
        context = {"user_id": user_id, "user_name": _name_of(user_id), "session": Described(session)}
        return self._page(request, "data", _("What the session holds"), pairs=shown, **context)

    @method_decorator([require_safe, answering_outages])
    def count(self, request: HttpRequest) -> HttpResponse:
        """Count the live sessions of each engine. It walks through all of them, and so has a page of its own."""
        self._require(self.has_view_permission(request))
        names = dict.fromkeys([settings.SESSION_ENGINE, *conf().engines, *filter(None, [conf().fallback_engine])])
        return self._page(request, "count", _("Live sessions"), counts={name: _count(name) for name in names})

    def _log(self, request: HttpRequest, user_id: str, message: str) -> None:
        """Log to the history of the user whose sessions were ended."""
        LogEntry.objects.create(
            user_id=cast(Any, request.user).pk,
            content_type=ContentType.objects.get_for_model(get_user_model()),
            object_id=user_id,
            object_repr=_name_of(user_id)[:200],
            action_flag=CHANGE,
            change_message=message,
        )


def _text(fields: QueryDict, name: str) -> str:
    """Return what was typed, without what no user's name or id can have: a database may not take it."""
    return fields.get(name, "").replace("\0", "").strip()[:TEXT_LENGTH]


def _may(request: HttpRequest, permission: str) -> bool:
    return cast(Any, request.user).has_perm(f"{Session._meta.app_label}.{permission}")  # type: ignore[no-any-return]


def _found(query: str) -> dict[str, str]:
    """Return the users whose name has `query` in it, or whose id it is: names by id."""
    users, pk = get_user_model()._default_manager, get_user_model()._meta.pk
    name = get_user_model().USERNAME_FIELD
    found: list[Model] = list(users.filter(**{f"{name}__icontains": query}).order_by(name)[:USERS])
    if (user := _user(query)) is not None:
        found.insert(0, user)
    return {pk.value_to_string(user): cast(Any, user).get_username() for user in found}


def _user(user_id: str) -> Model | None:
    users, pk = get_user_model()._default_manager, get_user_model()._meta.pk
    try:
        return users.filter(pk=pk.to_python(user_id)).first()
    except (ValidationError, ValueError, OverflowError):
        return None


def _name_of(user_id: str) -> str:
    user = _user(user_id)
    return _("user %(id)s, who does not exist") % {"id": user_id} if user is None else cast(Any, user).get_username()


def _listed(user_id: str, current: Any = None) -> tuple[list[UserSession], str]:
    """Return the sessions of a user, or none and why the engine cannot list them."""
    try:
        return sessions_of(user_id, current), ""
    except (NotImplementedError, ImproperlyConfigured) as error:
        return [], str(error)


def _end(sessions: list[UserSession]) -> int:
    for session in sessions:
        end_session(session)
    return len(sessions)


def _count(engine: str) -> int | str:
    """Return the number of live sessions, or why nobody knows."""
    try:
        if (store := store_in(engine_module(engine))) is None:
            return _("This engine is not part of gsession_django. Its sessions cannot be counted here.")
        if "ids" not in engine_of(store).able:
            return _("This engine cannot list its sessions, and so cannot count them.")
        return sum(1 for _id in engine_of(store).storage.ids())
    except StorageUnavailable:
        return _("The storage does not answer.")
    except ImproperlyConfigured as error:
        return str(error)
