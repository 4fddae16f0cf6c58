"""What the cluster says, where there is one. Every question is answered by None where SLURM is not there or silent."""

from __future__ import annotations

import re
import subprocess
from typing import NamedTuple

from longshort.jobs import engine

# A controller that is busy or restarting may take long; nobody should wait for it for ever.
PATIENCE = 30.0
GONE = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}

ENDINGS = {
    "CANCELLED": "cancelled",
    "DEADLINE": "out of time",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted",
    "TIMEOUT": "out of time",
}
# In what SLURM writes into a job's log: without cgroups no state tells that memory was short.
MEMORY = re.compile(r"oom[-_ ]kill|exceeded (job )?memory limit", re.IGNORECASE)
UNITS = {"K": 2**-10, "M": 1.0, "G": 2.0**10, "T": 2.0**20}


# Why a job waits, as squeue says it; in words, {job} its number; and whether its owner has to do something. SLURM has a
# hundred reasons (its man page, JOB REASON CODES): the first pattern that is found in one decides.
LOWER = (
    "lower `needs` in the study, or say in slurm/site.yaml what there is at most (most_minutes, most_memory_mb: later "
    "attempts ask for more than the first), or another partition, account or quality of service"
)
ANEW = "then `scancel {job}` and run snakemake again"
WAITS = (
    ("JobHeldUser|held by user", "it is held: `scontrol release {job}` lets it run", True),
    ("JobHeldAdmin|JobHoldMaxRequeue|held|launch failed", "it is held by SLURM: ask who runs the cluster", True),
    ("DependencyNeverSatisfied", "what it waits for has failed: `scancel {job}` and run snakemake again", True),
    (
        "PerJob|PerNode|MaxMemPerLimit|NotSatisfied|Partition(Time|Node)Limit|MaxWallDuration",
        f"it asks for more than it may have: {LOWER}; {ANEW}",
        True,
    ),
    ("BadConstraints|Invalid|NotAllowed|AccountingPolicy", f"nothing fits what it asks for: {LOWER}; {ANEW}", True),
    (
        "Grp.*(?<!Run)Minutes",
        "the hours of its account or quality of service are spent: ask for more, or name another in slurm/site.yaml; "
        + ANEW,
        True,
    ),
    ("DOWN|DRAINED|NotAvail|NodeDown|PartitionDown|Inactive", "nodes are down or drained (`sinfo -R` says why)", False),
    ("Limit|PerUser|PerAccount|Grp", "as many run as are allowed: it runs when others have ended", False),
    ("", "its turn has not come", False),
)


class Job(NamedTuple):
    """A line of squeue. reason: why it waits, in SLURM's words."""

    id: str
    state: str
    folder: str
    comment: str
    reason: str = ""

    @property
    def waits_for(self) -> tuple[str, bool]:
        """Why it waits, in words, and whether its owner has to do something, as it will never run else."""
        words, ours = next((words, ours) for pattern, words, ours in WAITS if re.search(pattern, self.reason))
        return words.format(job=self.id), ours


def ask(*command: str) -> str | None:
    """What a SLURM program prints; None if it is not installed, fails, or does not answer."""
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def is_over(job: str) -> bool | None:
    """Whether a job has ended; None if SLURM does not say, which it does not of jobs long gone."""
    said = ask("squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job)
    return None if not said or not said.strip() else said.split()[0] in GONE


def ending(job: str) -> str | None:
    """Why a job ended, if it was not by itself; None if SLURM does not say."""
    if any(MEMORY.search(log.read_text(encoding="utf-8", errors="replace")) for log in engine.slurm_logs(job)):
        return ENDINGS["OUT_OF_MEMORY"]
    # Soon forgotten by the one, and late known by the other.
    said = ask("squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job)
    said = said or ask("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", "--jobs", job)
    return ENDINGS.get(said.split()[0]) if said and said.strip() else None


def memory_mb(job: str) -> float | None:
    """What a job was given on each node, MiB; None if SLURM does not say."""
    said = ask("scontrol", "--oneliner", "show", "job", job) or ""
    memory, nodes = re.search(r"\bmem=([\d.]+)([KMGT])", said), re.search(r"\bNumNodes=(\d+)", said)
    return float(memory[1]) * UNITS[memory[2]] / int(nodes[1]) if memory and nodes else None


def jobs_of(folder: str) -> list[Job] | None:
    """This user's pending and running jobs that were submitted from a folder."""
    said = ask("squeue", "--noheader", "--me", "--format=%i|%T|%r|%Z|%k")
    if said is None:
        return None
    lines = [line.strip().split("|", 4) for line in said.splitlines() if line.count("|") >= 4]
    jobs = [Job(number, state, place, comment, reason) for number, state, reason, place, comment in lines]
    return [job for job in jobs if job.folder == folder]


def hostnames(job: str) -> list[str]:
    """The nodes of a job, by name.

    Raises:
        RuntimeError: SLURM does not say.
    """
    said = ask("scontrol", "--oneliner", "show", "job", job) or ""
    nodes = next((word.removeprefix("NodeList=") for word in said.split() if word.startswith("NodeList=")), "")
    names = (ask("scontrol", "show", "hostnames", nodes) or "").split() if nodes else []
    if not names:
        raise RuntimeError(f"scontrol does not say which nodes job {job} has: {said.strip() or 'no answer'}")
    return names


def address(node: str) -> str:
    """Where the other nodes of a job reach this one: its NodeAddr, or its name."""
    said = ask("scontrol", "--oneliner", "show", "node", node) or ""
    return next((word.removeprefix("NodeAddr=") for word in said.split() if word.startswith("NodeAddr=")), node)
