"""Which methods of the Storage interface a storage class has, and which native twins."""

from typing import Final

from gsession_django.core.storage import Storage

# The methods that a request calls. A storage is async if it has a native twin of each of them that it overrides.
METHODS: Final = (
    *("new", "get", "get_map", "get_size", "set", "set_map", "remove", "remove_all", "get_session", "set_session"),
    *("update_ttl", "exists", "create", "apply", "move"),
    *("sessions_of", "add_to_user", "remove_from_user", "lock", "unlock"),
)
COMMANDS: Final = ("purge", "ids")
TWINS: Final = frozenset(f"a{name}" for name in METHODS)
"""The names of all native twins."""


def abilities(storage_class: type[Storage]) -> set[str]:
    """Return the names of the methods of the Storage interface that `storage_class` has."""
    return {name for name in (*METHODS, *COMMANDS) if getattr(storage_class, name) is not getattr(Storage, name)}


def missing_abilities(able: set[str]) -> list[str]:
    """Return the methods that a storage lacks to hold a session, if it has those in `able`."""
    missing = [name for name in ("get_session", "remove_all") if name not in able]
    writes = able & {"set_session", "set_map"} or able >= {"create", "apply"}
    return missing if writes else [*missing, "set_session (or set_map, or create and apply)"]


def missing_twins(storage_class: type[Storage]) -> list[str]:
    """Return the native twins that `storage_class` lacks to be async."""
    wanted = [f"a{name}" for name in METHODS if name in abilities(storage_class)]
    return [name for name in wanted if not hasattr(storage_class, name)]


def bypassed_twins(storage_class: type[Storage]) -> dict[str, type]:
    """Return the methods that `storage_class` overrides without their native twins, each with the class of the twin.

    Async requests would still call that twin, and so bypass the override.
    """
    bypassed = {}
    bases = storage_class.__mro__
    for name in sorted(abilities(storage_class) - set(COMMANDS)):
        method_class, twin_class = (next((b for b in bases if n in vars(b)), None) for n in (name, f"a{name}"))
        if method_class is None or twin_class is None or bases.index(method_class) >= bases.index(twin_class):
            continue
        # A twin without a method beside it, as in a mixin, is inherited on purpose.
        if getattr(twin_class, name, None) not in (None, getattr(Storage, name), getattr(storage_class, name)):
            bypassed[name] = twin_class
    return bypassed
