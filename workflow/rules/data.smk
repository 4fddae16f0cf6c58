rule data:
    input:
        spec="results/data/{data}/spec.json",
        corpus=STUDY.corpus_files(),
    output:
        "results/data/{data}/manifest.json",
    log:
        "results/data/{data}/prepare.log",
    conda:
        "../../envs/data.yaml"
    threads: STUDY.study.needs.data_cores
    resources:
        **STUDY.data_resources(),
    params:
        code=code_hash("longshort.data.__main__"),
    shell:
        "exec python -m longshort.data --spec {input.spec:q} --out results/data/{wildcards.data:q} --code {params.code:q}"
        " --cores {threads} > {log:q} 2>&1"


rule longbench_stand_in:
    input:
        "results/data/{data}/manifest.json",
    output:
        "results/data/{data}/longbench-e-{per_task}/manifest.json",
    log:
        "results/data/{data}/longbench-e-{per_task}.log",
    wildcard_constraints:
        per_task=r"\d+",
    conda:
        "../../envs/data.yaml"
    resources:
        **STUDY.data_resources(),
    params:
        code=code_hash("longshort.evaluation.standin"),
    shell:
        "exec python -m longshort.evaluation.standin --data results/data/{wildcards.data:q} --items {wildcards.per_task:q}"
        " --out results/data/{wildcards.data:q}/longbench-e-{wildcards.per_task:q} --code {params.code:q} > {log:q} 2>&1"
