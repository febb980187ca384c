from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Creates the database of the test site and its demo user."

    def handle(self, *args: Any, **options: Any) -> None:
        call_command("migrate", interactive=False, verbosity=0)
        user, _ = User.objects.get_or_create(
            username=settings.DEMO_USER, defaults={"is_staff": True, "is_superuser": True}
        )
        # Setting the password again, even the same one, would sign everybody out.
        if not user.check_password(settings.DEMO_PASSWORD):
            user.set_password(settings.DEMO_PASSWORD)
            user.save()
        self.stdout.write(
            f"Sign in with the user name {settings.DEMO_USER!r} and the password {settings.DEMO_PASSWORD!r}."
        )
