rule train:
    input:
        spec="results/runs/{run}/spec.json",
        data=f"results/data/{STUDY.data}/manifest.json",
        base=lambda wildcards: STUDY.base_record(wildcards.run),
    output:
        record="results/runs/{run}/training/{steps}.json",
        log="results/runs/{run}/training/{steps}.parquet",
    log:
        "results/runs/{run}/training/{steps}.log",
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
