"""A command that keeps what it sets free below it, and buries its dead, as the init of a machine of its own would.

slurmd lets go of the steps that it starts; below this process they stay found, and with it they can be ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

SET_PARENT_DEATH_SIGNAL, SET_CHILD_SUBREAPER = 1, 36

if __name__ == "__main__":
    control = ctypes.CDLL(None).prctl
    control(SET_CHILD_SUBREAPER, 1)
    daemon = os.fork()
    if daemon == 0:
        control(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        os.execvp(sys.argv[1], sys.argv[1:])
    while (ended := os.wait())[0] != daemon:
        pass
    sys.exit(os.waitstatus_to_exitcode(ended[1]))
