"""Before the first job of a run and after a failed one: the Snakemake that submits jobs may have died before.

Snakemake's own lock outlives a killed Snakemake, so the slurm profile turns it off, and this one, which knows whether
its owner lives, takes its place. A run that starts finds the jobs that a dead one left in the queue. Those that wait
are cancelled; those that run are asked to save and end, since their work goes on in the jobs of this run, and none of
them should hold a device while another waits for the same folder. How they ended decides what is to be done, so that
the run is planned anew.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread

import psutil

from longshort.commands import cost, replaced, stale
from longshort.errors import UserError
from longshort.identity.code import PLANNED, SOURCE, source_as_planned
from longshort.jobs import engine, ownership, slurm
from longshort.records import hub, layout, provenance
from longshort.records.publish import read_json, text_of, write_json
from longshort.studies import Budget, Resolved, check_fetched
from longshort.study.resources import SITE_FILE, VARIABLES
from longshort.study.wired import Wired
from longshort.study.wiring import ResolvedStudy
from longshort.terminal import begin_in_utf8

PROGRAMS = Path("slurm/bin")
# How long a job may take to save; after it, it is cancelled.
PATIENCE = 600.0
BETWEEN_LOOKS = 5.0
# The jobs that did not end though they were cancelled, as on a node that is gone: nobody waits for them twice.
GIVEN_UP = "LONGSHORT_GIVEN_UP"
# By these, as some containers set them and `accelerate launch` does, products are computed less precisely than a study
# says, and no record would tell.
OTHER_PRECISION = {
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
}


def settle() -> None:
    """What the engine and its jobs inherit, whatever machine, account or notebook it is started in. May begin this
    process anew."""
    begin_in_utf8()
    engine.name_the_user()
    # `python` in every rule is the one that runs the engine, or with `--sdm conda` that of the rule's own environment.
    os.environ.update(
        PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]),
        PYTHONPATH=str(SOURCE.parent),
        MPLBACKEND="agg",  # a notebook has another one, which may not be installed
        HF_HUB_OFFLINE="1",  # only `longshort fetch` uses the network
    )
    for name in list(os.environ):
        if name.startswith("ACCELERATE_") or name in OTHER_PRECISION:
            del os.environ[name]


def hand_on_termination() -> None:
    """For the engine inside a job: what it runs is told of each SIGTERM that reaches it. It only notes one itself, and
    where SLURM tracks processes by cgroups it signals none but those that it has started."""
    heard, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)

    def hand_on() -> None:
        with told:  # kept open
            while number := heard.recv(1):
                if number[0] == signal.SIGTERM:
                    for process in psutil.Process().children(recursive=True):
                        with suppress(psutil.Error):
                            if process.name() != "srun":  # which would end what it has started
                                process.terminate()

    Thread(target=hand_on, daemon=True).start()


def keep_to_its_device(study: Resolved) -> None:
    """A study that asks for CPUs leaves GPUs alone: one may be too small, and gives other numbers. start() says so."""
    if asks_for_cpus(study):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def asks_for_cpus(study: Resolved) -> bool:
    return study.kind == "language-models" and study.study.needs.device == "cpu"


def keep_source(study: Resolved, shells: dict[str, str]) -> None:
    """Notes the source that is planned with: jobs refuse to start where it is no longer this one.

    A cluster's jobs parse the workflow again, and keep what they inherit.

    Args:
        shells: rule -> its command, as it is written there.

    Raises:
        StudyError: results are not of the present code, corpus or model, and the engine would not notice.
    """
    if PLANNED not in os.environ:
        stale.refuse_unnoticed(study)
        if study.kind == "language-models":
            replaced.refuse(study)
            stale.keep_together_or_apart(study, shells)
        os.environ[PLANNED] = source_as_planned()


def keep_to_budget(study: Resolved, limit: Budget | None, jobs: Callable[[], list[engine.PlannedJob]]) -> None:
    """To be called before any job is started.

    Args:
        limit: what the jobs may need; None: anything.
        jobs: gives those that the engine would run.

    Raises:
        UserError: they need more; it says which arms fit.
    """
    if limit is None or study.kind != "language-models":
        return
    from longshort.commands import budget, plan  # late: every job parses what imports this

    planned = jobs()
    data_anew = any(job.rule == "data" for job in planned)
    work = plan.work_of(study, planned)
    budget.refuse_beyond(budget.fitting(study, work, limit.hours, limit.throughput, data_anew), study)


def start(study: Resolved, submits: bool) -> None:
    """Makes this process the only engine that runs a study, until it ends, and clears the queue of orphans.

    submits: whether its jobs go to SLURM, which then must answer.

    Raises:
        UserError: another one drives it, a job would need the network, SLURM does not answer, or jobs of an earlier
            one ran until now beside an engine that has its own lock.
    """
    if lacking := [part for part in study.hub_parts() if not hub.was_fetched(part)]:
        raise UserError(f"study {study.name} needs what is not here: {hub.missing_in_words(lacking)}")
    check_fetched(study)
    if warning := provenance.unknown_commit():
        print(warning, file=sys.stderr, flush=True)
    if asks_for_cpus(study) and list(Path("/dev").glob("nvidia[0-9]*")):
        print("needs.device is cpu: the GPU here is not used", flush=True)
    held = ExitStack()
    mine = Path(layout.engine_run(study.name))
    try:
        held.enter_context(ownership.sole_owner(mine, wait=False))
    except ownership.Owned as error:
        raise UserError(
            f"study {study.name} is driven by another snakemake, {error}: let it end, or end it (kill), and run again"
        ) from None
    atexit.register(held.close)
    write_json(Path(layout.made_by_engine_run(study.name)), sorted(study.identities()))
    if clear_orphans(study, submits):
        held.close()
        plan_anew(submits)
    try:
        if study.kind == "language-models":
            study.renew_corpus_state()
            cost.write_down(study)
    except (OSError, ValueError) as error:  # a report without an estimate is better than no study
        print(f"what the jobs are expected to take is not written down: {error}", flush=True)
    # What the engine's plugin asks SLURM for, it asks through these.
    os.environ["PATH"] = os.pathsep.join([str(PROGRAMS.resolve()), *os.get_exec_path()])


def plan_anew(submits: bool) -> None:
    """The engine looked at the results while those jobs still made some, or took away what they had half done."""
    if not submits:
        raise UserError("they have ended; run again, as what is to be done depends on how they did")
    print("they have ended: planning anew", flush=True)
    environment = {name: value for name, value in os.environ.items() if name != PLANNED}
    os.execve(sys.executable, engine.command(*sys.argv[1:]), environment)


def clear_orphans(study: Wired, submits: bool) -> bool:
    """Whether there were any."""
    saves = study.study.needs.save_minutes if isinstance(study, ResolvedStudy) else 0
    left, patience = orphans(study), max(PATIENCE, 60.0 * saves)
    until = time.monotonic() + PATIENCE
    while left is None and submits:  # jobs that still run would be taken for none
        if time.monotonic() > until:
            raise UserError(f"squeue has not answered for {PATIENCE:.0f} s: run again when SLURM is there (sinfo)")
        print("waiting: squeue does not answer", flush=True)
        time.sleep(BETWEEN_LOOKS)
        left = orphans(study)
    if not left:
        return False
    waiting = [job.id for job in left if job.state == "PENDING"]
    running = [job.id for job in left if job.state != "PENDING"]
    if waiting:
        print(f"cancelling {len(waiting)} waiting jobs of an earlier snakemake: {', '.join(waiting)}", flush=True)
        slurm.ask("scancel", *waiting)
    if running:
        print(f"asking {len(running)} running jobs of an earlier snakemake to save and end: {', '.join(running)}")
        slurm.ask("scancel", "--signal=TERM", *running)
    until = time.monotonic() + patience
    while (now := orphans(study)) != []:
        left = left if now is None else now
        if time.monotonic() > until:
            print(f"cancelling jobs that did not end: {', '.join(job.id for job in left)}", flush=True)
            slurm.ask("scancel", *(job.id for job in left))
            os.environ[GIVEN_UP] = " ".join([os.environ.get(GIVEN_UP, ""), *(job.id for job in left)])
            break  # should one of them still write, its lock is waited for
        time.sleep(BETWEEN_LOOKS)
    return True


def orphans(study: Wired) -> list[slurm.Job] | None:
    """Jobs in the queue that make results of this study in this folder, and of no other one that is being driven; None
    if SLURM does not say. Called before this run has submitted any; those that were given up do not count."""
    jobs = slurm.jobs_of(str(Path.cwd()))
    if jobs is None:
        return None
    ids = study.identities()
    # What the jobs of another engine make is no orphan while it lives.
    for other in Path().glob(layout.made_by_engine_run("*")):
        if other.parent.name != study.name and ownership.is_owned(other.parent):
            ids -= set(read_json(other, [str]))
    given_up = os.environ.get(GIVEN_UP, "").split()
    return [job for job in jobs if ids & engine.ids_in(job.comment) and job.id not in given_up]


def explain(logs: list[str]) -> None:
    """Says what to do where SLURM took no job. logs: what the engine has written."""
    refusals = sorted({said for log in logs for said in engine.refusals(text_of(Path(log)))})
    if refusals:
        variables = ", ".join(f"{key} (${name})" for key, name in VARIABLES.items())
        said = "\n".join(f"  {refusal}" for refusal in refusals)
        print(
            f"SLURM refused jobs:\n{said}\nIf it wants to be told an account, a partition or another thing of this "
            f"cluster, write it into {SITE_FILE}, one `key: value` a line, or export the variable: {variables}. Where "
            "it names a limit of submitted jobs (SubmitJob), that allows this user none: ask who runs the cluster, or "
            "take another account or quality of service.",
            file=sys.stderr,
        )
