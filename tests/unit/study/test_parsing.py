"""What a mistake in the configuration is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort.errors import StudyError
from tests.support.studies import POLYPYTHIAS, PRETRAINED, load

ADAPTER = {"kind": "qlora", "rank": 4, "alpha": 8.0}
COMMIT = "give the commit, so that the study stays the same"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lenghts": 1}, ["lenghts", "unknown key", "did you mean 'lengths'"]),
        ({"arms": ["baseline", "step-linaer"]}, ["'step-linaer'", "unknown arm", "did you mean 'step-linear'"]),
        ({"training__batch": "many"}, ["training.batch", "'many'", "windows per optimiser step"]),
        ({"alignment__alpha": -0.5}, ["study tiny: alignment.alpha = -0.5: must be at least 0 (weight"]),
        ({"alignment__sampling_range": 1.5}, ["study tiny: alignment.sampling_range = 1.5: must be at most 1 ("]),
        ({"alignment__sampling_range": 0.05}, ["alignment.sampling_range = 0.05", "less than one token", "0.0625"]),
        (
            {"overrides": {"constant": {"alignment": {"alpha": -0.5}}}},
            ["study tiny, arm constant: alignment.alpha = -0.5: must be at least 0 (weight"],
        ),
        ({"overrides": {"constant": {"alignment": {"alhpa": 1}}}}, ["arm constant", "alhpa", "did you mean 'alpha'"]),
        (
            {"overrides": {"constant": {"control": "baseline"}}},
            ["overrides.constant.control", "unknown key", "training"],
        ),
        ({"overrides": {"constant": {"training": {"steps": 4}}}}, ["arm constant", "checkpoints = 6", "1..4"]),
        (
            {"lengths": {"train": 16}, "alignment__schedule": {"kind": "ratio"}},
            ["arm baseline", "l_test", "lengths.test"],
        ),
        ({"tables__main__arms": ["baseline", "hidden"]}, ["tables.main.arms", "'hidden'", "add it to arms"]),
        ({"tables__main__arms": ["baseline", "baseline"]}, ["tables.main.arms", "'baseline' stands there twice"]),
        ({"tables__main__arms": []}, ["tables.main.arms = []", "needs a row"]),
        ({"tables__main__compare_with": "control"}, ["tables.main.compare_with", "'control'", "use baseline"]),
        ({"arms": ["baseline", "constant", "baseline"]}, ["arms", "'baseline'", "twice"]),
        ({"seeds": [0.5]}, ["seeds.0", "0.5", "integer"]),
        ({"seeds": [1.0]}, ["seeds.0 = 1.0: must be an integer (one run of every arm for each)"]),
        ({"seeds": ["one"]}, ["seeds.0", "'one'", "integer"]),
        ({"seeds": [-1]}, ["seeds.0 = -1: must be at least 0"]),
        ({"seeds": [2**31]}, ["seeds.0 = 2147483648: must be below 2147483648"]),
        ({"evaluations": {}}, ["evaluations", "nothing is measured", "give longbench_e"]),
        ({"evaluations__perplexity__lengths": [16, 16]}, ["evaluations.perplexity.lengths", "16 stands there twice"]),
        *(
            (
                {"evaluations__perplexity": {"lengths": [16, 64], "documents": 1, **settings}},
                ["evaluations.perplexity", f"{key}.tokens 63 is less than the longest length", "raise it"],
            )
            for key, settings in {
                "protocol": {"protocol": {"kind": "sliding", "stride": 8, "tokens": 63}},
                "beside": {"beside": {"kind": "block", "tokens": 63}},
            }.items()
        ),
        ({"evaluations__perplexity__lengths": [0]}, ["evaluations.perplexity.lengths.0 = 0: must be above 0"]),
        (
            {
                "evaluations__perplexity": {
                    "lengths": [16, 40],
                    "documents": 1,
                    "beside": {"kind": "block", "chunk": 16},
                }
            },
            ["evaluations.perplexity", "beside.chunk 16 does not divide the length 40", "change one of the two"],
        ),
        (
            {
                "evaluations__perplexity": {
                    "lengths": [16, 64],
                    "documents": 1,
                    "protocol": {"kind": "same-targets", "targets": 17},
                }
            },
            ["evaluations.perplexity", "protocol.targets 17 is more than the shortest length", "lower it"],
        ),
        ({"evaluations__misalignment__beyond": [2, 2]}, ["evaluations.misalignment.beyond", "2 stands there twice"]),
        ({"evaluations__misalignment__beyond": [1]}, ["evaluations.misalignment.beyond.0 = 1: must be above 1"]),
        (
            {"evaluations__longbench_e": {"source": {"kind": "stand-in", "items_per_task": 1}, "max_length": 128}},
            ["evaluations.longbench_e", "max_length 128", "answer of 512", "give max_length 528"],
        ),
        (
            {
                "evaluations__longbench_e": {
                    "source": {"kind": "folder", "path": "gone"},
                    "max_length": 64,
                    "max_new_tokens": 4,
                }
            },
            ["evaluations.longbench_e.source.path = 'gone'", "no folder there"],
        ),
        ({"evaluations__harness": []}, ["evaluations.harness.tasks", "must have at least 1 entry"]),
        ({"evaluations__harness": ["my/task.yaml"]}, ["evaluations.harness.tasks", "'my/task.yaml'", "include_path"]),
        ({"evaluations__harness": ["ruler@4096", "ruler@4096"]}, ["'ruler@4096' stands there twice"]),
        (
            {"evaluations__harness": {"tasks": ["wikitext"], "lower_is_better": ["wikitxt"]}},
            ["evaluations.harness", "lower_is_better has 'wikitxt', which tasks has not"],
        ),
        (
            {"evaluations__harness": {"tasks": ["wikitext"], "max_length": 256}},
            ["evaluations.harness.max_length = 256", "model.max_length 128"],
        ),
        (
            {"evaluations__harness": {"tasks": ["own"], "include_path": "gone"}},
            ["evaluations.harness.include_path = 'gone'", "no .yaml file there"],
        ),
        ({"data__corpus__path": "gone"}, ["data.corpus.path = 'gone'", "no file there"]),
        ({"model": {**PRETRAINED, "name": "./gone"}}, ["model.name = './gone'", "no folder there"]),
        ({"model": PRETRAINED}, ["model.revision", "'some/model'", COMMIT]),
        ({"data__tokenizer": {"kind": "pretrained", "name": "some/model"}}, ["data.tokenizer.revision", COMMIT]),
        (
            {"data__corpus": {"kind": "hub", "dataset": "some/texts", "revision": "main"}},
            ["data.corpus.revision = 'main': must have the form ^[0-9a-f]{40}$ (commit of the", "40 hexadecimal"],
        ),
        (
            {"evaluations__longbench_e": {"source": {"kind": "hub", "revision": "v1"}, "max_length": 600}},
            ["evaluations.longbench_e.source.revision = 'v1': must have the form", "40 hexadecimal"],
        ),
        (
            {"data__tokenizer": {"kind": "pretrained", "name": "some/model", "revision": "main"}},
            ["data.tokenizer.revision = 'main': must have the form", "40 hexadecimal"],
        ),
        ({"model": {**PRETRAINED, "revision": "0123abc"}}, ["model.revision = '0123abc': must have", "40 hexadecimal"]),
        (
            {"evaluations__perplexity__lengths": [256]},
            ["evaluations.perplexity.lengths", "256", "model.max_length 128"],
        ),
        ({"evaluations__misalignment__beyond": [16]}, ["evaluations.misalignment.beyond", "256", "model.max_length"]),
        ({"checkpoints": [2, 7]}, ["checkpoints", "7", "training.steps"]),
        ({"checkpoints": [True]}, ["checkpoints.0 = True: must be an integer"]),
        ({"training__deepspeed": "../arms"}, ["training.deepspeed", "'../arms'", "zero1"]),
        ({"training__deepspeed": "zero9"}, ["training.deepspeed", "'zero9'", "zero1"]),
        ({"alignment__stop_gradient": "targets"}, ["alignment", "sce only"]),
        ({"alignment__schedule": {"kind": "step"}}, ["alignment.schedule.kind", "'step'", "linear"]),
        ({"alignment__schedule": {"start": 1}}, ["alignment.schedule", "kind"]),
        ({"model__kind": "made"}, ["model.kind", "'made'", "'trained'"]),
        ({"training__batch": 3, "training__micro_batch": 2}, ["training", "batch 3", "micro_batch 2"]),
        ({"arms": ["baseline", "step-linear"]}, ["arm step-linear", "control", "'constant'"]),
        (
            {"training__adapter": ADAPTER, "training__deepspeed": "zero3"},
            ["training.adapter = 'qlora': training.deepspeed = 'zero3' divides", "zero2"],
        ),
        (
            {"training__adapter": ADAPTER, "model__rope": {"kind": "clex"}},
            ["training.adapter = 'qlora': model.rope clex trains weights of its own", "train all weights"],
        ),
        ({"model__training__adapter": ADAPTER}, ["model.training", "trained whole"]),
        ({"model__seed": "per-arm"}, ["model.seed = 'per-arm': must be an integer from 0", "or per-run"]),
        ({"model__seeds_per_base": 2}, ["model.seeds_per_base = 2: all seeds start from one base", "per-run"]),
        (
            {"model__seed": "per-run", "model__seeds_per_base": 2, "seeds": [0, 1, 2]},
            ["model.seeds_per_base = 2: the 3 seeds cannot be shared out evenly"],
        ),
        ({"model": {**PRETRAINED, "bases": [{"name": "other"}]}}, ["model", "give either a name or bases"]),
        ({"model": {**POLYPYTHIAS, "revision": "0" * 40}}, ["model", "revision goes with each of bases"]),
        ({"model": POLYPYTHIAS}, ["model.bases: 2 bases for 1 seeds with 1 each; give 1 bases, or other seeds"]),
        (
            {"model": {**POLYPYTHIAS, "bases": [{"name": "some/model"}]}},
            ["model.bases[0].revision = null: 'some/model'", COMMIT],
        ),
        (
            {"training__attention": "shifted-sparse", "model__rope": {"kind": "eabf"}},
            ["training.attention = 'shifted-sparse': model.rope eabf", "use full"],
        ),
        (
            {"training__attention": "shifted-sparse", "lengths": {"train": 12}},
            ["training.attention = 'shifted-sparse': lengths.train 12 is no multiple of 8"],
        ),
    ],
)
def test_mistakes_are_named_with_place_value_and_remedy(config: Path, changes: dict, said: list[str]) -> None:
    with pytest.raises(StudyError) as error:
        load(config, **changes)
    for part in ["study tiny", *said]:
        assert part in str(error.value)
