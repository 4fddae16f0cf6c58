"""What DeepSpeed compiles, or finds compiled, when two processes of a training meet."""

from __future__ import annotations

import fcntl
import os
from typing import Any

from torch.utils import cpp_extension


class Lock:
    """In place of torch's lock on the folder of an extension, a file that outlives a process that is killed while it
    loads: all later ones would wait for ever."""

    def __init__(self, path: str, *_: Any, **__: Any) -> None:
        self._file = os.open(f"{path}.flock", os.O_CREAT | os.O_RDWR)

    def try_acquire(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks: what is compiled already is only loaded, which needs none
            pass
        return True

    def wait(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.release()

    def release(self) -> None:
        os.close(self._file)


def lock_as_long_as_processes_live() -> None:
    cpp_extension.FileBaton = Lock  # type: ignore[misc, assignment]
