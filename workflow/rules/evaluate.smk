rule perplexity:
    input:
        spec="results/evaluations/{evaluation}/spec.json",
        run="results/runs/{run}/training/{steps}.json",
        data=f"results/data/{STUDY.data}/manifest.json",
    output:
        numbers="results/runs/{run}/perplexity/{evaluation}/{steps}.parquet",
        record="results/runs/{run}/perplexity/{evaluation}/{steps}.json",
    log:
        "results/runs/{run}/perplexity/{evaluation}/{steps}.log",
    conda:
        "../../envs/evaluation.yaml"
    resources:
        **STUDY.evaluation_resources(),
    params:
        code=STUDY.evaluation_codes("perplexity"),
    shell:
        "exec python -m longshort.evaluation.perplexity --spec {input.spec:q} --data {input.data:q} --run {input.run:q}"
        " --steps {wildcards.steps:q} --out {output.numbers:q} --code {params.code:q} > {log:q} 2>&1"


rule misalignment:
    input:
        spec="results/evaluations/{evaluation}/spec.json",
        run="results/runs/{run}/training/{steps}.json",
        data=f"results/data/{STUDY.data}/manifest.json",
    output:
        numbers="results/runs/{run}/misalignment/{evaluation}/{steps}.parquet",
        record="results/runs/{run}/misalignment/{evaluation}/{steps}.json",
    log:
        "results/runs/{run}/misalignment/{evaluation}/{steps}.log",
    conda:
        "../../envs/evaluation.yaml"
    resources:
        **STUDY.evaluation_resources(),
    params:
        code=STUDY.evaluation_codes("misalignment"),
    shell:
        "exec python -m longshort.evaluation.misalignment --spec {input.spec:q} --data {input.data:q} --run {input.run:q}"
        " --steps {wildcards.steps:q} --out {output.numbers:q} --code {params.code:q} > {log:q} 2>&1"


rule longbench_e:
    input:
        spec="results/evaluations/{evaluation}/spec.json",
        run="results/runs/{run}/training/{steps}.json",
        data=f"results/data/{STUDY.data}/manifest.json",
        tasks=STUDY.items(),
    output:
        numbers="results/runs/{run}/longbench_e/{evaluation}/{steps}.parquet",
        record="results/runs/{run}/longbench_e/{evaluation}/{steps}.json",
        predictions="results/runs/{run}/longbench_e/{evaluation}/{steps}.items.parquet",
    log:
        "results/runs/{run}/longbench_e/{evaluation}/{steps}.log",
    conda:
        "../../envs/evaluation.yaml"
    resources:
        **STUDY.evaluation_resources(),
    params:
        code=STUDY.evaluation_codes("longbench_e"),
    shell:
        "exec python -m longshort.evaluation.longbench --spec {input.spec:q} --data {input.data:q} --run {input.run:q}"
        " --steps {wildcards.steps:q} --out {output.numbers:q} --items {input.tasks:q} --code {params.code:q} > {log:q} 2>&1"


rule harness:
    input:
        spec="results/evaluations/{evaluation}/spec.json",
        run="results/runs/{run}/training/{steps}.json",
        data=f"results/data/{STUDY.data}/manifest.json",
        tasks=STUDY.harness_files(),
    output:
        numbers="results/runs/{run}/harness/{evaluation}/{steps}.parquet",
        record="results/runs/{run}/harness/{evaluation}/{steps}.json",
        answers="results/runs/{run}/harness/{evaluation}/{steps}.items.parquet",
    log:
        "results/runs/{run}/harness/{evaluation}/{steps}.log",
    conda:
        "../../envs/evaluation.yaml"
    resources:
        **STUDY.evaluation_resources(),
    params:
        code=STUDY.evaluation_codes("harness"),
    shell:
        "exec python -m longshort.evaluation.harness --spec {input.spec:q} --data {input.data:q} --run {input.run:q}"
        " --steps {wildcards.steps:q} --out {output.numbers:q} --items {input.tasks:q} --code {params.code:q} > {log:q} 2>&1"
