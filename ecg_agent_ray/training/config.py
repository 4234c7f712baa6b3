"""YAML plus ``key=value`` overrides into a pydantic model, every problem reported at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ecg_agent_ray.errors import ConfigError

__all__ = ["StrictConfig", "load_config"]


class StrictConfig(BaseModel):
    """Base of all job configurations: unknown keys are refused, assignments are checked."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(
    model: type[ConfigT],
    path: str | Path | Sequence[str | Path] | None = None,
    overrides: Iterable[str] = (),
) -> ConfigT:
    """Fill ``model`` from the YAML at ``path``, then from ``overrides`` (``optimizer.lr=1e-4``).

    Of several files each is laid over those before it, key by key inside sections.

    An override's value is read as YAML, so ``steps=10``, ``leads=[I, II]`` and ``resume=null`` mean
    what they say. Raises :class:`ConfigError` with one line per problem.
    """
    paths = [path] if isinstance(path, str | Path) else list(path or ())
    values: dict[str, Any] = {}
    for file in paths:
        _overlay(values, _read_yaml(Path(file)))
    problems: list[str] = []
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not key.strip():
            problems.append(f"override {item!r} is not of the form key=value")
            continue
        try:
            _assign(values, key.strip().split("."), _scalar(text))
        except (yaml.YAMLError, TypeError) as error:
            problems.append(f"override {item!r}: {error}")
    config: ConfigT | None = None
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        problems += [_describe(model, dict(item)) for item in error.errors()]
    if problems or config is None:
        where = ", ".join(map(str, paths))
        raise ConfigError(f"bad configuration {where}".rstrip(), problems=tuple(problems))
    return config


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration file at {path}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path} as YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, not key: value lines")
    return values


def _overlay(values: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _overlay(values[key], value)
        else:
            values[key] = value


def _scalar(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, dict) and not text.lstrip().startswith("{"):
        return text  # adapter=builtin: is a name, though YAML reads a mapping
    if isinstance(value, str):
        # YAML 1.1 reads 1e-4 as text, while everybody who types it means a number
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _assign(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise TypeError(f"{key} is not a section")
    values[keys[-1]] = value


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
