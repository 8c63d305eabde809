"""Say what is wrong with a configuration, where it stands, in words an operator understands."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from authz_server.core.errors import Fault
from authz_server.core.suggestion import did_you_mean
from authz_server.core.yaml_document import Path, YamlDocument
from authz_server.settings.environment import Overrides, found_at

# pydantic's error types to the phrase that follows the name of the key; `{…}` is their context.
_PHRASES = {
    "missing": "is required",
    "literal_error": "must be {expected}",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "enum": "must be {expected}",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must not be empty",
    "too_long": "must have at most {max_length} entries",
    "string_too_long": "must be at most {max_length} characters long",
    "tuple_type": "must be a list",
    "model_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "phrase": "{phrase}",
}


def faults_of(
    error: ValidationError, model: type[BaseModel], document: YamlDocument, overrides: Overrides
) -> Iterator[Fault]:
    """Yield every fault in `error` at its line and column, or under the variable that set it."""
    value = overrides.over(document.value)
    for detail in error.errors(include_url=False, include_input=False):
        for found, phrase in _found(detail, model):
            # A single value stands for a list of one; then nothing is written at its index.
            path = found if not isinstance(found[-1], int) or found_at(value, found) else found[:-1]
            message = f"`{dotted(path)}` {phrase}"
            variable = overrides.variable(path, document.value)
            if variable is not None:
                yield Fault(file=variable, message=message)
            elif detail["type"] == "extra_forbidden" or "[key]" in detail["loc"]:
                yield document.key_fault(path, message)
            else:
                yield document.fault(path, message)


def dotted(path: Path) -> str:
    """Return `path` as people write it: `delegation.issuers[0].algorithms`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def leaves(model: type[BaseModel], above: Path = ()) -> Iterator[Path]:
    """Yield the path of every key of `model` that holds a value and not a section of its own."""
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section is None:
            yield (*above, name)
        else:
            yield from leaves(section, (*above, name))


def _found(detail: ErrorDetails, model: type[BaseModel]) -> Iterator[tuple[Path, str]]:
    path = tuple(part for part in detail["loc"] if part != "[key]")
    context: Mapping[str, Any] = detail.get("ctx", {})
    match detail["type"]:
        case "contradictions":
            for below, phrase in context["found"]:
                yield (*path, *below), phrase
        case "extra_forbidden":
            yield path, "is not a known key" + did_you_mean(str(path[-1]), _keys(model, path[:-1]))
        case kind if kind in _PHRASES:
            yield path, _PHRASES[kind].format_map(context).replace("'", "`")
        case _:
            yield path, "is not valid: " + detail["msg"]


def _keys(model: type[BaseModel], path: Path) -> tuple[str, ...]:
    section: type[BaseModel] | None = model
    for part in path:
        if section is not None and isinstance(part, str) and part in section.model_fields:
            section = _section(section.model_fields[part].annotation, through_lists=True)
    return tuple(section.model_fields) if section is not None else ()


def _section(annotation: Any, *, through_lists: bool = False) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if through_lists:
        for inner in get_args(annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                return inner
    return None
