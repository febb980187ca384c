import django.db.models
from django.db import migrations

import gsession_django.models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Session",
            fields=[
                ("id", gsession_django.models.SessionIdField(max_length=128, primary_key=True, serialize=False)),
                ("data", django.db.models.BinaryField()),
                ("version", django.db.models.BigIntegerField()),
                ("expires", django.db.models.BigIntegerField(db_index=True)),
            ],
        ),
    ]
