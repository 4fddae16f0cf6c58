rule perplexity:
    input:
        spec="results/evaluations/{evaluation}/spec.json",
        run="results/runs/{run}/training/{steps}.json",
        data=f"results/data/{STUDY.data}/manifest.json",
    output:
        "results/runs/{run}/perplexity/{evaluation}/{steps}.parquet",
    log:
        "results/runs/{run}/perplexity/{evaluation}/{steps}.log",
    conda:
        "../../envs/longshort.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        code=code_hash("longshort.evaluation.perplexity"),
    shell:
        "python -m longshort.evaluation.perplexity --spec {input.spec} --data {input.data} --run {input.run}"
        " --steps {wildcards.steps} --out {output} --code {params.code} > {log} 2>&1"


rule misalignment:
    input:
        spec="results/evaluations/{evaluation}/spec.json",
        run="results/runs/{run}/training/{steps}.json",
        data=f"results/data/{STUDY.data}/manifest.json",
    output:
        "results/runs/{run}/misalignment/{evaluation}/{steps}.parquet",
    log:
        "results/runs/{run}/misalignment/{evaluation}/{steps}.log",
    conda:
        "../../envs/longshort.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        code=code_hash("longshort.evaluation.misalignment"),
    shell:
        "python -m longshort.evaluation.misalignment --spec {input.spec} --data {input.data} --run {input.run}"
        " --steps {wildcards.steps} --out {output} --code {params.code} > {log} 2>&1"


rule longbench_e:
    input:
        spec="results/evaluations/{evaluation}/spec.json",
        run="results/runs/{run}/training/{steps}.json",
        data=f"results/data/{STUDY.data}/manifest.json",
        tasks=STUDY.items(),
    output:
        "results/runs/{run}/longbench_e/{evaluation}/{steps}.parquet",
    log:
        "results/runs/{run}/longbench_e/{evaluation}/{steps}.log",
    conda:
        "../../envs/longshort.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        code=code_hash("longshort.evaluation.longbench"),
    shell:
        "python -m longshort.evaluation.longbench --spec {input.spec} --data {input.data} --run {input.run}"
        " --steps {wildcards.steps} --out {output} --items {input.tasks} --code {params.code} > {log} 2>&1"
