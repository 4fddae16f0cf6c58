rule train:
    input:
        spec=layout.spec(layout.RUNS, "{run}"),
        data=layout.data_manifest(STUDY.data),
        base=lambda wildcards: STUDY.base_record(wildcards.run),
    output:
        record=layout.training("{run}", "{steps}").record,
        log=layout.training("{run}", "{steps}").numbers,
    log:
        layout.training("{run}", "{steps}").log,
    conda:
        "../../envs/training.yaml"
    threads: lambda wildcards: STUDY.cpus(wildcards.run)
    resources:
        **STUDY.training_resources(),
        # Execution, not science: resources trigger no rerun. One string, since the engine's work grows with each function.
        options=lambda wildcards: STUDY.options(wildcards.run),
    params:
        code=lambda wildcards: STUDY.training_code(wildcards.run),
    shell:
        "exec python -m longshort.training --spec {input.spec:q} --data {input.data:q} --base {input.base:q} --steps {wildcards.steps:q}"
        " --out {output.record:q} --code {params.code:q} {resources.options} > {log:q} 2>&1"
