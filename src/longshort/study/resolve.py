"""From configuration files to runs: reads a study, and resolves every arm x seed to its specification.

Imports no torch and no workflow engine: the Snakefile imports it, and every job parses the Snakefile.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from longshort.alignment import schedules
from longshort.alignment.settings import HiddenTerm, OutputTerm, TwoViews
from longshort.errors import StudyError
from longshort.identity.accepted import accepted_changes
from longshort.identity.spec import canonical, digest, dumps
from longshort.metrics.catalog import METRICS
from longshort.metrics.settings import LongEvaluator, LongPPL
from longshort.records import layout
from longshort.results.columns import BEST_ALPHA, KINDS
from longshort.study import checks, external, lengths, resources
from longshort.study.bases import bases_of, extended_of, long_base_of
from longshort.study.deepspeed import read_deepspeed
from longshort.study.files import merge, yaml_mapping
from longshort.study.parsing import parse, parse_rope, short
from longshort.study.run import Evaluation, RunSpec
from longshort.study.schema import Alignment, Arms, Override, Study, Table, Training
from longshort.study.wiring import ResolvedStudy

Read = TypeVar("Read")
CONFIG = Path("config")
# The kind of the study that is none of language models: longshort.synthetic.
SYNTHETIC = "synthetic"
# Of two, one is the best at every length, and both are at the edge.
FEWEST_ALPHAS = 3


def load(name: str, config: Path = CONFIG, here: bool = True) -> ResolvedStudy:
    """Reads, checks and resolves a study of language models.

    Args:
        here: models, corpora and tasks in folders are looked at, too, and have to be there.

    Raises:
        StudyError: with study, arm, key, value and remedy of every mistake found.
    """
    content = content_of(name, config)
    if content.get("kind") == SYNTHETIC:
        raise StudyError(
            f"study {name} is synthetic: it is run by `snakemake all --cores 2 --config study={name}` and read in "
            f"{layout.study_folder(name)}; only studies of language models have this command"
        )
    return of_content(name, content, config, here)


def of_content(name: str, content: dict[str, Any], config: Path = CONFIG, here: bool = True) -> ResolvedStudy:
    """Checks and resolves what a file of a study of language models holds; arguments and errors are those of load."""
    arms = parse(Arms, yaml_mapping(config / "arms.yaml"), f"{config}/arms.yaml", None)
    checks.check_arms(f"{config}/arms.yaml", arms)
    study = parse(Study, content, f"study {name}", None)
    tables = _tables(study, arms)
    checks.check_study(name, study, arms, tables)
    if here:
        external.check(f"study {name}", study)
    resolved = _resolve(name, study, arms, tables, config)
    checks.check_columns(resolved)
    if here and study.model.kind == "pretrained":
        for arm, runs in resolved.arm_runs.items():
            if any(
                alignment and alignment.hidden for run in runs.values() if (alignment := resolved.runs[run].alignment)
            ):
                external.check_blocks(f"study {name}, arm {arm}", study.model)
    return resolved


def names(config: Path = CONFIG) -> list[str]:
    """Of all studies."""
    return sorted(path.stem for path in (config / "studies").glob("*.yaml"))


def nothing_here(config: Path = CONFIG) -> str:
    """What to say where there is no study at all."""
    return f"{config}/studies holds no study in {Path.cwd()}; go to the folder that the repository was cloned into"


def content_of(name: str, config: Path = CONFIG) -> dict[str, Any]:
    """What a study's file holds, whatever kind of study it is.

    Raises:
        StudyError: there is no such study, its name is none, or its file is no YAML.
    """
    studies = names(config)
    if name not in studies:
        close = difflib.get_close_matches(str(name), studies, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        holds = f"{config}/studies holds {', '.join(studies)}" if studies else nothing_here(config)
        raise StudyError(f"study {name!r} is unknown: {hint}{holds}")
    check_name(name, config)
    return yaml_mapping(config / "studies" / f"{name}.yaml")


def check_name(name: str, config: Path = CONFIG) -> None:
    """
    Raises:
        StudyError: it can be no name of a study.
    """
    checks.check_name(f"{config}/studies/{name}.yaml", name)
    if name in layout.SHARED:
        raise StudyError(
            f"study {name!r} would write into {layout.study_folder(name)}, which all studies share; "
            "call its file otherwise"
        )


def _tables(study: Study, arms: Arms) -> dict[str, Table]:
    """The study's tables: the shared ones that have something to show here, and its own."""
    tables = {}
    for name, table in arms.tables.items():
        if (metric := KINDS[table.columns]) is not None and metric not in study.evaluations.asked:
            continue
        if table.arms == "all":
            tables[name] = table
            continue
        rows = [arm for arm in table.arms if arm in study.arms]
        if table.columns == BEST_ALPHA and len(rows) < FEWEST_ALPHAS:
            continue
        if set(rows) - {"baseline", "constant"}:
            tables[name] = table.model_copy(update={"arms": rows})
    return {**tables, **study.tables}


def _resolve(name: str, study: Study, arms: Arms, tables: dict[str, Table], config: Path) -> ResolvedStudy:
    base_specs, base_steps = bases_of(f"study {name}: model.training", study, config)
    runs: dict[str, RunSpec] = {}
    texts: dict[str, str] = {}
    bases: dict[int, str] = {}
    extended_bases: dict[int, str] = {}
    for seed, spec in base_specs.items():
        bases[seed], text = _named(spec)
        runs.setdefault(bases[seed], spec)
        texts[bases[seed]] = text
        if (of_extended := extended_of(study, bases[seed], spec)) is not None:
            extended_bases[seed], text = _named(of_extended)
            runs.setdefault(extended_bases[seed], of_extended)
            texts[extended_bases[seed]] = text
    long_base = None
    if (of_long_base := long_base_of(f"study {name}", study, config)) is not None:
        long_base, text = _named(of_long_base)
        runs[long_base], texts[long_base] = of_long_base, text
    # The study's mistake, not its first arm's.
    parse(Alignment, merge(arms.alignment, study.alignment), f"study {name}", "alignment")
    arm_runs: dict[str, dict[int, str]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for arm in study.arms:
        where = f"study {name}, arm {arm}"
        of_arm, alignment, settings[arm] = _arm(where, arm, study, arms, config)
        arm_runs[arm] = {}
        for seed in study.seeds:
            steps = of_arm["training"].steps
            length = of_arm["length"]
            two_views = _two_views(where, alignment, study, length, steps, seed) if alignment.views == 2 else None
            spec = RunSpec(data=study.data, seed=seed, base=bases[seed], alignment=two_views, **of_arm)
            run, text = _named(spec)
            runs.setdefault(run, spec)
            texts[run] = text
            arm_runs[arm][seed] = run
    evaluations: dict[str, tuple[str, Evaluation]] = {}
    for evaluation in _evaluations(study, long_base, base_steps):
        identity, texts[identity] = _named(evaluation)
        evaluations[evaluation.metric] = (identity, evaluation)
    data, texts[data] = _named(study.data)
    return ResolvedStudy(
        name=name,
        study=study,
        arms={arm: arms.arms[arm] for arm in study.arms},
        runs=runs,
        arm_runs=arm_runs,
        bases=bases,
        extended_bases=extended_bases,
        long_base=long_base,
        base_steps=base_steps,
        data=data,
        evaluations=evaluations,
        tables=tables,
        texts=texts,
        study_settings=_study_settings(study),
        settings=settings,
        accepted=or_study_error(accepted_changes),
        site=or_study_error(resources.site),
    )


def _arm(
    where: str, name: str, study: Study, arms: Arms, config: Path
) -> tuple[dict[str, Any], Alignment, dict[str, Any]]:
    """What all runs of an arm have in common, its alignment, whose values depend on the seed, and its settings."""
    arm, override = arms.arms[name], study.overrides.get(name, Override())
    alignment_values, training_values = arms.alignment, study.training.model_dump()
    for patch in (study.alignment, arm.alignment, override.alignment):
        alignment_values = merge(alignment_values, patch)
    for patch in (arm.training, override.training):
        training_values = merge(training_values, patch)
    alignment = parse(Alignment, alignment_values, where, "alignment")
    training = parse(Training, training_values, where, "training")
    for step in study.checkpoints:
        if not 0 < step <= training.steps:
            raise StudyError(
                f"{where}: checkpoints = {step}: outside 1..{training.steps} (training.steps); lower it or train longer"
            )
    length = lengths.of_arm(where, arm, study)
    own_micro_batch = "micro_batch" in {**arm.training, **override.training}
    training = lengths.same_tokens(where, "training", training, study.lengths.train, length, micro=not own_micro_batch)
    deepspeed = read_deepspeed(where, training, config)
    checks.check_attention(where, training, study, length)
    checks.check_adapter(where, training, study, deepspeed)
    if alignment.views == 1:  # as many tokens a step, and in each forward, as arms with two views
        micro_batch = training.micro_batch and 2 * training.micro_batch
        training = training.model_copy(update={"batch": 2 * training.batch, "micro_batch": micro_batch})
    extension = parse_rope(study.model.rope, arm.rope, where)
    of_arm = {"length": length, "rope": extension, "training": training, "deepspeed": deepspeed}
    settings = {"alignment": canonical(alignment), "training": canonical(training)}
    if arm.lengths is not None:
        settings["lengths"] = {"train": length}
    return of_arm, alignment, settings | ({"rope": canonical(extension)} if arm.rope else {})


def _evaluations(study: Study, long_base: str | None, base_steps: int) -> Iterator[Evaluation]:
    for metric, settings in study.evaluations.asked.items():
        if isinstance(settings, LongPPL) and isinstance(settings.evaluator, LongEvaluator):
            evaluator = settings.evaluator.model_copy(update={"run": long_base, "steps": str(base_steps)})
            settings = settings.model_copy(update={"evaluator": evaluator})
        yield Evaluation(
            metric=metric,
            length=study.lengths.train,
            data=study.data,
            precision=study.evaluations.precision,
            settings=METRICS[metric].resolved(settings, study.model.max_length),
        )


def or_study_error(read: Callable[[], Read]) -> Read:
    try:
        return read()
    except ValueError as error:
        raise StudyError(str(error)) from None


def _study_settings(study: Study) -> dict[str, Any]:
    """What all arms share, as a plan compares it with what it was."""
    return {"data": canonical(study.data), "model": canonical(study.model), "lengths": canonical(study.lengths)}


def _named(spec: BaseModel) -> tuple[str, str]:
    """A specification's name, the hash of its canonical form, and its text: one pass over its values for both."""
    content = canonical(spec)
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return digest(dumps(content)), text


def _two_views(where: str, alignment: Alignment, study: Study, length: int, steps: int, seed: int) -> TwoViews:
    max_extra = _ranges(where, alignment, length, steps)
    try:
        if alignment.schedule.kind in ("view-ratio", "view-gap"):
            multipliers = _by_views(alignment.schedule.kind, max_extra, length, steps, seed)
        else:
            multipliers = _multipliers(where, alignment.schedule, study, length, steps)
        finite = all(math.isfinite(value) for value in multipliers)
    except (OverflowError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, StudyError):
            raise
        finite = False
    if not finite:
        raise StudyError(
            f"{where}: alignment.schedule = {short(canonical(alignment.schedule))}: its values leave the range of "
            "numbers; give a lower power, start or end"
        )
    output = hidden = None
    # A weight of 0 at every step is no term, whether alpha or the schedule says so.
    if weights := _weights(where, alignment.alpha, multipliers):
        output = OutputTerm(
            alpha=weights,
            divergence=alignment.divergence,
            stop_gradient=alignment.stop_gradient,
        )
    if alignment.hidden is not None and (weights := _weights(where, alignment.hidden.alpha, multipliers)):
        lens = alignment.hidden.distance == "logit-lens"
        hidden = HiddenTerm(
            alpha=weights,
            layers=_blocks(where, alignment.hidden.layers, study.model.layers),
            distance=alignment.hidden.distance,
            divergence=alignment.divergence if lens else None,
            # A distance of states has no targets to hold constant.
            stop_gradient="none" if alignment.stop_gradient == "targets" and not lens else alignment.stop_gradient,
        )
    # Without a term to weigh nothing of the overlap is used: all such arms are the same run.
    overlap = alignment.overlap if output or hidden else None
    return TwoViews(
        max_extra=max_extra, sampling_per=alignment.sampling_per, overlap=overlap, output=output, hidden=hidden
    )


def _ranges(where: str, alignment: Alignment, length: int, steps: int) -> int | list[int]:
    """The sampling range of l_extra in tokens: of each step, or one for all."""

    def tokens(share: float) -> int:
        # 0.29 * 100 is 28.999...: a product that is a whole number but for its last bit is that number.
        return min(math.floor(share * length + 1e-9), length - 1)

    start, end = alignment.sampling_start or alignment.sampling_range, alignment.sampling_range
    for key, share in (("sampling_range", end), ("sampling_start", start)):
        if tokens(share) < 1:
            raise StudyError(
                f"{where}: alignment.{key} = {share:g}: less than one token of lengths.train {length}; "
                f"give {math.ceil(1e6 / length) / 1e6:g} or more"
            )
    ranges = [round(schedules.linear(step, steps, tokens(start), tokens(end))) for step in range(steps)]
    return ranges[0] if len(set(ranges)) == 1 else ranges


def _by_views(kind: str, max_extra: int | list[int], length: int, steps: int, seed: int) -> list[float]:
    """The multipliers of a schedule that goes by the l_extra of each step, which the training draws alike."""
    from longshort.data.streams import extra_length  # numpy is slow to import, and other studies need none

    most = max_extra if isinstance(max_extra, list) else [max_extra] * steps
    extras = [extra_length(seed, step, most[step]) for step in range(steps)]
    return {"view-ratio": schedules.view_ratio, "view-gap": schedules.view_gap}[kind](extras, length)


def _weights(where: str, alpha: float, multipliers: list[float]) -> float | list[float]:
    products = [alpha * multiplier for multiplier in multipliers]
    if not all(math.isfinite(value) for value in products):
        raise StudyError(f"{where}: alignment.alpha = {alpha:g} times its schedule is no number; lower one of the two")
    values = schedules.rounded(products)
    return values[0] if len(set(values)) == 1 else values


def _multipliers(where: str, schedule: Any, study: Study, l_train: int, steps: int) -> list[float]:
    if schedule.kind == "constant":
        return [schedule.times] * steps
    if schedule.kind == "mean-of":
        return [schedules.mean(_multipliers(where, schedule.schedule, study, l_train, steps))] * steps
    if schedule.kind in ("ratio", "ratio-curriculum"):
        l_test = schedule.l_test or study.lengths.test
        if l_test is None:
            raise StudyError(
                f"{where}: alignment.schedule.l_test = null: a {schedule.kind} schedule needs a test length; "
                "give l_test there or lengths.test in the study"
            )
        if schedule.kind == "ratio":
            return [schedules.ratio(l_test, l_train, schedule.power)] * steps
        return [schedules.ratio_curriculum(step, steps, l_test, l_train, schedule.power) for step in range(steps)]
    shape = {"linear": schedules.linear, "cosine": schedules.cosine, "exponential": schedules.exponential}[
        schedule.kind
    ]
    values = [shape(step, steps, schedule.start, schedule.end) for step in range(steps)]
    return values if schedule.mean is None else schedules.scaled_to_mean(values, schedule.mean)


def _blocks(where: str, layers: list[float], depth: int) -> list[int]:
    """The numbers of the blocks whose outputs are aligned, as alignment.hidden.layers names them.

    Args:
        layers: each is the number of a block, from 1 to depth - 1, or a fraction of the depth between 0 and 1, which
            stands for the nearest of these blocks. The last block is none: the output term aligns what it gives.
        depth: how many blocks the model has.

    Raises:
        StudyError: there is no such block, or one is named twice.
    """
    blocks: list[int] = []
    for layer in layers:
        block = max(1, min(depth - 1, round(layer * depth))) if 0 < layer < 1 else int(layer)
        if (layer >= 1 and layer != int(layer)) or not 1 <= block <= depth - 1:
            raise StudyError(
                f"{where}: alignment.hidden.layers = {layer:g}: out of range; the model has {depth} blocks, "
                f"use 1..{depth - 1}, or a fraction of the depth between 0 and 1"
            )
        if block in blocks:
            raise StudyError(
                f"{where}: alignment.hidden.layers = {layers}: two of them are block {block}; name it once"
            )
        blocks.append(block)
    return blocks
