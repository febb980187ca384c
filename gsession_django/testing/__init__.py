"""StorageContract: the tests that every storage must pass.

A storage author subclasses it, together with a test case of Django's, in a project of their own::

    from django.test import SimpleTestCase  # TransactionTestCase for a storage in the database
    from gsession_django.testing import StorageContract
    from mysite.sessions import SessionStore

    class MyStorageTests(StorageContract, SimpleTestCase):
        store_class = SessionStore

A storage in SQLite has to be tested in a file (``TEST["NAME"]`` in ``DATABASES``): of a database in memory, which is
Django's default for tests, threads lock tables for each other without waiting.

It runs under ``manage.py test`` and under pytest, and tests whichever methods the storage has; those that it lacks, and
the tests of them, are not there. Nor are the tests of an outage, unless the author overrides ``outage()``.
"""

from gsession_django.testing.extensions import Extensions
from gsession_django.testing.locking import Locking
from gsession_django.testing.purging import Purging
from gsession_django.testing.reading import Pairs, Reading
from gsession_django.testing.sharing import Sharing
from gsession_django.testing.ttl import TimeToLive
from gsession_django.testing.twins import Twins
from gsession_django.testing.users import Users
from gsession_django.testing.visitors import Visitors

__all__ = ["StorageContract"]


class StorageContract(Reading, Pairs, TimeToLive, Extensions, Users, Locking, Purging, Visitors, Sharing, Twins):
    """Mix it into a test case, before it, and say which engine is tested.

    Attributes:
        store_class: the engine's SessionStore.

    Two methods are there to be overridden: :meth:`advance`, where time can be moved and need not be waited for, and
    :meth:`outage`, without which there are no tests of an outage.
    """
