"""Whether the synthetic study's models had better be trained together or one by one.

    python benchmarks/synthetic.py [--json FILE] [--toy]

Together: the 20 models of a task and an encoding, as the study trains them. One by one: a plain loop for each model,
all in one process; as jobs of their own they would cost their imports besides.
"""

from __future__ import annotations

import itertools
import statistics
from functools import partial
from typing import Any

import torch
from side_by_side import alternate, arguments, ratio, report

from longshort import studies
from longshort.synthetic.model import Transformer
from longshort.synthetic.study import GroupSpec, ResolvedSynthetic
from longshort.synthetic.tasks import PARAMETERISATIONS, at, targets, training_batch
from longshort.synthetic.train import Group

STEPS = 20


def separate(spec: dict[str, Any]) -> None:
    training = spec["training"]
    for name, seed in itertools.product(spec["parameterisations"], spec["seeds"]):
        torch.manual_seed(seed)
        model = Transformer(spec["encoding"], **spec["model"], longest=1 + spec["lengths"]["test"])
        optimizer = torch.optim.AdamW(model.parameters(), lr=training["learning_rate"], fused=True)
        for step in range(training["steps"]):
            batch = training_batch(seed, step, training["batch"], spec["lengths"]["train"])
            wanted = PARAMETERISATIONS[name].forward(at(targets(spec["task"], batch.tokens), batch.lengths))
            loss = (at(model(batch.tokens)[:, 1:], batch.lengths) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def together(spec: dict[str, Any]) -> None:
    Group(GroupSpec.model_validate(spec)).train(lambda _: None)


def main() -> None:
    given = arguments(__doc__)
    study = studies.load("synthetic")
    assert isinstance(study, ResolvedSynthetic)
    figures, notes = {}, {}
    for group in study.groups.values():
        if group.task != "length" or group.alpha:
            continue
        spec = group.model_dump()
        spec["training"]["steps"] = 2 if given.toy else STEPS
        sides = {"together": partial(together, spec), "separate": partial(separate, spec)}
        seconds = alternate(sides, given.rounds, given.device)
        name = f"batched_over_separate_{group.encoding}"
        figures[name] = ratio(seconds, "together", "separate")
        ms = {side: 1000 * statistics.median(values) / spec["training"]["steps"] for side, values in seconds.items()}
        notes[name] = f"20 models, a step: {ms['together']:.0f} / {ms['separate']:.0f} ms"
    report("The synthetic study", figures, notes, given)


if __name__ == "__main__":
    main()
