onstart:
    driver.start(STUDY, submits=workflow.non_local_exec)


# A study that ends in error still shows what it has, with the rest marked.
onerror:
    driver.explain(log)
    if isinstance(STUDY, resolve.ResolvedStudy):
        shell(
            "python -m longshort.cli tables --study {STUDY.name:q} --partial || true"
        )
