from pathlib import Path

from longshort import studies
from longshort.commands import engine_run
from longshort.metrics.catalog import METRICS
from longshort.identity.code import code_hash
from longshort.records import layout

engine_run.settle()
if not workflow.is_main_process:
    engine_run.hand_on_termination()
STUDY = studies.of_config(config)
engine_run.keep_to_its_device(STUDY)


wildcard_constraints:
    run="[0-9a-f]{16}",
    data="[0-9a-f]{16}",
    evaluation="[0-9a-f]{16}",
    steps=r"\d+(-\d+)*",


for stage in STUDY.stages:

    include: f"workflow/rules/{stage}.smk"


include: "workflow/handlers.smk"


engine_run.keep_source(STUDY, {rule.name: rule.shellcmd for rule in workflow.rules})


rule all:
    default_target: True
    input:
        STUDY.published(),  # else the engine misses one only where the tables are made again
        STUDY.targets(),
