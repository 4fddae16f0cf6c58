"""A training process, as torchrun or the stage starts it: `python -m longshort.training.worker --job FILE`."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from longshort.errors import Exit, LongshortError, UserError, in_a_line
from longshort.identity.code import files_now
from longshort.jobs import interruption
from longshort.records.publish import read_json

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
# The variable that names the file for the last words of the process that fails first.
LAST_WORDS = "LONGSHORT_LAST_WORDS"


@in_a_line()
def main() -> None:
    interruption.watch()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # without torchrun it leads the group that owns the folder, and may live on
        end_with_torchrun()
    try:
        # Slow to import, and a request to stop that comes meanwhile must count. What is imported stays: a search for
        # garbage each time that there is much more of it takes a tenth of the time, and finds none.
        gc.disable()
        from longshort.training import trainer, unpickling

        import_as_checked(read_json(Path(sys.argv[sys.argv.index("--job") + 1]))["source"])
        gc.enable()
        unpickling.allow_the_states_of_deepspeed()
        trainer.main()
    except BaseException as error:
        plain = isinstance(error, (SystemExit, LongshortError))
        leave_last_words(str(error) if plain else f"{type(error).__name__}: {error}")
        raise


def import_as_checked(source: dict[str, str]) -> None:
    """Imports all that the training's code consists of before it begins: a job may wait for its folder, resume, or load
    a large base long after its code was looked at.

    Args:
        source: module -> hash of its file when the job looked at its code.

    Raises:
        UserError: a file is another one now.
    """
    for module in source:
        import_module(module)
    now = files_now(source)
    if changed := [module for module in source if now.get(module) != source[module]]:
        raise UserError(f"{', '.join(changed)} changed after this job began; run snakemake again, which plans anew")


def leave_last_words(words: str) -> None:
    """For the launcher, which torchrun tells no more than an exit code; on another node there is no such file."""
    with suppress(KeyError, OSError), Path(os.environ[LAST_WORDS]).open("x", encoding="utf-8") as file:
        file.write(words)


def end_with_torchrun() -> None:
    """torchrun gives each process a session of its own: one that outlived a killed torchrun would write on, unowned."""
    launcher = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it ended meanwhile
        os._exit(Exit.FAILED)


if __name__ == "__main__":
    main()
