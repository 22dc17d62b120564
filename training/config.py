"""Recipes: frozen parameters, read from a YAML file in which a misspelt key is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import yaml
from pydantic import AfterValidator, Field, ValidationError

from soundstage.params import Params

ParamsT = TypeVar("ParamsT", bound=Params)

Share = Annotated[float, Field(ge=0, le=1)]


def _in_order(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError(f"the first of {list(values)} must be the smaller")
    return values


Range = Annotated[tuple[float, float], AfterValidator(_in_order)]
"""Lowest and highest; drawn evenly between them."""


class BadConfig(ValueError):
    """A recipe that cannot be used; the message names the file and the key."""


def explained(error: ValidationError) -> str:
    """What is wrong with which key, one line each."""
    lines = []
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"])
        reason = "there is no such key" if detail["type"] == "extra_forbidden" else detail["msg"]
        lines.append(f"{key}: {reason}")
    return "; ".join(lines)


def read_yaml(path: Path, params_type: type[ParamsT]) -> ParamsT:
    """A recipe from a YAML file; what it does not name keeps its default.

    Raises:
        BadConfig: The file is missing, no YAML, or holds a key or value that is not one of the recipe's.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise BadConfig(f"{path} cannot be read: {e.strerror}") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise BadConfig(f"{path} is not YAML: {e}") from e
    if values is not None and not isinstance(values, dict):
        raise BadConfig(f"{path} is no mapping of keys to values")
    try:
        return params_type.model_validate(values or {})
    except ValidationError as e:
        raise BadConfig(f"{path}: {explained(e)}") from e
