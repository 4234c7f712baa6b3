"""What is in the registry: lists, one version, the difference of two, a copy on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecg_agent_ray.errors import InputError, ModelNotFoundError
from ecg_agent_ray.registry.store import (
    ModelVersion,
    every,
    find_version,
    kind_of,
    registered_names,
    registry_client,
)
from ecg_agent_ray.registry.uris import resolve

__all__ = ["Diff", "diff", "export", "list_models", "show"]

_CONFIGS = {"agent": ("ecg_agent.json", "adapter_config.json"), "classifier": ("config.json",)}
_DATA_TAGS = ("data_digest", "evaluation_data_digest")


@dataclass(frozen=True)
class Diff:
    """Two versions side by side; only what differs is listed, absent values are None."""

    name: str
    versions: tuple[int, int]
    config: dict[str, tuple[Any, Any]]
    data: dict[str, tuple[Any, Any]]
    metrics: dict[str, tuple[float | None, float | None]]

    def to_dict(self) -> dict[str, Any]:
        parts = {
            part: {key: list(pair) for key, pair in getattr(self, part).items()}
            for part in ("config", "data", "metrics")
        }
        return {"name": self.name, "versions": list(self.versions), **parts}


def list_models(name: str | None = None) -> list[ModelVersion]:
    """All versions of our registered models (or of ``name``), newest first within a name.

    An empty registry gives an empty list; an unknown ``name`` raises :class:`ModelNotFoundError`.
    """
    try:
        client = registry_client()
    except ModelNotFoundError:
        if name is not None:
            raise
        return []
    names = [name] if name else registered_names(client)
    versions: list[ModelVersion] = []
    for each in names:
        found = every(client.search_model_versions, f"name='{each}'")
        numbers = {int(version.version) for version in found}
        if not numbers and name:
            find_version(client, each, 0)  # says what exists
        versions += [find_version(client, each, n) for n in sorted(numbers, reverse=True)]
    return versions


def show(name: str, version: int | str = "champion") -> ModelVersion:
    """One version by number or alias."""
    return find_version(registry_client(), name, version)


def diff(name: str, first: int | str, second: int | str) -> Diff:
    """What differs between two versions: configuration (files, parameters, tags), data, metrics."""
    client = registry_client()
    a, b = (find_version(client, name, wanted) for wanted in (first, second))
    config_a, config_b = (_config(client, version) for version in (a, b))
    data_a, data_b = ({key: v.tags.get(key) for key in _DATA_TAGS} for v in (a, b))
    return Diff(
        name=name,
        versions=(a.version, b.version),
        config=_different(config_a, config_b),
        data=_different(data_a, data_b),
        metrics=_different(a.metrics, b.metrics),
    )


def export(uri: str, directory: str | Path, *, kind: str | None = None) -> Path:
    """Copy a model's directory, so that it can be used without the registry.

    Raises :class:`InputError` if ``directory`` exists and is not empty.
    """
    source, target = resolve(uri, kind=kind), Path(directory)
    if target.exists() and any(target.iterdir()):
        raise InputError(f"{target} is not empty")
    shutil.copytree(source, target, dirs_exist_ok=True)
    return target.resolve()


def _config(client: Any, version: ModelVersion) -> dict[str, Any]:
    return {**_run_params(client, version), **_config_files(version), **_tags(version)}


def _run_params(client: Any, version: ModelVersion) -> dict[str, Any]:
    from mlflow.exceptions import MlflowException

    if version.run_id is None:
        return {}
    try:
        params = client.get_run(version.run_id).data.params
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}  # `mlflow gc` has removed the run; the version stays
    return {f"param.{key}": value for key, value in params.items()}


def _config_files(version: ModelVersion) -> dict[str, Any]:
    folder = resolve(version.uri)
    values: dict[str, Any] = {}
    for file in _CONFIGS.get(kind_of(version.name) or "", ()):
        if (folder / file).is_file():
            content = json.loads((folder / file).read_text(encoding="utf-8"))
            values |= _flat(content, Path(file).stem)
    return values


def _tags(version: ModelVersion) -> dict[str, Any]:
    kept = ("lead_configuration", "base_model", "git_commit", "classifier")
    return {f"tag.{key}": version.tags.get(key) for key in kept}


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        result: dict[str, Any] = {}
        for key, inner in value.items():
            result |= _flat(inner, f"{prefix}.{key}")
        return result
    return {prefix: value}


def _different(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = sorted(set(a) | set(b))
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}
