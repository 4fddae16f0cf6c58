localrules:
    specification,


rule specification:
    input:
        "workflow/templates/spec.json",
    output:
        layout.spec("{kind}", "{id}"),
    log:
        layout.spec_log("{kind}", "{id}"),
    wildcard_constraints:
        kind="|".join(layout.SHARED),
        id="[0-9a-f]{16}",
    params:
        spec=lambda wildcards: STUDY.texts[wildcards.id],
    template_engine:
        "jinja2"
