from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class GSessionConfig(AppConfig):
    name = "gsession_django"
    verbose_name = _("Session engines")

    def ready(self) -> None:
        from gsession_django import checks, user_checks  # noqa: F401  (importing them registers the checks)
        from gsession_django.users import limits

        limits.watch()
