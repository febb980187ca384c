from django.db import migrations, models

import gsession_django.models


class Migration(migrations.Migration):
    dependencies = [("gsession_django", "0001_initial")]
    operations = [
        migrations.AddField(
            model_name="session",
            name="user_id",
            field=gsession_django.models.SessionIdField(db_index=True, max_length=128, null=True),
        ),
        migrations.CreateModel(
            name="SessionLock",
            fields=[
                ("id", gsession_django.models.SessionIdField(max_length=128, primary_key=True, serialize=False)),
                ("token", gsession_django.models.SessionIdField(max_length=128)),
                ("expires", models.BigIntegerField()),
            ],
        ),
    ]
