"""Offline validation: schemas, our rules, references, Serve configs and job entrypoints."""

from __future__ import annotations

import importlib
import shlex
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from ecg_agent_ray.errors import ConfigError, EcgAgentError
from ecg_agent_ray.kube.policies import (
    PLACEHOLDER_DIGEST,
    RULES,
    containers,
    pod_specs,
    profile_of,
)
from ecg_agent_ray.kube.render import origin_file
from ecg_agent_ray.kube.schemas import cel_is_installed, schema_problems
from ecg_agent_ray.shipped import shipped

__all__ = ["JOB_CONFIGS", "Problem", "validate"]

JOB_CONFIGS = {
    "finetune_llm": "ecg_agent_ray.training.llm_config:LLMFinetuneConfig",
    "finetune_classifier": "ecg_agent_ray.training.classifier_config:ClassifierFinetuneConfig",
    "pretrain_classifier": "ecg_agent_ray.training.pretrain_config:PretrainConfig",
    "train_delineator": "ecg_agent_ray.training.delineator_config:DelineatorTrainConfig",
    "extract_tool_outputs": "ecg_agent_ray.pipelines.extract_config:ExtractConfig",
    "evaluate_agent": "ecg_agent_ray.evaluation.config:EvaluationConfig",
    "prepare_data": "ecg_agent_ray.pipelines.prepare_config:PrepareConfig",
    "fairseq_hydra_train": "ecg_agent_ray.training.pretrain_fairseq:FairseqTrainConfig",
}
"""Configuration class of each script in ``jobs/`` that runs as a RayJob."""


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
            errors += [("entrypoint", text) for text in _entrypoint_problems(thing, objects)]
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


def _entrypoint_problems(thing: dict[str, Any], objects: list[dict[str, Any]]) -> Iterator[str]:
    """``python …/jobs/NAME.py --config FILE key=value…``: the script, the file and its content."""
    if thing["kind"] != "RayJob":
        return
    entrypoint = str(thing["spec"].get("entrypoint") or "")
    words = shlex.split(entrypoint)
    script = Path(words[1]).stem if words[:1] == ["python"] and len(words) > 1 else None
    if script is None or Path(words[1]).parts[-2:] != ("jobs", f"{script}.py"):
        yield f"spec.entrypoint: {entrypoint!r} is not `python …/jobs/NAME.py --config FILE …`"
        return
    known = sorted(path.stem for path in shipped("jobs").glob("*.py"))
    if script not in known or script not in JOB_CONFIGS:
        yield f"spec.entrypoint: no job {words[1]!r}; there are: {', '.join(known)}"
        return
    rest = words[2:]
    config = rest[1] if rest[:1] == ["--config"] and len(rest) > 1 else None
    text = _mounted(thing, config, objects) if config else ""
    if config and text is None:
        yield f"spec.entrypoint: no ConfigMap of these manifests is mounted as {config}"
        return
    overrides = rest[2:] if config else rest
    yield from _config_problems(script, text or "", overrides)


def _config_problems(script: str, text: str, overrides: Iterable[str]) -> Iterator[str]:
    from ecg_agent_ray.training.config import load_config

    module, _, name = JOB_CONFIGS[script].partition(":")
    model = getattr(importlib.import_module(module), name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(text, encoding="utf-8")
        try:
            load_config(model, path, overrides)
        except EcgAgentError as error:
            yield f"spec.entrypoint: {str(error).replace(str(path), 'of the job')}"


def _mounted(thing: dict[str, Any], path: str, objects: list[dict[str, Any]]) -> str | None:
    """Text of the ConfigMap file that the head sees at ``path``."""
    head = thing["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for mount in head["containers"][0].get("volumeMounts") or []:
        if Path(path).parent != Path(mount["mountPath"]):
            continue
        for volume in head.get("volumes") or []:
            if volume["name"] == mount["name"] and "configMap" in volume:
                wanted = volume["configMap"]["name"]
                for one in objects:
                    if one["kind"] == "ConfigMap" and one["metadata"]["name"] == wanted:
                        return (one.get("data") or {}).get(Path(path).name)
    return None


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
