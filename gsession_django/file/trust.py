"""Who can write to a folder, beside this process's user."""

import os
import stat


def takes_files_of_others(status: os.stat_result) -> bool:
    """Return whether others can make files in a folder."""
    return bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def open_to(status: os.stat_result, runs_as: int) -> str | None:
    """Return who else can remove and replace what is in a folder, as a clause; ``None`` if only root can.

    Args:
        status: the folder's. In one with a sticky bit, others can only make files that are not there yet.
        runs_as: the id of this process's user.
    """
    if status.st_uid not in (0, runs_as):
        return f"it belongs to the user {status.st_uid}, and this process runs as the user {runs_as}"
    if takes_files_of_others(status) and not status.st_mode & stat.S_ISVTX:
        return f"others can write to it, as its mode is {stat.S_IMODE(status.st_mode):o}"
    return None
