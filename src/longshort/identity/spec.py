"""What was asked, in one canonical form, and the names that come of it.

Imports no workflow engine and no torch, because everything that parses the Snakefile imports it.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from longshort.errors import UserError

Read = TypeVar("Read", bound=BaseModel)
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
        if not _identifies(field) or ("neutral" in mark and value == mark["neutral"]):
            continue
        values[name] = _normalised(value)
    return values


def restored(kind: type[Read], values: Any) -> Read:
    """What canonical wrote, as the model that it was: what was left out as neutral is put back.

    Fields that are no part of the identity have the model's default, whatever they were: nobody may read them.

    Args:
        kind: the model whose canonical form `values` is, e.g. study.run.RunSpec.

    Raises:
        UserError: the values are no such model's.
    """
    try:
        return kind.model_validate(_with_neutral(kind, values) if isinstance(values, dict) else values)
    except ValidationError as error:
        wrong = error.errors()[0]
        key = ".".join(map(str, wrong["loc"])) or "all of it"
        raise UserError(
            f"the specification is no {kind.__name__}: {key} = {wrong['input']!r:.60}: {wrong['msg']}; change it, or "
            "the code"
        ) from None


def _with_neutral(kind: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    fields = kind.model_fields
    neutral = {name: _mark(field)["neutral"] for name, field in fields.items() if "neutral" in _mark(field)}
    given = {
        name: _completed(fields[name].annotation, value) if name in fields else value for name, value in values.items()
    }
    return {**neutral, **given}


def _completed(annotation: Any, value: Any) -> Any:
    if isinstance(value, list):
        return [_completed(annotation, item) for item in value]
    kind = next((kind for kind in _models(annotation) if _fits(kind, value)), None) if isinstance(value, dict) else None
    return _with_neutral(kind, value) if kind else value


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation such as Annotated[A | B, ...] or list[A]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _fits(kind: type[BaseModel], values: dict[str, Any]) -> bool:
    """Whether the values can be the canonical form of a model of that kind."""
    fields = kind.model_fields
    literal = (name for name in values if name in fields and get_origin(fields[name].annotation) is Literal)
    return (
        values.keys() <= fields.keys()
        and all(name in values for name, field in fields.items() if field.is_required() and _identifies(field))
        and all(values[name] in get_args(fields[name].annotation) for name in literal)
    )


def _mark(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _identifies(field: FieldInfo) -> bool:
    return _mark(field).get("identity", True) is not False


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
