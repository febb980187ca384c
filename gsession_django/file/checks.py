"""System checks of the file engine: its folder."""

import os
from collections.abc import Iterator
from typing import Any

from django.core.checks import CheckMessage, Error

from gsession_django.file.trust import open_to


def check_path(path: Any) -> Iterator[CheckMessage]:
    """Check that ``SESSION_FILE_PATH`` is a folder, and that nobody but the site's user can write to it."""
    if path is None:
        return
    if not os.path.isdir(path):
        yield Error(
            f"SESSION_FILE_PATH = {os.fspath(path)!r}: this folder does not exist.",
            hint="Create it, accessible only to the user that the site runs as, or mount its file system.",
            id="gsession_django.E008",
        )
        return
    if os.name != "posix":
        return
    status = os.stat(path)
    # Whoever runs commands as root may run the site as the user who owns the folder.
    if reason := open_to(status, os.geteuid() or status.st_uid):
        yield Error(
            f"SESSION_FILE_PATH = {os.fspath(path)!r} is open to others: {reason}.",
            hint="Give the folder to the user that the site runs as (chown), and take the right to write from all "
            "others (chmod 700). In a volume that many can write to, make a folder for this user alone.",
            id="gsession_django.E034",
        )
