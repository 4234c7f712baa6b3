"""Offline validation: schemas, our rules, references, Serve configs and job entrypoints."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.kube.entrypoints import entrypoint_problems
from ecg_agent_ray.kube.policies import (
    PLACEHOLDER_DIGEST,
    RULES,
    containers,
    pod_specs,
    profile_of,
)
from ecg_agent_ray.kube.render import origin_file
from ecg_agent_ray.kube.schemas import cel_is_installed, schema_problems

__all__ = ["Problem", "validate"]


@dataclass(frozen=True)
class Problem:
    """One finding; ``rule`` says which check made it, ``object`` is KIND/NAME.

    ``file`` is where kustomize had the object from, where it said so.
    """

    severity: Literal["error", "warning"]
    object: str
    rule: str
    message: str
    file: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        return asdict(self)

    def __str__(self) -> str:
        where = f"{self.file}: " if self.file else ""
        return f"{where}{self.object}: {self.message} [{self.rule}]"


def validate(objects: list[dict[str, Any]]) -> list[Problem]:
    """All that is wrong with these objects together; errors and warnings, in their order."""
    profile = profile_of(objects)
    problems: list[Problem] = []
    if not cel_is_installed():
        text = "CEL rules are not evaluated; pip install 'ecg-agent-ray[kubernetes]'"
        problems.append(Problem("warning", "(all)", "schema", text))
    for thing in objects:
        name = _name(thing)
        found = schema_problems(thing)
        if found is None:
            problems.append(
                Problem("warning", name, "schema", f"no schema for {thing['apiVersion']} here")
            )
        errors = [("schema", text) for text in found or ()]
        if not errors:
            # rules read objects by their shape, so they come after it is known
            errors += [(rule, text) for rule, run in RULES.items() for text in run(thing, profile)]
            errors += [("serve", text) for text in _serve_problems(thing)]
            errors += [("entrypoint", text) for text in entrypoint_problems(thing, objects)]
        problems += [Problem("error", name, rule, text) for rule, text in errors]
        if any(PLACEHOLDER_DIGEST in str(c.get("image")) for _, _, c in containers(thing)):
            text = "placeholder digest; give the image with `kube render --image …@sha256:…`"
            problems.append(Problem("warning", name, "images", text))
    if any(thing["kind"] == "Namespace" for thing in objects):
        problems += _reference_problems(objects)
    files = {_name(thing): origin_file(thing) for thing in objects}
    return [replace(one, file=files.get(one.object)) for one in problems]


def _name(thing: dict[str, Any]) -> str:
    return f"{thing['kind']}/{(thing.get('metadata') or {}).get('name', '?')}"


def _serve_problems(thing: dict[str, Any]) -> Iterator[str]:
    """``serveConfigV2`` through Ray Serve's schema, and its arguments through ours."""
    if thing["kind"] != "RayService":
        return
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    from ecg_agent_ray.serving.config import load_service_config

    text = thing["spec"].get("serveConfigV2") or ""
    try:
        ServeDeploySchema.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        yield f"spec.serveConfigV2 is no YAML: {error}"
        return
    except ValidationError as error:
        for fault in error.errors():
            yield f"spec.serveConfigV2.{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "serve.yaml")
        path.write_text(text, encoding="utf-8")
        try:
            load_service_config(path)
        except ConfigError as error:
            yield f"spec.serveConfigV2: {str(error).replace(str(path), 'it')}"


def _reference_problems(objects: list[dict[str, Any]]) -> list[Problem]:
    """ConfigMaps, claims and accounts that pods name but the overlay does not make."""
    there = {(one["kind"], one["metadata"]["name"]) for one in objects}
    problems = []
    for thing in objects:
        name = f"{thing['kind']}/{thing['metadata']['name']}"
        for path, pod in pod_specs(thing):
            for kind, wanted in sorted(set(_references(pod)) - there):
                text = f"{path}: names {kind} {wanted!r}, which the manifests do not have"
                problems.append(Problem("error", name, "references", text))
    return problems


def _references(pod: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if account := pod.get("serviceAccountName"):
        yield "ServiceAccount", account
    for volume in pod.get("volumes") or []:
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    for container in [*(pod.get("initContainers") or []), *pod["containers"]]:
        for source in container.get("envFrom") or []:
            if "configMapRef" in source:
                yield "ConfigMap", source["configMapRef"]["name"]
        for variable in container.get("env") or []:
            reference = (variable.get("valueFrom") or {}).get("configMapKeyRef")
            if reference:
                yield "ConfigMap", reference["name"]
