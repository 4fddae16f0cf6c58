"""What concerns more than one key of a study: arms, controls, names, tables, columns, and what excludes what."""

from __future__ import annotations

import difflib
from typing import Any

from longshort.errors import StudyError
from longshort.identity.spec import NAME
from longshort.metrics.catalog import METRICS
from longshort.metrics.settings import LongEvaluator
from longshort.results.columns import KINDS, columns_of
from longshort.study import external
from longshort.study.files import merge
from longshort.study.parsing import parse, parse_patch, short
from longshort.study.schema import Alignment, Arms, Study, Table, Training
from longshort.study.wiring import ResolvedStudy

# What `longshort tables --show` prints besides tables.
SAID = ("answers", "components")


def check_arms(where: str, arms: Arms) -> None:
    """Every arm, whether a study uses it or not: a mistake is found by who makes it."""
    parse(Alignment, arms.alignment, where, "alignment")
    for name, arm in arms.arms.items():
        check_name(where, name)
        parse(Alignment, merge(arms.alignment, arm.alignment), f"{where}, arm {name}", "alignment")
        parse_patch(Training, arm.training, f"{where}, arm {name}", "training")
        chain = [name]
        while (control := arms.arms[chain[-1]].control) is not None:
            if control not in arms.arms:
                raise StudyError(f"{where}, arm {chain[-1]}: control = {control!r}: no such arm here; add it")
            if control in chain:
                raise StudyError(
                    f"{where}, arm {chain[-1]}: control = {control!r}: an arm is no control of itself, nor of its own "
                    "control; name another arm, or none"
                )
            chain.append(control)
    for name, table in arms.tables.items():
        for arm_name in table.arms if table.arms != "all" else []:
            if arm_name not in arms.arms:
                raise StudyError(
                    f"{where}: tables.{name}.arms = {arm_name!r}: no such arm here; add it, or take it out"
                )


def check_name(where: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise StudyError(
            f"{where}: the name {short(name)} would be a file name; use at most 64 letters, digits and . + _ -, "
            "a letter or a digit first"
        )


def refuse_unknown_arm(where: str, arm: str, arms: Arms) -> None:
    if arm not in arms.arms:
        close = difflib.get_close_matches(arm, arms.arms, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise StudyError(f"{where}: arms = {arm!r}: unknown arm; {hint}config/arms.yaml has {', '.join(arms.arms)}")


def check_study(name: str, study: Study, arms: Arms, tables: dict[str, Table]) -> None:
    """What concerns more than one key."""
    where = f"study {name}"
    for arm in study.arms:
        refuse_unknown_arm(where, arm, arms)
        control = arms.arms[arm].control
        if control is not None and control not in study.arms:
            raise StudyError(f"{where}, arm {arm}: control = {control!r} is not among the study's arms; add it there")
    for arm in study.overrides:
        if arm not in study.arms:
            raise StudyError(
                f"{where}: overrides.{arm}: the study has no such arm; add it to arms or take the override out"
            )
    if not tables:
        raise StudyError(f"{where}: tables is empty and config/arms.yaml has none that fits; give one")
    for table_name, table in tables.items():
        _check_table(where, table_name, table, study, arms)
    _check_claims(where, study, arms)
    _check_lengths(where, study)
    _check_bases(where, study)
    _check_evaluator(where, study)
    _check_jobs(where, study)
    _check_temperatures(where, study)


def _check_temperatures(where: str, study: Study) -> None:
    """They are fitted on validation documents, and would be missed when everything is trained."""
    asked, data = study.evaluations.perplexity, study.data
    if asked and asked.temperature_documents and not data.validation and not data.validation_corpus:
        raise StudyError(
            f"{where}: evaluations.perplexity.temperature_documents = {asked.temperature_documents}: data.validation "
            "is 0, so that there are none to fit a temperature on; give 0 here, or a share there"
        )


def _check_jobs(where: str, study: Study) -> None:
    """Several jobs share out one evaluation only where each evaluation is a job of its own."""
    for metric, settings in study.evaluations.asked.items():
        if (jobs := getattr(settings, "jobs", 1)) > 1 and study.needs.are_together:
            raise StudyError(
                f"{where}: evaluations.{metric}.jobs = {jobs}: the evaluations of a run are one job, as "
                "needs.evaluations is together, or null on CPUs; give apart there, or leave jobs out"
            )


def _check_claims(where: str, study: Study, arms: Arms) -> None:
    """What is claimed is claimed of a number, and of an arm that is compared with another one."""
    for key, value in {"margin": study.margin, "claims": study.claims or None}.items():
        if value is not None and study.primary is None:
            raise StudyError(f"{where}: {key} = {value}: of the primary number, and the study names none; give primary")
    for name in study.claims:
        given = f"{where}: claims = {name!r}"
        if name not in study.arms:
            raise StudyError(f"{given}: the study has no such arm; name one of {', '.join(study.arms)}")
        if arms.arms[name].lengths is not None:
            raise StudyError(f"{given}: it is trained at another length, and compared with no arm; take it out")
        reference = arms.arms[name].control or "baseline"
        if reference not in study.arms or reference == name:
            raise StudyError(
                f"{given}: an arm without a control is compared with the baseline; name another arm"
                + ("" if reference == name else ", or add baseline to arms")
            )


def _check_bases(where: str, study: Study) -> None:
    """The seeds of a study are shared out among its bases."""
    model, seeds = study.model, len(study.seeds)
    several = model.bases is not None if model.kind == "pretrained" else model.seed == "per-run"
    given = f"{where}: model.seeds_per_base = {model.seeds_per_base}"
    if model.seeds_per_base > 1 and not several:
        remedy = "give bases" if model.kind == "pretrained" else "give model.seed per-run"
        raise StudyError(f"{given}: all seeds start from one base; {remedy}, or leave it out")
    if seeds % model.seeds_per_base:
        raise StudyError(f"{given}: the {seeds} seeds cannot be shared out evenly; change one of the two")
    wanted = seeds // model.seeds_per_base
    if model.kind == "pretrained" and model.bases is not None and len(model.bases) != wanted:
        raise StudyError(
            f"{where}: model.bases: {len(model.bases)} bases for {seeds} seeds with {model.seeds_per_base} each; "
            f"give {wanted} bases, or other seeds"
        )


def _check_evaluator(where: str, study: Study) -> None:
    """LongPPL's evaluator `long` is a base of this study."""
    longppl = study.evaluations.longppl
    if longppl is None or not isinstance(longppl.evaluator, LongEvaluator):
        return
    given = f"{where}: evaluations.longppl.evaluator"
    if longppl.evaluator.run or longppl.evaluator.steps:
        raise StudyError(f"{given}: run and steps are found by the program; write only `evaluator: long`")
    if study.model.kind != "trained" or not study.model.long_base:
        remedy = "give model.long_base true" if study.model.kind == "trained" else "name a pretrained model"
        raise StudyError(f"{given} = 'long': the study trains no long base; {remedy}")


def _check_table(where: str, name: str, table: Table, study: Study, arms: Arms) -> None:
    check_name(where, name)
    if name in SAID:
        raise StudyError(f"{where}: tables.{name}: `longshort tables --show {name}` prints something else; rename it")
    for arm in table.arms if table.arms != "all" else []:
        if arm not in study.arms:
            raise StudyError(
                f"{where}: tables.{name}.arms = {arm!r}: the study has no such arm; "
                f"add it to arms, or name one of {', '.join(study.arms)}"
            )
    metric = KINDS[table.columns]
    if metric is not None and metric not in study.evaluations.asked:
        raise StudyError(
            f"{where}: tables.{name}.columns = {table.columns!r}: the study does not measure {metric}; "
            "add it to evaluations, or show the headline"
        )
    rows = study.arms if table.arms == "all" else table.arms
    if table.compare_with == "control" and not any(arms.arms[arm].control for arm in rows):
        raise StudyError(
            f"{where}: tables.{name}.compare_with = 'control': none of its arms has a control; "
            "use baseline, or give an arm of it a control in config/arms.yaml"
        )
    if table.compare_with == "baseline" and "baseline" not in study.arms:
        raise StudyError(f"{where}: tables.{name}: compares with the arm baseline; add baseline to arms")


def _check_lengths(where: str, study: Study) -> None:
    """No length is longer than the model can take."""
    reach = study.model.max_length
    asked = {"lengths.train": study.lengths.train}
    for metric, settings in study.evaluations.asked.items():
        if longest := METRICS[metric].longest(settings.model_dump(), study.lengths.train):
            asked[f"evaluations.{metric}.{longest[0]}"] = longest[1]
    for key, length in asked.items():
        if length > reach:
            raise StudyError(
                f"{where}: {key} = {length} tokens: longer than the model can take (model.max_length {reach}); "
                "lower it, or extend the model"
            )


def check_columns(resolved: ResolvedStudy) -> None:
    """The numbers that the study names are among those that it measures."""
    known = [column.key for column in columns_of(resolved.summary())]
    named = {"primary": resolved.study.primary} if resolved.study.primary is not None else {}
    for place, one in enumerate(resolved.study.published):
        where = f"study {resolved.name}: published[{place}]"
        if one.arm not in resolved.arm_runs:
            raise StudyError(
                f"{where}.arm = {one.arm!r}: the study has no such arm; take the number out, or add the arm"
            )
        if one.step not in resolved.study.checkpoints:
            raise StudyError(f"{where}.step = {one.step}: no checkpoint of the study; give one of checkpoints")
        named[f"published[{place}].column"] = one.column
    for key, column in named.items():
        if column not in known:
            close = difflib.get_close_matches(column, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise StudyError(
                f"study {resolved.name}: {key} = {column!r}: no such column; {hint}there are {', '.join(known)}"
            )


def check_attention(where: str, training: Training, study: Study, length: int) -> None:
    if training.attention == "full":
        return
    if study.model.rope and study.model.rope.kind == "eabf":
        raise StudyError(
            f"{where}: training.attention = {training.attention!r}: model.rope eabf scales the queries of full "
            "attention; use full, or another method"
        )
    if length % 8:  # four groups, shifted by half of one
        raise StudyError(
            f"{where}: training.attention = {training.attention!r}: lengths.train {length} is no multiple of 8, that "
            "is, of four groups of tokens and half a one; change one of the two"
        )


def check_adapter(where: str, training: Training, study: Study, deepspeed: dict[str, Any]) -> None:
    if training.adapter is None:
        return
    given = f"{where}: training.adapter = {training.adapter.kind!r}"
    if study.model.rope and study.model.rope.kind == "clex":
        raise StudyError(
            f"{given}: model.rope clex trains weights of its own, which no adapter holds; train all weights, or take "
            "another method"
        )
    if (deepspeed.get("zero_optimization") or {}).get("stage") == 3:
        raise StudyError(
            f"{given}: training.deepspeed = {training.deepspeed!r} divides the base's weights (ZeRO-3), which "
            "bitsandbytes cannot quantise and an adapter does not need; give zero2"
        )
    external.check_adapter(where, training.adapter.targets, study.model)
