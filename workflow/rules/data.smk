rule data:
    input:
        spec=layout.spec(layout.DATA, "{data}"),
        corpus=STUDY.corpus_files(),
    output:
        layout.data_manifest("{data}"),
    log:
        layout.data_log(layout.data_folder("{data}")),
    conda:
        "../../envs/data.yaml"
    threads: STUDY.study.needs.data_cores
    resources:
        **STUDY.data_resources(),
    params:
        code=code_hash("longshort.data.__main__"),
    shell:
        f"exec python -m longshort.data --spec {{input.spec:q}} --out {layout.data_folder('{wildcards.data:q}')}"
        " --code {params.code:q} --cores {threads} > {log:q} 2>&1"


rule longbench_stand_in:
    input:
        layout.data_manifest("{data}"),
    output:
        layout.standin_manifest(layout.data_folder("{data}"), "{per_task}"),
    log:
        layout.standin_log("{data}", "{per_task}"),
    wildcard_constraints:
        per_task=r"\d+",
    conda:
        "../../envs/data.yaml"
    resources:
        **STUDY.data_resources(),
    params:
        code=code_hash("longshort.evaluation.standin"),
    shell:
        f"exec python -m longshort.evaluation.standin --data {layout.data_folder('{wildcards.data:q}')}"
        " --items {wildcards.per_task:q}"
        f" --out {layout.standin(layout.data_folder('{wildcards.data:q}'), '{wildcards.per_task:q}')}"
        " --code {params.code:q} > {log:q} 2>&1"
