"""Runs a server for the tests, and ends it with them: `python guard.py FOLDER USER PROGRAM ARGUMENT...`.

Its standard input is a pipe that the tests hold. When a byte arrives, the guard kills the server and all processes that
the server has started. At the end of the pipe, which comes when the test process ends for any reason, it does the same
and removes the server's folder. The guard ends after the server, and then nothing of the server is left.
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
    """Return all descendants of a process, parents first."""
    found = [pid]
    for parent in found:
        with suppress(OSError):  # it has ended
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found[1:]


def send(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to those processes that still run."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def identity(user: str) -> dict[str, Any]:
    """Return the arguments of ``Popen`` that run a program as `user`; as the current user if it is empty."""
    if not user:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def main() -> None:
    folder, user, *command = sys.argv[1:]
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # adopt the orphans of the server's processes
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=folder, **identity(user))
    readable, _, _ = select.select([0, os.pidfd_open(server.pid)], [], [])
    over = 0 in readable and not os.read(0, 1)
    with suppress(ChildProcessError):
        while True:
            send(family(os.getpid()), signal.SIGKILL)
            os.wait()
    # A killed PostgreSQL leaves a few bytes of shared memory.
    for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
        _, segment, _, _, creator, _, attached, *_ = map(int, line.split())
        if creator == server.pid and not attached:
            libc.shmctl(segment, _IPC_RMID, None)
    if over:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
