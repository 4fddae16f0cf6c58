localrules:
    synthetic_study,
    synthetic_results,


rule synthetic_study:
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


rule synthetic:
    input:
        layout.spec(layout.RUNS, "{run}"),
    output:
        numbers=layout.synthetic("{run}").numbers,
        record=layout.synthetic("{run}").record,
    log:
        layout.synthetic("{run}").log,
    conda:
        "../../envs/evaluation.yaml"
    resources:
        **STUDY.resources(),
    params:
        code=code_hash("longshort.synthetic.train"),
    shell:
        "exec python -m longshort.synthetic.train --spec {input:q} --out {output.numbers:q} --code {params.code:q} > {log:q} 2>&1"


rule synthetic_results:
    input:
        study=layout.study_json(STUDY.name),
        published=STUDY.published(),
        style="src/longshort/results/longshort.mplstyle",
    output:
        STUDY.targets(),
    log:
        layout.study_log(STUDY.name, "results"),
    conda:
        "../../envs/results.yaml"
    params:
        code=code_hash("longshort.synthetic.results"),
        seal=STUDY.seal,
        numbers=STUDY.numbers(),
        out=layout.study_folder(STUDY.name),
    shell:
        "python -m longshort.synthetic.results --study {input.study:q} --numbers {params.numbers:q} --out {params.out:q}"
        " --style {input.style:q} --code {params.code:q} --seal {params.seal:q} > {log:q} 2>&1"
