"""A `python` that starts with what is slow to import already there: each call is a fork of one process that has it.

Tests start trainings, evaluations and engines by the hundred, and each would spend seconds on importing torch,
transformers, DeepSpeed and Snakemake. Only libraries are imported ahead: modules of ours come from the PYTHONPATH of
the call, so that each test runs its own copy of the source. Working folder, environment, arguments, standard streams,
exit code and signals are those of the caller.

What it is not for: the process is no child of its caller, SIGKILL does not reach it, and it is in the server's mount
namespace. Tests of kills, disks, clocks, launches and installations take `sys.executable`.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import psutil
from filelock import FileLock

LIBRARIES = """
torch torch.distributed.run torch.utils.data transformers transformers.trainer transformers.modeling_utils
transformers.models.auto.modeling_auto transformers.models.auto.tokenization_auto
transformers.models.llama.modeling_llama transformers.generation accelerate deepspeed peft safetensors.torch datasets
pandas pyarrow.parquet matplotlib.pyplot scipy.optimize scipy.stats rouge lm_eval psutil pydantic typer rich.live
snakemake.cli snakemake.workflow snakemake_executor_plugin_slurm
""".split()

# Isolated and without site-packages: it starts in a few milliseconds.
SHIM = """#!{python} -IS
import json, os, signal, socket, sys

arguments = sys.argv[1:]
if arguments[:1] == ["-u"]:  # as torchrun starts its processes
    os.environ["PYTHONUNBUFFERED"] = "1"
    arguments = arguments[1:]
if arguments[:1] not in (["-m"], ["-c"]):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
passed_on = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
link = socket.socket(socket.AF_UNIX)
home = os.open({home!r}, os.O_PATH)  # the path of a socket has 107 bytes at most
link.connect(f"/proc/self/fd/{{home}}/socket")
os.close(home)
asked = json.dumps(dict(arguments=arguments, folder=os.getcwd(), environment=dict(os.environ))).encode()
socket.send_fds(link, [len(asked).to_bytes(4, "big")], [0, 1, 2])
link.sendall(asked)
answers = link.makefile()
child = int(answers.readline())
for number in passed_on:
    signal.signal(number, lambda number, frame: os.kill(child, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
code = int(answers.readline() or 1)
if code < 0:
    if -code in passed_on:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


_folder = Path()


def use(folder: Path) -> None:
    """The folder of the server's files, the same one for all processes of a test run."""
    global _folder
    _folder = folder


@cache
def python() -> str:
    """Its path. The first caller of all processes of a test run starts the server; it ends with pytest."""
    assert _folder != Path(), "forkserver.use() was not called: only pytest knows where the forks may lie"
    home = _folder / "forkserver"
    with FileLock(_folder / "forkserver.lock"):
        if not home.exists():
            home.mkdir()
            shim = home / "python"
            shim.write_text(SHIM.format(python=sys.executable, home=str(home)))
            shim.chmod(0o755)
            # Found beside the interpreter by what looks for them there.
            for program in ("ninja", "snakemake"):
                (home / program).symlink_to(Path(sys.executable).parent / program)
            pytest = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            environment["HF_HOME"] = hugging_face()
            with (home / "log").open("w") as log:
                subprocess.run(
                    [sys.executable, __file__, str(home), str(pytest)],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
    assert (home / "socket").exists(), f"the fork server did not start:\n{(home / 'log').read_text()}"
    return str(home / "python")


def hugging_face() -> str:
    """HF_HOME of the forks: libraries read it when they are imported, so that a call cannot choose another one."""
    return str(_folder / "huggingface")


def start(home: Path, pytest: int) -> None:
    """Returns when the server listens, or has failed. It is no child of the tests' process: what that and its
    children have spent is measured."""
    if (server := os.fork()) == 0:
        serve(home, pytest)
        os._exit(0)
    while not (home / "socket").exists() and os.waitpid(server, os.WNOHANG) == (0, 0):
        time.sleep(0.05)


def serve(home: Path, pytest: int) -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    assert threading.active_count() == 1, f"a fork would lose {threading.enumerate()}"
    gc.freeze()  # so that collections in the forks do not copy these objects' pages
    listener = socket.socket(socket.AF_UNIX)
    folder = os.open(home, os.O_PATH)
    listener.bind(f"/proc/self/fd/{folder}/unfinished")
    os.close(folder)
    listener.listen(64)
    (home / "unfinished").rename(home / "socket")
    ended, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    links: dict[int, socket.socket] = {}
    while psutil.pid_exists(pytest):
        ready, _, _ = select.select([listener, ended], [], [], 1.0)
        if ended in ready:
            os.read(ended, 4096)
            for child in list(links):
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    answer(links.pop(child), os.waitstatus_to_exitcode(status))
        if listener in ready:
            link, _ = listener.accept()
            try:
                asked, streams = receive(link)
            except ConnectionError:  # killed before it had asked
                continue
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                for file in (listener, link, *links.values()):
                    file.close()
                os.close(ended)
                os.close(tell)
                become(asked, streams, home / "python")
            for stream in streams:
                os.close(stream)
            links[child] = link
            answer(link, child, last=False)


def answer(link: socket.socket, value: int, last: bool = True) -> None:
    try:
        link.sendall(f"{value}\n".encode())
    except OSError:
        pass  # whoever asked is gone
    if last:
        link.close()


def receive(link: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, streams, _, _ = socket.recv_fds(link, 4, 3)
    with link.makefile("rb") as stream:
        body = stream.read(int.from_bytes(head, "big"))
    if not head or len(body) < int.from_bytes(head, "big"):
        raise ConnectionError
    return json.loads(body), streams


def become(asked: dict[str, Any], streams: list[int], shim: Path) -> NoReturn:
    """What the interpreter does between its start and the first line of a module."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the server
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout.reconfigure(line_buffering=os.isatty(1), write_through="PYTHONUNBUFFERED" in asked["environment"])
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.executable = str(shim)
    ours = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [os.getcwd(), *filter(None, ours), *sys.path[1:]]
    importlib.invalidate_caches()
    if "OMP_NUM_THREADS" in os.environ:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    code = run(*asked["arguments"])
    # As an interpreter ends, less the seconds in which it would take hundreds of modules apart.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(how: str, what: str, *arguments: str) -> int:
    """`python -m what` or `python -c what`; its exit code."""
    sys.argv = ["-c" if how == "-c" else what, *arguments]
    try:
        if how == "-c":
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    start(Path(sys.argv[1]), int(sys.argv[2]))
