"""A real SLURM cluster on loopback: munge, MariaDB, slurmdbd, slurmctld and a slurmd for each of two nodes.

`python -m tests.slurm.cluster` starts one to try things on. Everything lies in one folder and ends with the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.support.waiting import BY_A_PROCESS, PATIENCE, wait_until

PACKAGES = "slurm-wlm slurmdbd munge mariadb-server"
PROGRAMS = [
    "munged",
    "mariadbd",
    "mariadb-install-db",
    "slurmdbd",
    "slurmctld",
    "slurmd",
    "sbatch",
    "sacct",
]
CLIENTS = ["sbatch", "srun", "scontrol", "squeue", "scancel", "sacct", "sacctmgr", "sinfo"]
SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
NODES = ["n1", "n2"]
UNFINISHED = ("PENDING", "CONFIGURING", "RUNNING", "SIGNALING", "COMPLETING", "REQUEUED")

# Waits are short, so that tests are. GraceTime is what a preempted job has between SIGTERM and SIGKILL.
# Without cgroups it is OverMemoryKill that makes of a job's memory a limit. The machine has fewer processors than its
# nodes are said to have, hence config_overrides.
SLURM = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd}
AccountingStoragePass={folder}/munge.socket
AccountingStorageEnforce=associations,limits
AccountingStoreFlags=job_comment
AccountingStorageTRES=gres/gpu
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=300
KillWait=2
SlurmdTimeout=10
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=DEFAULT CPUs=8 RealMemory=16000 Gres=gpu:a100:8
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} Features=fast
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} Features=slow
PartitionName=main Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=urgent Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF
"""
# A GPU must have a file; an empty one does.
GRES = "NodeName=n1,n2 Name=gpu Type=a100 File={folder}/gpu[0-7]\n"
SLURMDBD = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoInAddrAny
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""


class Cluster:
    def __init__(self, folder: Path) -> None:
        missing = [program for program in PROGRAMS if shutil.which(program, path=SEARCH) is None]
        if missing:
            raise RuntimeError(f"no {', '.join(missing)} on this machine: as root, apt-get install {PACKAGES}")
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder / 'bin'}{os.pathsep}{SEARCH}"}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        try:
            self._configure()
            self._start_munge()
            self.start_database()
            for entity in (["cluster", "tests"], ["account", "study"], ["user", "root", "account=study"]):
                self.run("sacctmgr", "--immediate", "add", *entity)
            self.start_controller()
            for node in NODES:
                self.start_node(node)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self._running)):
            self._stop(name, signal.SIGKILL)
        for process in psutil.process_iter():  # what a lost node left
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    process.kill()
        shutil.rmtree(self.folder / "database", ignore_errors=True)

    def start_database(self) -> None:
        """MariaDB, on a socket alone, and slurmdbd on top."""
        database, temporary = self.folder / "database", self.folder / "database-tmp"
        temporary.mkdir(exist_ok=True)
        # A server that starts removes every temporary table below its --tmpdir, those of another test's server too.
        options = ["--no-defaults", "--user=root", f"--datadir={database}", f"--tmpdir={temporary}"]
        options += ["--innodb-log-file-size=4M"]
        if not database.exists():
            self.run("mariadb-install-db", *options, "--auth-root-authentication-method=normal", "--skip-test-db")
        options += ["--skip-networking", f"--socket={self._database_socket}"]
        ping = ["mariadb-admin", "--no-defaults", f"--socket={self._database_socket}", "ping"]
        self._start("mariadbd", "mariadbd", *options, ready=lambda: self.run(*ping))
        self._start("slurmdbd", "slurmdbd", "-D", ready=lambda: self.run("sacctmgr", "list", "cluster"))

    def stop_database(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._stop("slurmdbd", number)
        self._stop("mariadbd", number)

    def start_controller(self) -> None:
        self._start("slurmctld", "slurmctld", "-D", ready=lambda: self.run("scontrol", "ping"))

    def stop_controller(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._stop("slurmctld", number)

    def start_node(self, node: str) -> None:
        since = time.strftime("%Y-%m-%dT%H:%M:%S")

        def registered() -> bool:
            fields = dict(part.partition("=")[::2] for part in self.run("scontrol", "show", "node", node).split())
            return fields.get("SlurmdStartTime", "") >= since and fields["State"] in ("IDLE", "MIXED", "ALLOCATED")

        keeper = [sys.executable, str(Path(__file__).with_name("node.py"))]
        self._start(node, *keeper, "slurmd", "-D", "-N", node, ready=registered)

    def stop_node(self, node: str) -> None:
        """As when its power fails: what runs there is gone, and nobody is told."""
        self._stop(node, signal.SIGKILL)

    def kill_daemon(self, node: str) -> None:
        """Of a node that is lost to the controller alone: what runs there runs on."""
        keeper = self._running.pop(node)
        # The steps that slurmd let go are below the keeper, too, in the order of numbers that begin anew at a limit.
        (daemon,) = (child for child in psutil.Process(keeper.pid).children() if child.name() == "slurmd")
        daemon.kill()
        keeper.wait(timeout=PATIENCE)

    def run(self, *command: str) -> str:
        """What it prints; an error says what it said."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, script: str, *options: str) -> str:
        """The job's id. What it prints is `output(job)`."""
        log = f"--output={self.folder}/%j.out"
        return self.run("sbatch", "--parsable", log, *options, f"--wrap={script}").strip()

    def allow_submitted(self, jobs: int) -> None:
        """So many jobs of this user may wait or run; -1: any number."""
        self.run("sacctmgr", "--immediate", "modify", "user", "root", "set", f"MaxSubmitJobs={jobs}")

        def known() -> bool:  # the database tells the controller a moment later
            told = self.run("scontrol", "--oneliner", "show", "assoc_mgr", "users=root", "flags=assoc")
            limits = re.findall(r"UserName=root\(.* MaxSubmitJobs=(\d*)", told)
            return bool(limits) and set(limits) == {"" if jobs < 0 else str(jobs)}

        wait_until(known, lambda: f"{jobs} is not known", BY_A_PROCESS)

    def output(self, job: str) -> str:
        log = self.folder / f"{job}.out"
        return log.read_text() if log.exists() else ""

    def squeue(self) -> dict[str, str]:
        """State of each job, of those that ended within MinJobAge too."""
        lines = self.run("squeue", "--noheader", "--states=all", "--format=%A %T").splitlines()
        return dict(line.split() for line in lines)

    def sacct(self, job: str) -> dict[str, tuple[str, str]]:
        """State and exit code of the job and of its steps, as accounting has them."""
        lines = self.run("sacct", "-nP", f"--jobs={job}", "--format=JobID,State,ExitCode").splitlines()
        return {step: (state, code) for step, state, code in (line.split("|") for line in lines)}

    def wait_for(self, job: str) -> str:
        """The state that it ended in."""
        complaint = f"job {job} has not ended"
        wait_until(lambda: self.squeue()[job] not in UNFINISHED, lambda: f"{complaint}: {self.squeue()}", BY_A_PROCESS)
        return self.squeue()[job]

    def wait_for_accounting(self, job: str, expected: tuple[str, str]) -> None:
        """What slurmctld knows reaches the database a moment later."""
        complaint = f"expected {expected} of job {job}"
        wait_until(
            lambda: self.sacct(job).get(job) == expected, lambda: f"{complaint}: {self.sacct(job)}", BY_A_PROCESS
        )

    @property
    def _database_socket(self) -> Path:
        return self.folder / "database.socket"

    def _configure(self) -> None:
        ports = dict(zip(["ctld", "dbd", *NODES], free_ports(2 + len(NODES)), strict=True))
        values = {"host": socket.gethostname().split(".")[0], "folder": self.folder, **ports}
        (self.folder / "slurm.conf").write_text(SLURM.format(**values))
        (self.folder / "gres.conf").write_text(GRES.format(**values))
        for number in range(8):
            (self.folder / f"gpu{number}").touch()
        # Snakemake's plugin takes all SLURM_* away in its jobs: they would look for /etc/slurm/slurm.conf.
        (self.folder / "bin").mkdir()
        for client in CLIENTS:
            script, program = self.folder / "bin" / client, shutil.which(client, path=SEARCH)
            script.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {program} "$@"\n')
            script.chmod(0o755)
        (self.folder / "slurmdbd.conf").write_text(SLURMDBD.format(**values))
        (self.folder / "slurmdbd.conf").chmod(0o600)
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o600)

    def _start_munge(self) -> None:
        place = {name: self.folder / f"munge.{name}" for name in ("socket", "key", "log", "pid", "seed")}
        options = [f"--{name}-file={place[name]}" for name in ("key", "log", "pid", "seed")]
        # Forced, since the folder is closed to other users, for whom a munge usually is.
        self._start(
            "munged",
            *["munged", "--foreground", "--force", f"--socket={place['socket']}", *options],
            ready=lambda: self.run("munge", "--no-input", f"--socket={place['socket']}"),
        )

    def _start(self, name: str, *command: str, ready: Callable[[], object]) -> None:
        log = self.folder / f"{name}.out"
        # slurmdbd finds the database by MYSQL_UNIX_PORT: it has no option for it.
        environment = {**os.environ, **self.environment, "MYSQL_UNIX_PORT": str(self._database_socket)}
        with log.open("ab") as out:
            process = self._running[name] = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

        said = ""

        def started() -> bool:
            nonlocal said
            try:
                return process.poll() is not None or bool(ready())
            except AssertionError as error:
                said = str(error)
                return False

        wait_until(started, lambda: f"{name} is not ready. {said}\n{log.read_text()[-2000:]}", BY_A_PROCESS)
        assert process.poll() is None, f"{name} ended: {log.read_text()[-2000:]}"

    def _stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """With SIGKILL all below it goes, too; it is halted first, so that what loses its parent stays below it."""
        process = self._running.pop(name)
        if number == signal.SIGKILL and process.poll() is None:
            process.send_signal(signal.SIGSTOP)
            children = psutil.Process(process.pid).children
            wait_until(
                lambda: not any([kill(child) for child in children(recursive=True)]),
                lambda: f"below {name} there still is {children(recursive=True)}",
            )
        process.send_signal(number)
        process.wait(timeout=PATIENCE)


def kill(process: psutil.Process) -> bool:
    """Whether there was something to kill."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def end_with_parent() -> None:
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Below those that the system hands out, so that none is taken while its daemon is stopped; each process of a test
    run has some of its own."""
    ports: list[int] = []
    first = 20000 + 1000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10)
    while len(ports) < count:
        port = random.SystemRandom().randrange(first, first + 1000)
        with socket.socket() as candidate:
            if port not in ports and candidate.connect_ex(("127.0.0.1", port)) != 0:
                ports.append(port)
    return ports


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as place, Cluster(Path(place)) as up:
        for variable, value in up.environment.items():
            print(f"export {variable}={shlex.quote(value)}")
        print("# Copy these into another terminal. Ctrl-C here ends the cluster.", flush=True)
        signal.pause()
