from longshort.errors import in_a_line
from longshort.jobs import engine


onstart:
    with in_a_line():
        engine_run.keep_to_budget(
            STUDY,
            studies.budget_of(config, STUDY),
            lambda: engine.planned(workflow),
        )
        engine_run.start(STUDY, submits=workflow.non_local_exec)


# A study that ends in error still shows what it has, with the rest marked.
onerror:
    engine_run.explain(log)
    if "tables" in STUDY.stages:
        shell(
            "python -m longshort.cli tables --study {STUDY.name:q} --partial || true"
        )
