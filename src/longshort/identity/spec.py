"""What was asked, in one canonical form, and the names that come of it.

Imports no workflow engine and no torch, because everything that parses the Snakefile imports it.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

# Of studies, arms and tables: they become names of files and folders, and words of a command.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")


def digest(text: str, length: int = 16) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def canonical(model: BaseModel) -> dict[str, Any]:
    """Every resolved value that is part of the identity, with normalised numbers.

    Left out are fields marked `identity: False` (they do not change the computation) and fields that still equal the
    `neutral` value they were introduced with (so that a new option invalidates nothing).
    """
    values = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        mark = _mark(field)
        if mark.get("identity", True) is False or ("neutral" in mark and value == mark["neutral"]):
            continue
        values[name] = _normalised(value)
    return values


def spec_id(model: BaseModel) -> str:
    """The hash of the canonical specification: the name of a run, a corpus or an evaluation."""
    return digest(dumps(canonical(model)))


def _mark(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _normalised(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return canonical(value)
    if isinstance(value, dict):
        return {str(key): _normalised(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normalised(item) for item in value]
    if isinstance(value, float):
        return value + 0.0 if value else 0.0  # -0.0 is 0.0
    return value


def run_id(spec: dict[str, Any], code: str, inputs: dict[str, Any]) -> str:
    """Names one computation: what was asked, by which code, from which content."""
    return digest(dumps({"spec": spec, "code": code, "inputs": inputs}))


def trajectory(spec: dict[str, Any]) -> dict[str, Any]:
    """What a run's weights at a step depend on: its specification, less the last step where no schedule knows it.

    With a constant learning rate and constant weights a longer training passes through the same weights, so it goes
    on from the shorter one's checkpoints.
    """
    terms = [(spec.get("alignment") or {}).get(term) or {} for term in ("output", "hidden")]
    constant = not any(isinstance(term.get("alpha"), list) for term in terms)
    if not spec.get("training") or spec["training"]["learning_rate_schedule"] != "constant" or not constant:
        return spec
    return {**spec, "training": {key: value for key, value in spec["training"].items() if key != "steps"}}
