"""Options from outside (YAML, JSON, ``-C key=value``) into pydantic models, all faults at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ecg_agent_ray.errors import ConfigError

__all__ = ["StrictConfig", "faults", "validated"]


class StrictConfig(BaseModel):
    """Base of all configurations: unknown keys are refused, assignments are checked."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def validated(model: type[ConfigT], values: Mapping[str, Any], what: str) -> ConfigT:
    """``values`` as ``model``; raises :class:`ConfigError` with one line per problem."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"bad {what}", problems=faults(model, error)) from error


def faults(model: type[BaseModel], error: ValidationError) -> tuple[str, ...]:
    """One line per problem; an unknown key comes with the one that was probably meant."""
    return tuple(_describe(model, dict(item)) for item in error.errors())


def _describe(model: type[BaseModel], error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "(top level)"
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, [str(part) for part in error["loc"][:-1]])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        return f"{where}: unknown key" + (f", did you mean {near[0]!r}?" if near else "")
    return f"{where}: {error['msg']} (got {error.get('input')!r})"


def _fields_at(model: type[BaseModel], parts: list[str]) -> list[str]:
    for part in parts:
        field = model.model_fields.get(part)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
