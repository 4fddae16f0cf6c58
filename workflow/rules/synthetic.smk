localrules:
    synthetic_study,
    synthetic_results,


rule synthetic_study:
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


rule synthetic:
    input:
        "results/runs/{run}/spec.json",
    output:
        numbers="results/runs/{run}/synthetic/numbers.parquet",
        record="results/runs/{run}/synthetic/record.json",
    log:
        "results/runs/{run}/synthetic/train.log",
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
        study=f"results/{STUDY.name}/study.json",
        published=STUDY.published(),
        style="src/longshort/results/longshort.mplstyle",
    output:
        STUDY.targets(),
    log:
        f"results/{STUDY.name}/logs/results.log",
    conda:
        "../../envs/results.yaml"
    params:
        code=code_hash("longshort.synthetic.results"),
        seal=STUDY.seal,
        numbers=STUDY.numbers(),
        out=f"results/{STUDY.name}",
    shell:
        "python -m longshort.synthetic.results --study {input.study:q} --numbers {params.numbers:q} --out {params.out:q}"
        " --style {input.style:q} --code {params.code:q} --seal {params.seal:q} > {log:q} 2>&1"
