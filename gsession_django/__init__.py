"""Django session engines on the Storage interface of GoFrame's gsession."""

from gsession_django import wiring
from gsession_django.core import engine
from gsession_django.core.session_map import SessionMap
from gsession_django.core.storage import Disabled, Storage, StorageUnavailable
from gsession_django.core.store import SessionStore

__all__ = ["Disabled", "SessionMap", "SessionStore", "Storage", "StorageUnavailable"]

engine.choose_engines(wiring.engine_class)
