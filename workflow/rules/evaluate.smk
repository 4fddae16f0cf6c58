for metric in METRICS.values():
    if metric.name not in STUDY.evaluations:
        continue

    rule:
        name:
            metric.name
        input:
            spec="results/evaluations/{evaluation}/spec.json",
            run="results/runs/{run}/training/{steps}.json",
            data=f"results/data/{STUDY.data}/manifest.json",
            tasks=STUDY.items(metric.name),
        output:
            **metric.kept,
            numbers=f"results/runs/{{run}}/{metric.name}/{{evaluation}}/{{steps}}.parquet",
            record=f"results/runs/{{run}}/{metric.name}/{{evaluation}}/{{steps}}.json",
        log:
            f"results/runs/{{run}}/{metric.name}/{{evaluation}}/{{steps}}.log",
        conda:
            "../../envs/evaluation.yaml"
        resources:
            **STUDY.evaluation_resources(),
        params:
            code=STUDY.evaluation_codes(metric.name),
            module=metric.module,  # the command below is filled in when a job runs, after the loop
        shell:
            "exec python -m {params.module:q} --spec {input.spec:q} --data {input.data:q} --run {input.run:q}"
            " --steps {wildcards.steps:q} --out {output.numbers:q} --items {input.tasks:q} --code {params.code:q} > {log:q} 2>&1"
