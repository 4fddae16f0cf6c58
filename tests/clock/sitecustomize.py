"""First on PYTHONPATH, it sets the clock of all Python on the node n2 three minutes ahead; not the file system's.

SLURM starts jobs with the environment of sbatch, so a slurmd whose clock is wrong would not pass that on.
"""

import datetime
import os
import sys
import time

AHEAD = 180.0

if os.environ.get("SLURMD_NODENAME") == "n2":
    right_time, Right = time.time, datetime.datetime

    class AnyMoment(type):
        """Moments that were made by C code are moments, too."""

        def __instancecheck__(cls, thing):
            return isinstance(thing, Right)

    class Ahead(Right, metaclass=AnyMoment):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls):
            return cls.utcfromtimestamp(time.time())

    Ahead.__module__, Ahead.__qualname__ = "datetime", "datetime"  # as the other nodes know it
    time.time = lambda: right_time() + AHEAD
    # Only torch's launcher asks it for the time of day; in others, libraries written in C would crash on a subclass.
    if "torch.distributed.run" in sys.orig_argv:
        datetime.datetime = Ahead
