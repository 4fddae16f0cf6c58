import os
import sys
from pathlib import Path

from longshort.commands import driver, stale
from longshort.identity.code import PLANNED, SOURCE, code_hash, source_as_planned
from longshort.study import resolve

# `python` in every rule is the one that runs Snakemake, or with `--sdm conda` that of the rule's own environment.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]),
    PYTHONPATH=str(SOURCE.parent),
    HF_HUB_OFFLINE="1",  # only `longshort fetch` uses the network
)
STUDY = resolve.of_config(config)
# Jobs refuse to start where the source is no longer this one; a cluster's jobs parse this file again and keep it.
if PLANNED not in os.environ:
    stale.refuse_unnoticed(STUDY)
    os.environ[PLANNED] = source_as_planned()


wildcard_constraints:
    run="[0-9a-f]{16}",
    data="[0-9a-f]{16}",
    evaluation="[0-9a-f]{16}",
    steps=r"\d+(-\d+)*",


for stage in STUDY.stages:

    include: f"workflow/rules/{stage}.smk"


include: "workflow/handlers.smk"


rule all:
    default_target: True
    input:
        STUDY.published(),  # else the engine misses one only where the tables are made again
        STUDY.targets(),
