"""Every arm of config/arms.yaml trains for real, and used the alpha and the loss that it says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from longshort.data import __main__ as data_stage
from longshort.data.streams import extra_length
from longshort.data.windows import TokenStream, Windows, collate
from longshort.jobs import ownership
from longshort.study import resolve
from longshort.training import launch, log, trainer, unpickling
from tests.support.project import ROOT, TINY, write_corpus

# Those of any study: the others change a context extension.
ARMS = yaml.safe_load((ROOT / "config" / "arms.yaml").read_text())["arms"]
ARMS = {name: arm for name, arm in ARMS.items() if "rope" not in arm}
# One of each kind, which `make test` trains.
FEW = ("baseline", "constant", "hidden+output", "step-linear", "overlap-last")
STEPS, LENGTH, L_TEST = 3, 32, 128
ALPHA = 0.8  # of the study

# alpha(u) of each schedule, written out: u = 0, 1/2, 1.
EXPONENTIAL = [0.1, math.sqrt(0.1), 1.0]
EXTRAS = [extra_length(0, step, 16) for step in range(STEPS)]
SCHEDULES = {
    "step-linear": [0.0, 1.0, 2.0],
    "step-cosine": [0.0, 1.0, 2.0],
    "step-exponential": [value * 3 / sum(EXPONENTIAL) for value in EXPONENTIAL],
    "step-linear-1-to-8": [0.125, 0.5625, 1.0],
    "step-linear-1-to-8-control": [0.5625] * STEPS,
    "view-ratio": [(LENGTH + extra) * STEPS / (STEPS * LENGTH + sum(EXTRAS)) for extra in EXTRAS],
    "view-gap": [extra * STEPS / sum(EXTRAS) for extra in EXTRAS],
    **{
        f"{kind}-{times:g}x": [times] * STEPS
        for kind in ("alpha", "ratio")
        for times in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    },
}
MAX_EXTRA = {"sampling-quarter": [8] * STEPS, "sampling-full": [31] * STEPS}
MAX_EXTRA |= {"curriculum": [4, 10, 16], "curriculum-control": [10] * STEPS}


@pytest.fixture(scope="module")
def in_this_process() -> Iterator[pytest.MonkeyPatch]:
    """Trainings are; what they need of the environment is of no other test's."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield monkeypatch


@pytest.fixture(scope="module")
def prepared(
    in_this_process: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> tuple[resolve.ResolvedStudy, Path]:
    """All arms resolved, the corpus tokenised, the base made; DeepSpeed with one process in this one."""
    folder = tmp_path_factory.mktemp("arms")
    (folder / "config" / "studies").mkdir(parents=True)
    for name in ("arms.yaml", "deepspeed"):
        (folder / "config" / name).symlink_to(ROOT / "config" / name)
    write_corpus(folder / "corpus")
    values = {
        **TINY,
        "lengths": {"train": LENGTH, "test": L_TEST},
        "training": {"steps": STEPS, "batch": 4, "micro_batch": 2, "learning_rate": 0.01},
        "checkpoints": [STEPS],
        # Trained long enough that the two views differ by more than rounding; three hidden depths need four blocks.
        "model": {
            **TINY["model"],
            "architecture": {**TINY["model"]["architecture"], "layers": 4},
            "training": {"steps": 40, "batch": 4, "learning_rate": 0.03},
        },
        "alignment": {"alpha": ALPHA, "divergence": "symmetric-kl"},
        "arms": list(ARMS),
    }
    values["data"] = {**TINY["data"], "corpus": {"kind": "text", "path": str(folder / "corpus")}}
    (folder / "config" / "studies" / "all.yaml").write_text(yaml.safe_dump(values))
    resolved = resolve.load("all", folder / "config")
    data_stage.prepare(resolved.study.data, folder / "data")
    for name, value in {**launch.environment(1), **launch.ALONE}.items():
        in_this_process.setenv(name, value)
    unpickling.allow_the_states_of_deepspeed()
    train(resolved, folder, resolved.bases[0], resolved.base_steps, None)
    return resolved, folder


def train(
    resolved: resolve.ResolvedStudy, folder: Path, run: str, steps: int, base: str | None, to: str = "", **changes: int
) -> list[dict]:
    """Changes are those of the job; `to`: the work folder, if not the run's own."""
    work = folder / (to or run)
    work.mkdir(exist_ok=True)
    (work / "spec.json").write_text(resolved.texts[run])
    job = {
        "spec": str(work / "spec.json"),
        "data": str(folder / "data"),
        "base": base,
        "work": str(work),
        "micro_batch": 2,
        "chunk_size": 0,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "resume": 0,
        "targets": [steps],
        "keep": [steps],
        "checkpoint_minutes": 30,
        "report_to": [],
        "run_name": run,
    }
    with ownership.sole_owner(work) as owner:
        trainer.train({**job, **changes, "owner": owner.token})
    return [json.loads(line) for line in (work / log.NAME).read_text().splitlines()]


# What the names of arms say.
NAMED = {
    **{f"divergence-{kind}": {"divergence": kind} for kind in ("sce", "symmetric-kl", "kl", "reverse-kl", "js", "l2")},
    **{f"stop-gradient-{view}": {"stop_gradient": view} for view in ("first", "second")},
    **{f"alpha-{alpha}": {"alpha": alpha} for alpha in (0.1, 0.3, 0.5, 1.0)},
    **{
        f"hidden-{name}": {"alpha": 0, "hidden": {"alpha": 1.0, "layers": layers}}
        for name, layers in {"quarter": [0.25], "three-quarters": [0.75], "all": [0.25, 0.5, 0.75]}.items()
    },
    **{
        f"hidden-{distance}": {"alpha": 0, "hidden": {"alpha": 1.0, "layers": [0.5], "distance": distance}}
        for distance in ("cosine", "logit-lens")
    },
    "overlap-last": {"overlap": {"kind": "last"}},
    "overlap-last-k": {"overlap": {"kind": "last-k", "k": 16}},
}


def test_an_arm_does_what_its_name_says() -> None:
    """Each is trained below by what the file says of it, which would hold of a wrong word there, too."""
    assert {arm: ARMS[arm]["alignment"] for arm in NAMED} == NAMED


@pytest.mark.parametrize("arm", [arm if arm in FEW else pytest.param(arm, marks=pytest.mark.wide) for arm in ARMS])
def test_every_arm_trains_with_the_alpha_and_the_loss_of_its_formula(
    prepared: tuple[resolve.ResolvedStudy, Path], arm: str
) -> None:
    resolved, folder = prepared
    run = resolved.arm_runs[arm][0]
    base = folder / resolved.bases[0] / f"checkpoint-{resolved.base_steps}"
    path = folder / run / log.NAME
    if path.exists():  # an equal arm came before
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        micro_batch = min(2, resolved.runs[run].training.batch)
        rows = train(resolved, folder, run, STEPS, str(base), micro_batch=micro_batch)

    patch = ARMS[arm].get("alignment", {})
    multipliers = SCHEDULES.get(arm, [1.0] * STEPS)
    alpha, hidden = patch.get("alpha", ALPHA), patch.get("hidden") or {}
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row, multiplier in zip(rows, multipliers, strict=True):
        assert row["alpha_output"] == pytest.approx(alpha * multiplier, abs=1e-9)
        assert row["alpha_hidden"] == pytest.approx(hidden.get("alpha", 0.0) * multiplier, abs=1e-9)
        assert ("divergence" in row) == (alpha > 0) and ("hidden" in row) == bool(hidden)  # no 0 for what is unmeasured
        expected = row["ce"] + row["alpha_output"] * row.get("divergence", 0.0)
        expected += row["alpha_hidden"] * row.get("hidden", 0.0)
        assert row["loss"] == pytest.approx(expected, rel=1e-5)
    first = first_step(resolved, folder, base, patch, arm)
    assert rows[0]["ce"] == pytest.approx(first["ce"], rel=1e-4)
    if alpha:
        assert rows[0]["divergence"] == pytest.approx(first["divergence"], rel=1e-3)
    if hidden:
        assert rows[0]["hidden"] == pytest.approx(first["hidden"], rel=1e-3)


def first_step(resolved: resolve.ResolvedStudy, folder: Path, base: Path, patch: dict, arm: str) -> dict[str, float]:
    """The parts of the first batch's loss from the base's weights: plain forwards in float64, loops over positions."""
    max_extra: list[int] | None = MAX_EXTRA.get(arm, [16] * STEPS)
    stream = TokenStream(folder / "data" / "train", 256)
    rows, length = 4, LENGTH
    if "lengths" in ARMS[arm]:  # longer, hence fewer windows: as many tokens
        length, rows, max_extra = L_TEST, LENGTH * 4 // L_TEST, [L_TEST // 2] * STEPS
    windows = Windows(stream, length=length, seed=0, batch=rows, steps=STEPS, max_extra=max_extra)
    samples = [windows[sample] for sample in range(rows)]
    if patch.get("views") == 1:  # twice the windows, as many tokens: those of the slots that the others read
        order, offset = windows._epoch(0)
        starts = [offset + (2 * slot + half) * LENGTH for slot in order[:rows].tolist() for half in (0, 1)]
        samples = [{"window": stream.read(start, LENGTH + 1), "extra": 0, "sample": 0} for start in starts]
    batch = collate(samples, length)
    extra = int(batch["extra"][0])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    with torch.no_grad():
        outs = [model(input_ids=view, output_hidden_states=True) for view in batch["inputs"]]
    log_probs = [out.logits.log_softmax(-1) for out in outs]
    nll = [-lp.gather(-1, t[..., None]) for lp, t in zip(log_probs, batch["targets"], strict=True)]

    def on_overlap(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept = {"last": 1, "last-k": 16}.get(patch.get("overlap", {}).get("kind", "all"), LENGTH)
        return a[:, extra:][:, -kept:], b[:, : length - extra][:, -kept:]

    def of_logits(a: torch.Tensor, b: torch.Tensor, kind: str) -> float:
        p, q = a.softmax(-1), b.softmax(-1)
        kl, reverse = (p * (p / q).log()).sum(-1), (q * (q / p).log()).sum(-1)
        m = (p + q) / 2
        js = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
        sce = -(p * q.log()).sum(-1) - (q * p.log()).sum(-1)
        values = {"kl": kl, "reverse-kl": reverse, "symmetric-kl": kl + reverse, "js": js, "sce": sce}
        values["l2"] = ((p - q) ** 2).sum(-1)
        return float(values[kind].mean())

    kind = patch.get("divergence", "symmetric-kl")
    parts = {"ce": float(torch.cat(nll).mean()), "hidden": 0.0}
    if len(outs) == 1:
        assert batch["inputs"].numel() == 2 * 4 * LENGTH
        return parts
    parts["divergence"] = of_logits(*on_overlap(outs[0].logits, outs[1].logits), kind)
    if patch.get("hidden"):
        parts["hidden"] = 0.0
        blocks = [round(4 * depth) for depth in patch["hidden"]["layers"]]
        for block in blocks:
            a, b = on_overlap(outs[0].hidden_states[block], outs[1].hidden_states[block])
            distance = patch["hidden"].get("distance", "mse")
            if distance == "logit-lens":
                found = of_logits(*(model.lm_head(model.model.norm(x)) for x in (a, b)), kind)
            elif distance == "cosine":
                found = float((1 - torch.cosine_similarity(a, b, dim=-1)).mean())
            else:
                unit = [x / x.square().mean(-1, keepdim=True).sqrt() for x in (a, b)]
                found = float((unit[0] - unit[1]).square().mean())
            parts["hidden"] += found / len(blocks)
    return parts


@pytest.mark.parametrize("arm", ["view-ratio", pytest.param("curriculum", marks=pytest.mark.wide)])
def test_what_depends_on_the_draws_depends_on_nothing_else(
    prepared: tuple[resolve.ResolvedStudy, Path], arm: str
) -> None:
    """Neither on the micro-batch nor on an interruption; a training that was resumed is the same to the last bit."""
    resolved, folder = prepared
    run, base = resolved.arm_runs[arm][0], str(folder / resolved.bases[0] / f"checkpoint-{resolved.base_steps}")
    once = train(resolved, folder, run, STEPS, base, to=f"{arm}-once")
    alone = train(resolved, folder, run, STEPS, base, to=f"{arm}-alone", micro_batch=1)
    train(resolved, folder, run, STEPS - 1, base, to=f"{arm}-resumed")
    resumed = train(resolved, folder, run, STEPS, base, to=f"{arm}-resumed", resume=STEPS - 1)
    assert len({row["alpha_output"] for row in once}) == (STEPS if arm == "view-ratio" else 1)
    for part in ("alpha_output", "ce", "divergence", "loss"):
        assert [row[part] for row in resumed] == [row[part] for row in once]
        assert [row[part] for row in alone] == pytest.approx([row[part] for row in once], rel=1e-4)
    weights = [folder / f"{arm}-{how}" / f"checkpoint-{STEPS}" / "model.safetensors" for how in ("once", "resumed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.wide
def test_arms_end_with_different_weights(prepared: tuple[resolve.ResolvedStudy, Path]) -> None:
    """No option is without effect: what is another run has other weights, but for those that cannot differ."""
    resolved, folder = prepared
    base = str(folder / resolved.bases[0] / f"checkpoint-{resolved.base_steps}")
    for run in {run for runs in resolved.arm_runs.values() for run in runs.values()}:
        if not (folder / run).exists():  # where this test runs by itself
            train(resolved, folder, run, STEPS, base, micro_batch=min(2, resolved.runs[run].training.batch))
    finished = {run: folder / run / f"checkpoint-{STEPS}" / "model.safetensors" for run in resolved.runs}
    contents = {run: path.read_bytes() for run, path in finished.items() if path.exists()}
    assert len(contents) == len({run for runs in resolved.arm_runs.values() for run in runs.values()})
    assert len(set(contents.values())) == len(contents)
