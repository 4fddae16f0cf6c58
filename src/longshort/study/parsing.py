"""What a mistake in the configuration is answered with: place, key, value, remedy."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError

from longshort.errors import StudyError


def parse(model: type[Any], values: Any, where: str, prefix: str | None) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise StudyError("\n".join(_explain(item, model, where, prefix) for item in error.errors())) from None


def parse_rope(rope: BaseModel | None, patch: dict[str, Any], where: str) -> Any:
    """A study's context extension as an arm changes it; None where the study has none and the arm asks for none."""
    if not patch:
        return rope
    if rope is None:
        raise StudyError(f"{where}: rope = {short(patch)}: the study has no model.rope to change; take the arm out")
    return parse(type(rope), {**rope.model_dump(), **patch}, where, "rope")


def parse_patch(model: type[BaseModel], values: Any, where: str, prefix: str) -> None:
    """Checks what a patch says by itself; what it leaves out comes from elsewhere."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        mistakes = [_explain(item, model, where, prefix) for item in error.errors() if item["type"] != "missing"]
        if mistakes:
            raise StudyError("\n".join(mistakes)) from None


# How pydantic's own messages are said here, by type and by how its types begin.
MUST = {
    "greater_than_equal": "must be at least {ge:.10g}",
    "greater_than": "must be above {gt:.10g}",
    "less_than_equal": "must be at most {le:.10g}",
    "less_than": "must be below {lt}",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must have the form {pattern}",
    "too_short": "must have at least {min_length} entry",
    "literal_error": "must be {expected}",
    "finite_number": "must be a finite number",
    "int_": "must be an integer",
    "float_": "must be a number",
    "string_": "must be text; put quotes around it",
    "bool_": "must be true or false",
    "list_": "must be a list",
    "dict_": "must be a mapping of keys",
    "model_": "must be a mapping of keys",
}


def _explain(item: Any, model: type[BaseModel], where: str, prefix: str | None) -> str:
    # Of a union of plain types, pydantic puts the one that it tried into the path (list[str], literal['all']).
    location = [str(part) for part in item["loc"] if "[" not in str(part)]
    kind = item["type"]
    value = item["input"]
    # pydantic puts the tag of a chosen union member into the path; a person looks for the key.
    fields, shown = _fields_at(model, location)
    key = ".".join(([prefix] if prefix else []) + shown) or "(whole file)"
    given = f"{where}: {key}"
    if kind == "extra_forbidden":
        known = sorted(fields)
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{given} = {short(value)}: unknown key; {hint}known here: {', '.join(known)}"
    if kind == "missing":
        described = fields.get(location[-1])
        return f"{given} is missing; give {described.description if described is not None else 'it'}"
    if kind == "union_tag_not_found":
        return f"{given} = {short(value)}: it has no kind; say kind: and one of the kinds in config/README.md"
    if kind == "union_tag_invalid":
        return f"{given}.kind = {item['ctx']['tag']!r}: unknown kind; use one of {item['ctx']['expected_tags']}"
    must = next((text for start, text in MUST.items() if kind.startswith(start)), None)
    message = must.format(**item.get("ctx", {})) if must else item["msg"].removeprefix("Value error, ")
    named = [part for part in location if not part.isdigit()]  # an entry of a list is described by the list
    described = fields.get(named[-1]) if named else None
    about = f" ({described.description})" if described is not None and described.description else ""
    shown_value = "" if isinstance(value, dict | BaseModel) else f" = {short(value)}"
    return f"{given}{shown_value}: {message}{about}"


def _fields_at(model: type[BaseModel], location: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The fields known where the location ends, and the location without the tags of unions."""
    current: Any = model
    shown: list[str] = []
    owner: type[BaseModel] = model
    for part in location:
        members = _models_in(current)
        tagged = [m for m in members if part in _tags(m)]
        if tagged and not any(part in m.model_fields for m in members):
            current = tagged[0]
            owner = tagged[0]
            continue
        shown.append(part)
        holder = next((m for m in members if part in m.model_fields), members[0] if members else None)
        if holder is None:
            continue
        owner = holder
        current = holder.model_fields[part].annotation if part in holder.model_fields else current
    return dict(owner.model_fields), shown


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)]


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    kind = model.model_fields.get("kind")
    return getattr(kind.annotation, "__args__", ()) if kind is not None else ()


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
