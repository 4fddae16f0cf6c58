"""A command that keeps what it sets free below it, and buries its dead, as the init of a machine of its own would.

slurmd lets go of the steps that it starts; below this process they stay found, and with it they can be ended.
"""

from __future__ import annotations

import ctypes
import os
import sys

SET_CHILD_SUBREAPER = 36

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1)
    daemon = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
    while (ended := os.wait())[0] != daemon:
        pass
    sys.exit(os.waitstatus_to_exitcode(ended[1]))
