"""Runs a server for the tests, and ends it when they end: `python guard.py FOLDER USER PROGRAM ARGUMENT...`.

Its standard input is a pipe that the tests hold. A byte on it ends the server by SIGKILL, with all processes that it
has started. So does the end of the pipe, which comes when the test process has ended, however that was; the server's
folder goes then too. It ends when the server has, and nothing of the server is left by then.
"""

import ctypes
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER, _IPC_RMID = 36, 0  # <linux/prctl.h>, <linux/ipc.h>


def family(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have, parents first."""
    found = [pid]
    for parent in found:
        with suppress(OSError):  # it has ended
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found[1:]


def send(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to those that have not ended meanwhile."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def identity(user: str) -> dict[str, Any]:
    """Return the arguments of ``Popen`` that let a program run as `user`; as the one who asks, if that is empty."""
    if not user:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def main() -> None:
    folder, user, *command = sys.argv[1:]
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what the server's processes leave behind is ours
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=folder, **identity(user))
    readable, _, _ = select.select([0, os.pidfd_open(server.pid)], [], [])
    over = 0 in readable and not os.read(0, 1)
    with suppress(ChildProcessError):
        while True:
            send(family(os.getpid()), signal.SIGKILL)
            os.wait()
    # PostgreSQL has a few bytes of shared memory, which outlive it if it is killed.
    for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
        _, segment, _, _, creator, _, attached, *_ = map(int, line.split())
        if creator == server.pid and not attached:
            libc.shmctl(segment, _IPC_RMID, None)
    if over:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
