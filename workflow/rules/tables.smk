localrules:
    study,
    metrics,
    tables,
    plots,


rule study:
    input:
        "workflow/templates/spec.json",
    output:
        f"results/{STUDY.name}/study.json",
    log:
        f"results/{STUDY.name}/logs/study.log",
    params:
        spec=STUDY.summary_text(),
    template_engine:
        "jinja2"


rule metrics:
    input:
        study=f"results/{STUDY.name}/study.json",
        runs=STUDY.published(),
    output:
        f"results/{STUDY.name}/metrics.parquet",
    log:
        f"results/{STUDY.name}/logs/metrics.log",
    conda:
        "../../envs/results.yaml"
    params:
        code=code_hash("longshort.results.collect"),
    shell:
        "python -m longshort.results.collect --code {params.code} --study {input.study} --results results --out {output} > {log} 2>&1"


rule tables:
    input:
        study=f"results/{STUDY.name}/study.json",
        metrics=f"results/{STUDY.name}/metrics.parquet",
    output:
        STUDY.table_files(),
    log:
        f"results/{STUDY.name}/logs/tables.log",
    conda:
        "../../envs/results.yaml"
    params:
        code=code_hash("longshort.results.tables"),
        out=subpath(output[0], parent=True),
    shell:
        "python -m longshort.results.tables --code {params.code} --metrics {input.metrics} --study {input.study} --out {params.out} > {log} 2>&1"


rule plots:
    input:
        study=f"results/{STUDY.name}/study.json",
        metrics=f"results/{STUDY.name}/metrics.parquet",
        style="src/longshort/results/longshort.mplstyle",
    output:
        STUDY.plot_files(),
    log:
        f"results/{STUDY.name}/logs/plots.log",
    conda:
        "../../envs/results.yaml"
    params:
        code=code_hash("longshort.results.plots"),
        out=subpath(output[0], parent=True),
    shell:
        "python -m longshort.results.plots --code {params.code} --metrics {input.metrics} --study {input.study} --style {input.style}"
        " --out {params.out} > {log} 2>&1"
