from gsession_django import SessionStore as BaseSessionStore
from tests.support.storages import WholeMapStorage


class SessionStore(BaseSessionStore):
    storage_class = WholeMapStorage
