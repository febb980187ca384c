from django.apps import AppConfig


class GSessionConfig(AppConfig):
    name = "gsession_django"
    verbose_name = "Session engines"

    def ready(self) -> None:
        from gsession_django import checks  # noqa: F401  (importing it registers the checks)
