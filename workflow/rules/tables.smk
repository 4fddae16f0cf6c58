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
        layout.study_json(STUDY.name),
    log:
        layout.study_log(STUDY.name, "study"),
    params:
        spec=lambda wildcards: STUDY.summary_text(),  # the engine would look for wildcards in a mere text
    template_engine:
        "jinja2"


rule metrics:
    input:
        study=layout.study_json(STUDY.name),
        runs=STUDY.published(),
    output:
        numbers=layout.metrics(layout.study_folder(STUDY.name)),
        runs=layout.runs(layout.study_folder(STUDY.name)),
    log:
        layout.study_log(STUDY.name, "metrics"),
    conda:
        "../../envs/results.yaml"
    params:
        code=code_hash("longshort.collecting.__main__"),
        seal=STUDY.seal,
    shell:
        "python -m longshort.collecting --code {params.code:q} --seal {params.seal:q} --study {input.study:q} --results results --out {output.numbers:q} > {log:q} 2>&1"


rule tables:
    input:
        study=layout.study_json(STUDY.name),
        metrics=layout.metrics(layout.study_folder(STUDY.name)),
        runs=layout.runs(layout.study_folder(STUDY.name)),
    output:
        report(
            STUDY.table_files("html"),
            caption="../report/tables.rst",
            category="Tables",
        ),
        STUDY.table_files("parquet", "csv", "md", "tex"),
    log:
        layout.study_log(STUDY.name, "tables"),
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
        study=layout.study_json(STUDY.name),
        metrics=layout.metrics(layout.study_folder(STUDY.name)),
        runs=layout.runs(layout.study_folder(STUDY.name)),
        style="src/longshort/results/longshort.mplstyle",
    output:
        [
            report(plot, caption=f"../report/{Path(plot).stem}.rst", category="Plots")
            for plot in STUDY.plot_files("png")
        ],
        STUDY.plot_files("pdf"),
    log:
        layout.study_log(STUDY.name, "plots"),
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
        study=layout.study_json(STUDY.name),
        metrics=layout.metrics(layout.study_folder(STUDY.name)),
        runs=layout.runs(layout.study_folder(STUDY.name)),
        plots=STUDY.plot_files("png"),
    output:
        report(
            layout.report(STUDY.name),
            caption="../report/report.rst",
            category="Report",
        ),
    log:
        layout.study_log(STUDY.name, "report"),
    conda:
        "../../envs/results.yaml"
    params:
        code=code_hash("longshort.results.report"),
        seal=STUDY.seal,
    shell:
        "python -m longshort.results.report --code {params.code:q} --seal {params.seal:q} --metrics {input.metrics:q} --runs {input.runs:q}"
        " --study {input.study:q} --plots {input.plots:q} --out {output:q} > {log:q} 2>&1"
