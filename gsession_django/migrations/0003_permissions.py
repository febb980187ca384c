from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("gsession_django", "0002_users_and_locks")]
    operations = [
        migrations.AlterModelOptions(
            name="session",
            options={
                "permissions": [("view_session_data", "Can view what a session holds")],
                "verbose_name": "session",
                "verbose_name_plural": "sessions",
            },
        ),
    ]
