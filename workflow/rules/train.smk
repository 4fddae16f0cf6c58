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
        "exec python -m longshort.training --spec {input.spec} --data {input.data} --base {input.base} --steps {wildcards.steps}"
        " --out {output.record} --code {params.code} {resources.options} > {log} 2>&1"
