"""Stage: trains and tests the models of a group. `python -m longshort.synthetic.train --spec FILE --out FILE`

All seeds and parameterisations are one batched computation (torch.func.vmap over stacked weights). Writes the numbers
(parquet: parameterisation, seed, length, metric, value) and, last, the record beside them.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from tqdm import tqdm

from longshort.errors import in_a_line
from longshort.identity.code import code_hash, modules, refuse_changed_code
from longshort.identity.spec import canonical, restored
from longshort.jobs import interruption
from longshort.records import provenance
from longshort.records.publish import file_digest, read_spec, write_atomic, write_record
from longshort.synthetic.model import Transformer
from longshort.synthetic.study import GroupSpec, SyntheticTraining
from longshort.synthetic.tasks import PARAMETERISATIONS, Batch, at, second_view, targets, test_batch, training_batch

ENTRY = "longshort.synthetic.train"
LINES = 10  # of progress, in a log
Weights = dict[str, Tensor]


class Group:
    """Models of one shape as one: the weights of all are stacked, [models, ...] each."""

    def __init__(self, spec: GroupSpec) -> None:
        self.spec = spec
        self.members = list(product(spec.parameterisations, spec.seeds))
        each = []
        for _, seed in self.members:
            torch.manual_seed(seed)
            each.append(Transformer(spec.encoding, **spec.model.model_dump(), longest=1 + spec.lengths.test))
        self.module = each[0]
        self.weights: Weights = stack_module_state(each)[0]

    def predictions(self, weights: Weights, tokens: Tensor) -> Tensor:
        """Parameterised, of every length: [models, rows, longest] of tokens [models, rows, 1 + longest]."""

        def one(weights: Weights, tokens: Tensor) -> Tensor:
            found: Tensor = functional_call(self.module, weights, (tokens,))
            return found

        return vmap(one)(weights, tokens)[..., 1:]

    def losses(self, weights: Weights, step: int) -> Tensor:
        """Of each model [models]: mean squared error + alpha * squared difference of the predictions of two views."""
        spec = self.spec
        of_seed = {seed: training_batch(seed, step, spec.training.batch, spec.lengths.train) for seed in spec.seeds}
        batches = [of_seed[seed] for _, seed in self.members]
        wanted = [
            PARAMETERISATIONS[name].forward(at(targets(spec.task, batch.tokens), batch.lengths))
            for (name, _), batch in zip(self.members, batches, strict=True)
        ]
        predicted = self._last(weights, batches)
        losses = (predicted - torch.stack(wanted)).square().mean(1)
        if spec.alpha:
            other = self._last(weights, [second_view(batch) for batch in batches])
            losses = losses + spec.alpha * (predicted - other).square().mean(1)
        return losses

    def _last(self, weights: Weights, batches: list[Batch]) -> Tensor:
        """The predictions of whole sequences: [models, rows]."""
        tokens, lengths = (torch.stack([batch[part] for batch in batches]) for part in (0, 1))
        return at(self.predictions(weights, tokens), lengths)

    def train(self, say: Any = print) -> None:
        training = self.spec.training
        weights = {name: value.requires_grad_() for name, value in self.weights.items()}
        optimizer = torch.optim.AdamW(weights.values(), lr=training.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, training))
        for step in tqdm(range(training.steps), desc="train", disable=not sys.stderr.isatty()):
            losses = self.losses(weights, step)
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % max(1, training.steps // LINES) == 0:
                say(f"step {step + 1} of {training.steps}: loss {losses.detach().median():.4g} (median of models)")

    @torch.no_grad()
    def test(self) -> pd.DataFrame:
        """Mean squared error of every model at every length, in the unit of the task."""
        spec = self.spec
        tokens = test_batch(spec.test_sequences, spec.lengths.test).tokens
        predicted = self.predictions(self.weights, tokens.expand(len(self.members), *tokens.shape))
        rows = []
        for (name, seed), each in zip(self.members, predicted, strict=True):
            found = PARAMETERISATIONS[name].inverse(each).clamp(max=spec.cap)
            errors = (found - targets(spec.task, tokens)).square().mean(0)
            for length, error in enumerate(errors.tolist(), start=1):
                rows.append({"parameterisation": name, "seed": seed, "length": length, "metric": "mse", "value": error})
        return pd.DataFrame(rows)


def _rate(step: int, training: SyntheticTraining) -> float:
    warmup, steps = training.warmup_steps, training.steps
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def protocol(spec: GroupSpec) -> str:
    train, test = spec.lengths.train, spec.lengths.test
    return f"synthetic/mse-v1?train={train}&test={test}&sequences={spec.test_sequences}&cap={spec.cap:g}"


@in_a_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, required=True, help="specification of the group (JSON)")
    parser.add_argument("--out", type=Path, required=True, help="numbers to write (parquet)")
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    arguments = parser.parse_args()
    if arguments.code:
        refuse_changed_code(arguments.code, ENTRY)
    interruption.end_at_once()
    torch.set_num_threads(1)  # two groups at a time are faster than one on two cores
    spec = restored(GroupSpec, read_spec(arguments.spec))
    group = Group(spec)
    group.train()
    buffer = io.BytesIO()
    group.test().to_parquet(buffer, index=False)
    write_atomic(arguments.out, buffer.getvalue())
    record = {
        "spec": canonical(spec),
        "protocol": protocol(spec),
        "sha256": file_digest(arguments.out),
        "code": code_hash(ENTRY),
        "modules": modules(ENTRY),
        "commit": provenance.commit(),
        "environment": provenance.environment(),
        "machine": provenance.machine(),
    }
    write_record(arguments.out.with_name("record.json"), record)


if __name__ == "__main__":
    main()
