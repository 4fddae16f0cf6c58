"""A training process, as torchrun starts it: `python -m longshort.training.worker --job FILE`."""

from __future__ import annotations

import ctypes
import os
import signal

from longshort import interruption

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    interruption.watch()
    end_with_the_launcher()
    # Slow to import, and a request to stop that comes meanwhile must count.
    from longshort.training import trainer

    trainer.main()


def end_with_the_launcher() -> None:
    """torchrun gives each process a session of its own: one that outlived a killed torchrun would write on, unowned."""
    launcher = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it ended meanwhile
        os._exit(1)


if __name__ == "__main__":
    main()
