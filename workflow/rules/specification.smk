localrules:
    specification,


rule specification:
    input:
        "workflow/templates/spec.json",
    output:
        "results/{kind}/{id}/spec.json",
    log:
        "results/{kind}/{id}/spec.log",
    wildcard_constraints:
        kind="data|runs|evaluations",
        id="[0-9a-f]{16}",
    params:
        spec=lambda wildcards: STUDY.texts[wildcards.id],
    template_engine:
        "jinja2"
