"""What the fused objective costs, beside autograd on full logits, plain cross-entropy and the bare matrix products.

    python benchmarks/objective.py [--json FILE] [--device cuda] [--toy]

The floor is 6 N d V operations: the three products that any loss on logits needs (forward, states, weight).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from side_by_side import Seconds, alternate, arguments, host_waits, keep, peak_memory, ratio, report
from torch import Tensor
from torch.nn.functional import linear, nll_loss
from transformers import LlamaConfig, LlamaForCausalLM

from longshort.alignment.divergences import with_slopes
from longshort.alignment.objective import AlignmentObjective
from longshort.alignment.settings import HiddenTerm, OutputTerm, OverlapAll, TwoViews
from longshort.alignment.views import overlap
from longshort.identity.kinds import DIVERGENCES
from longshort.models import head
from longshort.models.fused import Pairs, losses

ALPHA = 0.1


class Shape(NamedTuple):
    features: int
    vocabulary: int
    length: int
    dtype: torch.dtype
    device: str
    naive_length: int  # full logits of longer views would not fit


SHAPES = {
    "cpu": {
        "v32k": Shape(512, 32_000, 1024, torch.float32, "cpu", 1024),
        "v128k": Shape(512, 128_256, 512, torch.float32, "cpu", 512),
    },
    "cuda": {
        "head1b": Shape(2048, 128_256, 8192, torch.bfloat16, "cuda", 2048),
        "head7b": Shape(4096, 128_256, 8192, torch.bfloat16, "cuda", 2048),
    },
}


class Problem:
    """Two views of one text of random states, a quarter of which is outside of the overlap."""

    def __init__(self, shape: Shape) -> None:
        torch.manual_seed(0)
        self.shape = shape
        options: dict[str, Any] = {"dtype": shape.dtype, "device": shape.device}
        self.hidden = torch.randn(2 * shape.length, shape.features, **options).requires_grad_()
        self.weight = (torch.randn(shape.vocabulary, shape.features, **options) * 0.02).requires_grad_()
        self.targets = torch.randint(0, shape.vocabulary, (2, 1, shape.length), device=shape.device)
        self.extra = shape.length // 4

    def backward(self, loss: Tensor) -> None:
        self.hidden.grad = self.weight.grad = None
        loss.backward()

    def fused(self, kind: str | None) -> None:
        """CE of both views and, with a kind, its divergence."""
        if kind is None:
            self.backward(losses(self.hidden, self.weight, None, self.targets.flatten()).loss)
            return
        at = overlap(self.targets, [self.extra])
        pairs = [Pairs(at.in_a, at.in_b, at.weight, ALPHA, with_slopes(kind))]
        self.backward(losses(self.hidden, self.weight, None, self.targets.flatten(), pairs, at.alone).loss)

    def naive(self) -> None:
        """CE + SCE by autograd on the full logits, with no copy that autograd does not need."""
        log_probs = linear(self.hidden, self.weight).float().log_softmax(-1)
        ce = nll_loss(log_probs, self.targets.flatten())
        a, b = log_probs.unflatten(0, (2, -1))
        a, b = a[self.extra :], b[: len(b) - self.extra]
        self.backward(ce + ALPHA * (-(a.exp() * b).sum(-1) - (b.exp() * a).sum(-1)).mean())

    def liger(self) -> None:
        """CE of both views by Liger's kernel: whether an optional extra would serve the baseline better."""
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        self.backward(LigerFusedLinearCrossEntropyFunction.apply(self.hidden, self.weight, self.targets.flatten())[0])

    @torch.no_grad()
    def floor(self) -> None:
        logits = torch.mm(self.hidden, self.weight.t())
        torch.mm(logits, self.weight)
        torch.mm(logits.t(), self.hidden)


def liger_is_there(device: str) -> bool:
    return device == "cuda" and importlib.util.find_spec("liger_kernel") is not None


def work(shape: Shape, name: str, kind: str | None = None) -> Callable[[], None]:
    problem = Problem(shape)
    return partial(problem.fused, kind) if name == "fused" else getattr(problem, name)


def objective_figures(name: str, shape: Shape, rounds: int) -> tuple[dict[str, float], dict[str, str]]:
    problem = Problem(shape)
    if shape.device == "cuda":
        torch.cuda.set_sync_debug_mode("error")  # waiting for the device inside the loss would be an error
        problem.fused("sce")
        torch.cuda.set_sync_debug_mode("default")
    functions: dict[str, Callable[[], Any]] = {
        "floor": problem.floor,
        "ce": partial(problem.fused, None),
        **{kind: partial(problem.fused, kind) for kind in DIVERGENCES},
    }
    if liger_is_there(shape.device):
        functions["liger"] = problem.liger
    seconds: Seconds = alternate(functions, rounds, shape.device)
    small = Problem(shape._replace(length=shape.naive_length))
    against: Seconds = alternate({"fused": partial(small.fused, "sce"), "naive": small.naive}, rounds, shape.device)
    peaks = {
        key: peak_memory(work, small.shape, *key, device=shape.device)
        for key in (("naive",), ("fused", "sce"), ("fused", None))
    }
    head_gradient = shape.vocabulary * shape.features * problem.weight.element_size()
    figures = {
        f"time_fused_over_naive_{name}": ratio(against, "fused", "naive"),
        f"time_sce_over_ce_{name}": ratio(seconds, "sce", "ce"),
        f"time_sce_over_floor_{name}": ratio(seconds, "sce", "floor"),
        f"memory_fused_over_naive_{name}": peaks["fused", "sce"] / peaks[("naive",)],
        f"memory_head_gradient_over_naive_{name}": head_gradient / peaks[("naive",)],
        **{
            f"time_{kind.replace('-', '_')}_over_ce_{name}": ratio(seconds, kind, "ce")
            for kind in DIVERGENCES
            if kind != "sce"
        },
    }
    if "liger" in seconds:
        figures[f"time_ce_over_liger_{name}"] = ratio(seconds, "ce", "liger")
    of = f"d {shape.features}, V {shape.vocabulary:,}, 2 x {shape.length}"
    naive = f"2 x {shape.naive_length}"
    mean = {key: sum(values) / len(values) for key, values in {**seconds, **against}.items()}
    notes = {
        f"time_fused_over_naive_{name}": f"SCE on {naive}: {mean['fused']:.3g} / {mean['naive']:.3g} s",
        f"time_sce_over_ce_{name}": f"{of}: {mean['sce']:.3g} / {mean['ce']:.3g} s",
        f"time_sce_over_floor_{name}": f"floor {mean['floor']:.3g} s",
        f"memory_fused_over_naive_{name}": f"{naive}, peak MiB: naive {peaks[('naive',)] / 2**20:.0f}, "
        f"fused SCE {peaks['fused', 'sce'] / 2**20:.0f}, fused CE {peaks['fused', None] / 2**20:.0f}",
        f"memory_head_gradient_over_naive_{name}": f"{head_gradient / 2**20:.0f} MiB, which nothing can save",
    }
    return figures, notes


class Step:
    """A whole training step of one arm: forward, backward, clipping, AdamW."""

    def __init__(self, config: LlamaConfig, asked: TwoViews | None, rows: int, length: int, options: dict) -> None:
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(config).to(**options)
        self.head = head.install(self.model, AlignmentObjective(self.model, asked) if asked else head.NextToken())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        tokens = torch.randint(0, config.vocab_size, (rows, length + length // 4 + 1), device=options["device"])
        views = torch.stack([tokens[:, : length + 1], tokens[:, length // 4 :]])
        self.inputs, targets = views[..., :-1], views[..., 1:].contiguous()
        self.batch = head.LossInputs(targets, [length // 4] * rows, 1.0, 1.0)

    def __call__(self) -> None:
        self._step(lambda: head.parts(self.model, self.head, self.inputs, self.batch)[0])

    def plain(self) -> None:
        """As fine-tuning is usually done: one view, the library's own loss on all its logits."""
        body, out = self.model.model, self.model.lm_head
        self._step(
            lambda: self.model.loss_function(
                out(body(input_ids=self.inputs[0], use_cache=False).last_hidden_state),
                None, self.model.config.vocab_size, shift_labels=self.batch.targets[0],
            )
        )  # fmt: skip

    def _step(self, loss: Callable[[], Tensor]) -> None:
        self.optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


SHARED: dict[str, Any] = {"max_extra": 1, "overlap": OverlapAll()}
SCE, SYMMETRIC_KL = OutputTerm(alpha=1.0, divergence="sce"), OutputTerm(alpha=1.0, divergence="symmetric-kl")
FIRST_LAYER = HiddenTerm(alpha=1.0, layers=[1], distance="mse")
ARMS = {
    "baseline": None,
    "arm": TwoViews(output=SCE, **SHARED),
    "symmetric_kl": TwoViews(output=SYMMETRIC_KL, **SHARED),
    "hidden": TwoViews(hidden=FIRST_LAYER, **SHARED),
    "hidden_output": TwoViews(output=SYMMETRIC_KL, hidden=FIRST_LAYER, **SHARED),
}


def llama(
    features: int, intermediate: int, layers: int, heads: int, vocabulary: int, key_value_heads: int | None = None
) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=features,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads or heads,
        pad_token_id=0,
    )


def step_figures(
    name: str, config: LlamaConfig, rows: int, length: int, rounds: int, options: dict
) -> tuple[dict[str, float], dict[str, str]]:
    steps = {arm: Step(config, terms, rows, length, options) for arm, terms in ARMS.items()}
    seconds = alternate({**steps, "plain": steps["baseline"].plain}, rounds, options["device"])
    baseline = sum(seconds["baseline"]) / rounds
    what = f"{config.num_hidden_layers} layers, d {config.hidden_size}, V {config.vocab_size:,}, "
    what += f"2 x {rows} x {length} tokens; baseline {baseline:.3g} s"
    figures = {f"step_{arm}_over_baseline_{name}": ratio(seconds, arm, "baseline") for arm in ARMS if arm != "baseline"}
    figures[f"step_plain_over_baseline_{name}"] = ratio(seconds, "plain", "baseline")
    notes = {f"step_arm_over_baseline_{name}": f"SCE; {what}"}
    notes[f"step_plain_over_baseline_{name}"] = "one view of as many windows, the library's loss on all logits"
    if options["device"] == "cuda":  # beyond those of the baseline, which are transformers' own
        waits = {arm: host_waits(step) for arm, step in steps.items()}
        for arm in (arm for arm in ARMS if arm != "baseline"):
            figures[f"host_waits_{arm}_{name}"] = len(waits[arm]) - len(waits["baseline"])
        notes[f"host_waits_arm_{name}"] = f"in all: {', '.join(sorted(set(sum(waits.values(), [])))) or 'none'}"
    return figures, notes


def main() -> None:
    given = arguments(__doc__)
    figures: dict[str, float] = {}
    notes: dict[str, str] = {}

    def add(more: tuple[dict[str, float], dict[str, str]]) -> None:
        figures.update(more[0])
        notes.update(more[1])
        keep(figures, notes, given)

    shapes = {"toy": Shape(16, 1000, 64, torch.float32, given.device, 64)} if given.toy else SHAPES[given.device]
    for name, shape in shapes.items():
        add(objective_figures(name, shape, given.rounds))
    if given.toy:
        add(step_figures("toy", llama(16, 32, 2, 2, 257), 2, 32, given.rounds, {"device": given.device}))
    elif given.device == "cpu":
        cpu = {"device": "cpu"}
        add(step_figures("demo", llama(128, 352, 2, 4, 257), 16, 128, 5 * given.rounds, cpu))
        add(step_figures("v32k", llama(512, 1408, 4, 8, 32_000), 2, 512, given.rounds, cpu))
    else:
        half = {"device": "cuda", "dtype": torch.bfloat16}
        add(step_figures("1b", llama(2048, 8192, 16, 32, 128_256, key_value_heads=8), 1, 8192, given.rounds, half))
    report("The objective", figures, notes, given)


if __name__ == "__main__":
    main()
