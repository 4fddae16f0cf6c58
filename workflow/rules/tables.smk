localrules:
    study,
    metrics,
    tables,
    plots,
    report,


rule study:
    input:
        "workflow/templates/spec.json",
    output:
        f"results/{STUDY.name}/study.json",
    log:
        f"results/{STUDY.name}/logs/study.log",
    params:
        spec=lambda wildcards: STUDY.summary_text(),  # the engine would look for wildcards in a mere text
    template_engine:
        "jinja2"


rule metrics:
    input:
        study=f"results/{STUDY.name}/study.json",
        runs=STUDY.published(),
    output:
        numbers=f"results/{STUDY.name}/metrics.parquet",
        runs=f"results/{STUDY.name}/runs.parquet",
    log:
        f"results/{STUDY.name}/logs/metrics.log",
    conda:
        "../../envs/results.yaml"
    params:
        code=code_hash("longshort.collecting.__main__"),
        seal=STUDY.seal,
    shell:
        "python -m longshort.collecting --code {params.code:q} --seal {params.seal:q} --study {input.study:q} --results results --out {output.numbers:q} > {log:q} 2>&1"


rule tables:
    input:
        study=f"results/{STUDY.name}/study.json",
        metrics=f"results/{STUDY.name}/metrics.parquet",
        runs=f"results/{STUDY.name}/runs.parquet",
    output:
        report(
            STUDY.table_files("html"),
            caption="../report/tables.rst",
            category="Tables",
        ),
        STUDY.table_files("parquet", "csv", "md", "tex"),
    log:
        f"results/{STUDY.name}/logs/tables.log",
    conda:
        "../../envs/results.yaml"
    params:
        code=code_hash("longshort.results.tables"),
        seal=STUDY.seal,
        out=subpath(output[0], parent=True),
    shell:
        "python -m longshort.results.tables --code {params.code:q} --seal {params.seal:q} --metrics {input.metrics:q} --runs {input.runs:q}"
        " --study {input.study:q} --out {params.out:q} > {log:q} 2>&1"


rule plots:
    input:
        study=f"results/{STUDY.name}/study.json",
        metrics=f"results/{STUDY.name}/metrics.parquet",
        runs=f"results/{STUDY.name}/runs.parquet",
        style="src/longshort/results/longshort.mplstyle",
    output:
        [
            report(plot, caption=f"../report/{Path(plot).stem}.rst", category="Plots")
            for plot in STUDY.plot_files("png")
        ],
        STUDY.plot_files("pdf"),
    log:
        f"results/{STUDY.name}/logs/plots.log",
    conda:
        "../../envs/results.yaml"
    params:
        code=code_hash("longshort.results.plots"),
        seal=STUDY.seal,
        out=subpath(output[0], parent=True),
    shell:
        "python -m longshort.results.plots --code {params.code:q} --seal {params.seal:q} --metrics {input.metrics:q} --runs {input.runs:q}"
        " --study {input.study:q} --style {input.style:q} --out {params.out:q} > {log:q} 2>&1"


rule report:
    input:
        study=f"results/{STUDY.name}/study.json",
        metrics=f"results/{STUDY.name}/metrics.parquet",
        runs=f"results/{STUDY.name}/runs.parquet",
        plots=STUDY.plot_files("png"),
    output:
        report(
            f"results/{STUDY.name}/report.html",
            caption="../report/report.rst",
            category="Report",
        ),
    log:
        f"results/{STUDY.name}/logs/report.log",
    conda:
        "../../envs/results.yaml"
    params:
        code=code_hash("longshort.results.report"),
        seal=STUDY.seal,
    shell:
        "python -m longshort.results.report --code {params.code:q} --seal {params.seal:q} --metrics {input.metrics:q} --runs {input.runs:q}"
        " --study {input.study:q} --plots {input.plots:q} --out {output:q} > {log:q} 2>&1"
