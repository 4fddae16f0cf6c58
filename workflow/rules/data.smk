rule data:
    input:
        spec=layout.spec(layout.DATA, "{data}"),
    output:
        layout.data_manifest("{data}"),
    log:
        layout.data_log(layout.data_folder("{data}")),
    conda:
        "../../envs/data.yaml"
    threads: STUDY.study.needs.data_cores
    resources:
        **STUDY.data_resources(),
        max_left_out=str(STUDY.study.data.max_left_out),  # as the options of a training: execution, not science
    params:
        code=code_hash("longshort.data.__main__"),
        corpus=STUDY.corpus_state(),
    shell:
        f"exec python -m longshort.data --spec {{input.spec:q}} --out {layout.data_folder('{wildcards.data:q}')}"
        " --code {params.code:q} --corpus-state {params.corpus:q} --max-left-out {resources.max_left_out}"
        " --cores {threads} > {log:q} 2>&1"


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
