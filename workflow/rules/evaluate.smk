if STUDY.study.needs.are_together:

    TOGETHER = STUDY.measured_together()

    rule evaluate:
        input:
            TOGETHER["inputs"],
            run=layout.training("{run}", "{steps}").record,
            data=layout.data_manifest(STUDY.data),
        output:
            [update(file) for file in TOGETHER["outputs"]],  # what is not due stays as it is
        log:
            layout.evaluations_log("{run}", "{steps}"),
        conda:
            "../../envs/evaluation.yaml"
        resources:
            **STUDY.evaluation_resources(),
        params:
            metrics=TOGETHER["metrics"],
        shell:
            "exec python -m longshort.evaluation --data {input.data:q} --run {input.run:q} --steps {wildcards.steps:q}"
            " {params.metrics:q} > {log:q} 2>&1"


for metric in METRICS.values():
    if STUDY.study.needs.are_together or STUDY.jobs_of(metric.name) > 1:
        continue
    if metric.name not in STUDY.evaluations:
        continue

    rule:
        name:
            metric.name
        input:
            spec=layout.spec(layout.EVALUATIONS, "{evaluation}"),
            run=layout.training("{run}", "{steps}").record,
            data=layout.data_manifest(STUDY.data),
            tasks=STUDY.items(metric.name),
        output:
            **metric.kept,
            numbers=metric.stage.numbers,
            record=metric.stage.record,
        log:
            metric.stage.log,
        conda:
            "../../envs/evaluation.yaml"
        resources:
            **STUDY.evaluation_resources(),
        params:
            code=STUDY.evaluation_codes(metric.name),
            module=metric.module,  # the command below is filled in when a job runs, after the loop
        shell:
            "exec python -m {params.module:q} --spec {input.spec:q} --data {input.data:q} --run {input.run:q}"
            " --steps {wildcards.steps:q} --out {output.numbers:q} --items {input.tasks:q} --code {params.code:q} > {log:q} 2>&1"


for metric in METRICS.values():
    if STUDY.study.needs.are_together or STUDY.jobs_of(metric.name) == 1:
        continue

    rule:
        name:
            f"{metric.name}_share"
        input:
            spec=layout.spec(layout.EVALUATIONS, "{evaluation}"),
            run=layout.training("{run}", "{steps}").record,
            data=layout.data_manifest(STUDY.data),
            tasks=STUDY.items(metric.name),
        output:
            metric.stage.share("{share}", STUDY.jobs_of(metric.name)).record,
        log:
            metric.stage.share("{share}", STUDY.jobs_of(metric.name)).log,
        wildcard_constraints:
            share=r"\d+",
        conda:
            "../../envs/evaluation.yaml"
        resources:
            **STUDY.evaluation_resources(),
        params:
            code=STUDY.evaluation_codes(metric.name),
            metric=metric.name,
            jobs=STUDY.jobs_of(metric.name),
        shell:
            "exec python -m longshort.evaluation.sharing --metric {params.metric:q} --share {wildcards.share:q}-of-{params.jobs}"
            " --spec {input.spec:q} --data {input.data:q} --run {input.run:q} --steps {wildcards.steps:q} --out {output:q}"
            " --items {input.tasks:q} --code {params.code:q} > {log:q} 2>&1"

    rule:
        name:
            metric.name
        input:
            spec=layout.spec(layout.EVALUATIONS, "{evaluation}"),
            run=layout.training("{run}", "{steps}").record,
            data=layout.data_manifest(STUDY.data),
            tasks=STUDY.items(metric.name),
            shares=STUDY.shares(metric.name, metric.stage),
        output:
            **metric.kept,
            numbers=metric.stage.numbers,
            record=metric.stage.record,
        log:
            metric.stage.log,
        conda:
            "../../envs/evaluation.yaml"
        resources:
            **STUDY.evaluation_resources(),
        params:
            code=STUDY.evaluation_codes(metric.name),
            module=metric.module,
        shell:
            "{{ python -m longshort.evaluation.sharing --metric {rule} --together"
            " --spec {input.spec:q} --data {input.data:q} --run {input.run:q} --steps {wildcards.steps:q}"
            " --items {input.tasks:q} --code {params.code:q} &&"
            " exec python -m {params.module:q} --spec {input.spec:q} --data {input.data:q} --run {input.run:q}"
            " --steps {wildcards.steps:q} --out {output.numbers:q} --items {input.tasks:q} --code {params.code:q}; }} > {log:q} 2>&1"


if "longppl" in STUDY.evaluations:

    rule key_tokens:
        input:
            data=layout.data_manifest("{data}"),
            evaluator=STUDY.evaluator_record(),
        output:
            layout.key_tokens(layout.data_folder("{data}"), "{key}").tokens,
            layout.key_tokens(layout.data_folder("{data}"), "{key}").scored,
            record=layout.key_tokens(layout.data_folder("{data}"), "{key}").record,
        log:
            layout.key_tokens(layout.data_folder("{data}"), "{key}").log,
        wildcard_constraints:
            key="[0-9a-f]{16}",
        conda:
            "../../envs/evaluation.yaml"
        resources:
            **STUDY.evaluation_resources(),
        params:
            by=lambda wildcards: STUDY.key_tokens_by(),  # its braces would be wildcards
            code=STUDY.key_tokens()[0].code,
        shell:
            "exec python -m longshort.evaluation.key_tokens --data {input.data:q} --by {params.by:q} --out {output.record:q}"
            " --code {params.code:q} > {log:q} 2>&1"
