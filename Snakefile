import os
import sys
from pathlib import Path

from longshort import studies
from longshort.commands import driver
from longshort.metrics.catalog import METRICS
from longshort.identity.code import SOURCE, code_hash
from longshort.jobs import engine
from longshort.records import layout
from longshort.terminal import begin_in_utf8

begin_in_utf8()
engine.name_the_user()
# `python` in every rule is the one that runs Snakemake, or with `--sdm conda` that of the rule's own environment.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]),
    PYTHONPATH=str(SOURCE.parent),
    MPLBACKEND="agg",  # a notebook has another one, which may not be installed
    HF_HUB_OFFLINE="1",  # only `longshort fetch` uses the network
)
STUDY = studies.of_config(config)


wildcard_constraints:
    run="[0-9a-f]{16}",
    data="[0-9a-f]{16}",
    evaluation="[0-9a-f]{16}",
    steps=r"\d+(-\d+)*",


for stage in STUDY.stages:

    include: f"workflow/rules/{stage}.smk"


include: "workflow/handlers.smk"


driver.keep_source(STUDY, {rule.name: rule.shellcmd for rule in workflow.rules})


rule all:
    default_target: True
    input:
        STUDY.published(),  # else the engine misses one only where the tables are made again
        STUDY.targets(),
