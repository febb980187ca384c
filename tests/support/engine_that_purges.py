from gsession_django import SessionStore as BaseSessionStore
from tests.support.storages import CompleteStorage


class SessionStore(BaseSessionStore):
    storage_class = CompleteStorage
