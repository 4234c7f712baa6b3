"""YAML plus ``key=value`` overrides into a pydantic model, every problem reported at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ecg_agent_ray.errors import ConfigError, InputError
from ecg_agent_ray.plugins.options import StrictConfig, faults
from ecg_agent_ray.shipped import shipped

__all__ = ["StrictConfig", "find_config", "load_config"]

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(
    model: type[ConfigT],
    path: str | Path | Sequence[str | Path] | None = None,
    overrides: Iterable[str] = (),
) -> ConfigT:
    """Fill ``model`` from the YAML at ``path``, then from ``overrides`` (``optimizer.lr=1e-4``).

    Of several files each is laid over those before it, key by key inside sections. A name without
    suffix that is no file is that of a shipped job configuration.

    An override's value is read as YAML, so ``steps=10``, ``leads=[I, II]`` and ``resume=null`` mean
    what they say. Raises :class:`ConfigError` with one line per problem.
    """
    paths = [path] if isinstance(path, str | Path) else list(path or ())
    values: dict[str, Any] = {}
    for file in paths:
        _overlay(values, _read_yaml(find_config(file)))
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
        problems += faults(model, error)
    if problems or config is None:
        where = ", ".join(map(str, paths))
        raise ConfigError(f"bad configuration {where}".rstrip(), problems=tuple(problems))
    return config


def find_config(name: str | Path) -> Path:
    """``name`` as a file, or ``finetune_llm_laptop`` as that file of the shipped jobs/configs."""
    path = Path(name)
    if not path.suffix and not path.exists():
        with contextlib.suppress(InputError):
            return shipped(f"jobs/configs/{path}.yaml")
    return path


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
