from gsession_django import SessionStore as BaseSessionStore
from tests.storages import WholeMapStorage


class SessionStore(BaseSessionStore):
    storage_class = WholeMapStorage
