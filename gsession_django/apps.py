from django.apps import AppConfig


class GSessionConfig(AppConfig):
    name = "gsession_django"
    verbose_name = "Session engines"

    def ready(self) -> None:
        from gsession_django import checks  # noqa: F401  (importing it registers the checks)
        from gsession_django.users import checks as checks_of_users  # noqa: F401  (likewise)
        from gsession_django.users import limits

        limits.watch()
