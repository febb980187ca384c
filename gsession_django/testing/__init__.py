"""StorageContract: the tests that every storage must pass.

The author of a storage subclasses it in their own project, together with one of Django's test cases::

    from django.test import SimpleTestCase  # TransactionTestCase for a storage in the database
    from gsession_django.testing import StorageContract
    from mysite.sessions import SessionStore

    class MyStorageTests(StorageContract, SimpleTestCase):
        store_class = SessionStore

Test a storage in SQLite with a database file (``TEST["NAME"]`` in ``DATABASES``). Django's default for tests is a
database in memory, where a thread that meets a locked table fails at once.

The tests run under ``manage.py test`` and under pytest. The class has tests only for methods that the storage has, and
tests of an outage only when the author overrides ``outage()``.
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
    """Name it before a test case among the bases of a class, and set the engine to test.

    Attributes:
        store_class: the engine's SessionStore.

    Override :meth:`advance` if the test can move the storage's clock, and then nothing waits. Override :meth:`outage`
    to get the tests of an outage.
    """
