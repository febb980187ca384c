"""Runs a command on a terminal."""

import os
import pty
import subprocess
import termios
from collections.abc import Mapping, Sequence


def run_on_terminal(args: Sequence[str], environment: Mapping[str, str]) -> tuple[str, bytes]:
    """Run a command whose standard error is a terminal, and return its standard output and the terminal's input."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with subprocess.Popen(args, env=environment, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # on Linux a terminal ends so
            pass
        os.close(ours)
        assert process.stdout is not None
        return process.stdout.read(), shown
