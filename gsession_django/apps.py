from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class GSessionConfig(AppConfig):
    name = "gsession_django"
    verbose_name = _("Session engines")

    def ready(self) -> None:
        from gsession_django import checks  # noqa: F401  (importing it registers the checks)
