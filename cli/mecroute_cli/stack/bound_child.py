"""Runs a program that the kernel ends when its parent is gone.

Started as a script: `python -I -S bound_child.py PARENT_PID PROGRAM ARGUMENT…`. A script and not
`preexec_fn`, which can deadlock in a process with threads. Linux only: elsewhere the program is run
without that bond, and only an orderly end of the parent ends it.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def _run() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the bond was made
            sys.exit(1)
    os.execv(program[0], program)  # noqa: S606 - there is no shell on purpose


if __name__ == "__main__":
    _run()
