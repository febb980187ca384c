"""Django session engines on the Storage interface of GoFrame's gsession."""

from gsession_django import engine, wiring
from gsession_django.session_map import SessionMap
from gsession_django.storage import Disabled, Storage, StorageUnavailable
from gsession_django.store import SessionStore

__all__ = ["Disabled", "SessionMap", "SessionStore", "Storage", "StorageUnavailable"]

engine.choose_engines(wiring.engine_class)
